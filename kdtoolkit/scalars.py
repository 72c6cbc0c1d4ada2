"""Numbers that may change while a model trains: weights, temperatures, gates.

A Python float is frozen into the traced step. A non-trainable variable is read at every step, so a
callback's `.assign` acts on the next batch without retracing.
"""

import math

import keras
import numpy as np


def checked(value, name, owner, *, minimum=-math.inf, above=-math.inf, maximum=math.inf):
    """Return `value` as a float, or say which range was expected.

    Args:
        value: a number or a scalar variable.
        name, owner: what the message calls the argument and the class that takes it.
        minimum: smallest value allowed.
        above: the value must be strictly larger than this.
        maximum: largest value allowed.

    Raises:
        ValueError: not a number, not finite, or out of range.
    """
    bounds = [f">= {minimum:g}"] * (minimum > -math.inf)
    bounds += [f"> {above:g}"] * (above > -math.inf)
    bounds += [f"<= {maximum:g}"] * (maximum < math.inf)
    expected = " and ".join(["a finite number", *bounds])
    try:
        # float() would read the text "4" as a number.
        result = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not (math.isfinite(result) and minimum <= result <= maximum and result > above):
        raise ValueError(f"`{name}` of {owner} must be {expected}. Received: {name}={value!r}")
    return result


def whole(value, name, owner, minimum=1):
    """Return `value` as an int, or say which range was expected.

    Args:
        value: an int, of Python or NumPy.
        name, owner: what the message calls the argument and the class or function that takes it.
        minimum: smallest value allowed.

    Raises:
        ValueError: not a whole number, or out of range.
    """
    number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not number or value < minimum:
        raise ValueError(
            f"`{name}` of {owner} must be an integer >= {minimum}. Received: {name}={value!r}"
        )
    return int(value)


def variable(value, name):
    """A float32 scalar variable that no optimizer trains and every callback may assign."""
    return keras.Variable(
        value, dtype="float32", trainable=False, name=name, autocast=False, shape=()
    )


def number(scalar):
    """The value of a float32 scalar variable, as the shortest decimal that it stores.

    A variable that was given 0.1 holds 0.100000001490...; this returns 0.1.
    """
    return float(str(np.float32(keras.ops.convert_to_numpy(scalar))))


class Scalar:
    """An attribute that is checked when it is set, and kept in a variable.

    ```python
    class MyLoss(TransferLoss):
        temperature = Scalar(above=0.0)

        def __init__(self, temperature=4.0):
            super().__init__()
            self.temperature = temperature
    ```

    Reading `loss.temperature` gives the variable, for use in the maths and for `.assign`;
    `loss.temperature = 2.0` checks the number and assigns it. Both act on the next batch. A
    `TransferLoss` writes its scalars into its config by itself.

    Args:
        minimum, above, maximum: bounds, as in `checked`.
    """

    def __init__(self, *, minimum=-math.inf, above=-math.inf, maximum=math.inf):
        self._bounds = {"minimum": minimum, "above": above, "maximum": maximum}

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, instance, owner=None):
        return self if instance is None else getattr(instance, f"_{self._name}")

    def __set__(self, instance, value):
        value = checked(value, self._name, type(instance).__name__, **self._bounds)
        existing = vars(instance).get(f"_{self._name}")
        if existing is None:
            setattr(instance, f"_{self._name}", variable(value, self._name))
        else:
            existing.assign(value)
