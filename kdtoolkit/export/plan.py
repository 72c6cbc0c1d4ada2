"""What the argument `quantize` asks for."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kdtoolkit.export.quantize import MODES, needs_ranges

_FORMS = (
    "None, one of "
    + ", ".join(f"'{name}'" for name in MODES)
    + ", a list of (regex, mode) by layer name, or a recipe of ai-edge-quantizer"
)


@dataclass(frozen=True)
class Plan:
    """How a model is to be quantised.

    Attributes:
        name: Name of the mode, `"mixed"` for rules, `"recipe"` for a ready recipe, `None` for
            float32.
        rules: Tuple of `(regex, mode)` by layer name. Empty for a ready recipe.
        recipe: A ready recipe of ai-edge-quantizer, or `None`.
        integer_io: `True` if inputs and outputs shall be integers.
    """

    name: str | None
    rules: tuple[tuple[str, str], ...] = ()
    recipe: list | None = None
    integer_io: bool = False

    @property
    def static(self):
        """`True` if activations need ranges, and so `representative_data`."""
        if self.recipe is not None:
            return needs_ranges(self.recipe)
        return any(MODES[mode].kind == "static" for _, mode in self.rules if mode in MODES)

    @property
    def weight_dtypes(self):
        """Types of which the file must hold at least one constant."""
        if self.recipe is not None:
            return {mode.weights for mode in MODES.values()} | {"int2"}
        return {MODES[mode].weights for _, mode in self.rules if mode in MODES}


def plan_for(quantize, io):
    """Read the arguments `quantize` and `io` of `litert`.

    Args:
        quantize: As given.
        io: As given.

    Returns:
        A `Plan`.

    Raises:
        ValueError: If they have no known form.
    """
    if io not in ("float32", "int8", "int16") or (io != "float32" and io != quantize):
        raise ValueError(
            "`io` must be 'float32', or 'int8' together with quantize='int8', or 'int16' "
            f"together with quantize='int16'. Received: io={io!r}, quantize={quantize!r}."
        )
    if quantize is None:
        return Plan(None)
    if isinstance(quantize, str) and quantize in MODES:
        return Plan(quantize, ((".*", quantize),), integer_io=io != "float32")
    if isinstance(quantize, Path) or (isinstance(quantize, str) and quantize.endswith(".json")):
        quantize = _read(quantize)
    if isinstance(quantize, (list, tuple)) and quantize:
        if all(isinstance(rule, dict) for rule in quantize):
            return Plan("recipe", recipe=list(quantize))
        return Plan("mixed", tuple(_checked(rule) for rule in quantize))
    raise ValueError(f"`quantize` must be {_FORMS}. Received: {quantize!r}.")


def _read(path):
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The recipe '{path}' could not be read ({error}). Expected a JSON file that "
            "ai-edge-quantizer wrote: a list of rules."
        ) from error


def _checked(rule):
    expected = ["float32", *MODES]
    pair = isinstance(rule, (list, tuple)) and len(rule) == 2
    if not pair or not isinstance(rule[0], str) or rule[1] not in expected:
        raise ValueError(
            "Every rule of `quantize` must be (regex, mode), where the mode is one of "
            f"{expected}. Received: {rule!r}."
        )
    try:
        re.compile(rule[0])
    except re.error as error:
        raise ValueError(
            f"The rule {rule!r} of `quantize` is no regular expression: {error}."
        ) from error
    return tuple(rule)
