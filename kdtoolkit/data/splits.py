"""Seeded splits and label noise: what decides which example is where, and labelled how."""

from typing import NamedTuple

import numpy as np

from kdtoolkit.registry import expects


class Split(NamedTuple):
    """Two parts of a data set, and where their examples came from.

    Attributes:
        x_train, y_train: the larger part, examples in their old order.
        x_val, y_val: the part held out, examples in their old order.
        train_index, val_index: int arrays; `x_train` is `x[train_index]`.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    train_index: np.ndarray
    val_index: np.ndarray


@expects(x="array", y="array", seed="seeds", fraction="number")
def split(x, y, fraction, seed, stratify=True):
    """Holds out a share of the examples, by default the same share of every class.

    The index depends on `y`, `fraction`, `seed` and `stratify` alone. `round(fraction * examples)`
    examples are held out.

    Args:
        x: array `(examples, ...)`.
        y: int array `(examples,)` of class ids.
        fraction: float in [0, 1), the share to hold out. 0 gives an empty part.
        seed: int >= 0, or a sequence of them.
        stratify: bool. True: every class gives its share, to within one example. False: drawn
            from all examples alike; `y` may then have any shape `(examples, ...)`.

    Returns:
        A `Split`.

    Raises:
        ValueError: for a fraction outside [0, 1), or if `x` and `y` differ in length.

    Example:

    ```python
    parts = kdtoolkit.data.split(x, y, fraction=0.1, seed=0)
    parts.x_val, parts.val_index
    ```
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"`fraction` must be in [0, 1). Received: fraction={fraction}")
    if len(x) != len(y):
        raise ValueError(
            f"`x` and `y` must have the same length. Received: {len(x)} and {len(y)} examples"
        )
    held_out = choose(y, round(fraction * len(y)), seed, stratify)
    train_index = np.setdiff1d(np.arange(len(y)), held_out)
    return Split(x[train_index], y[train_index], x[held_out], y[held_out], train_index, held_out)


@expects(y="array", seed="seeds", count="whole")
def choose(y, count, seed, stratify=True):
    """Chooses `count` rows of `y` at random, in equal shares of every class if `stratify`.

    Shares that are not whole are rounded down, and the classes with the largest remainder give one
    example more, so that the total is exact.

    Args:
        y: int array `(examples,)` of class ids.
        count: int from 0 to the number of examples.
        seed: int >= 0, or a sequence of them.
        stratify: bool.

    Returns:
        A sorted int array `(count,)`.

    Raises:
        ValueError: if `count` is out of range.

    Example:

    ```python
    rows = kdtoolkit.data.choose(y, 500, seed=0)
    ```
    """
    if not 0 <= count <= len(y):
        raise ValueError(f"`count` must be from 0 to {len(y)} examples. Received: count={count}")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(y))
    if not stratify:
        return np.sort(order[:count])
    classes = np.unique(y, return_inverse=True)[1]
    sizes = np.bincount(classes)
    shares = sizes * count / max(len(y), 1)
    take = np.floor(shares).astype(int)
    # Stable, so that ties go to the same classes on every machine.
    by_remainder = np.argsort(take - shares, kind="stable")
    take[by_remainder[: count - take.sum()]] += 1
    chosen = [order[classes[order] == label][:number] for label, number in enumerate(take)]
    return np.sort(np.concatenate(chosen)) if chosen else order


@expects(y="array", seed="seeds", fraction="number", num_classes="whole")
def noisy_labels(y, fraction, num_classes, seed):
    """Gives a share of the examples a wrong label (symmetric noise).

    `round(fraction * examples)` labels change, each to one of the other classes with equal
    probability, so `fraction` is the share that is truly wrong. With the same seed, the examples
    that are wrong at a lower fraction are wrong in the same way at a higher one.

    Args:
        y: int array `(examples,)` of class ids below `num_classes`.
        fraction: float in [0, 1].
        num_classes: int >= 2 where the fraction is above 0.
        seed: int >= 0, or a sequence of them.

    Returns:
        A new array like `y`.

    Raises:
        ValueError: for a fraction outside [0, 1], or noise with a single class.

    Example:

    ```python
    y_train = kdtoolkit.data.noisy_labels(y_train, 0.3, num_classes=10, seed=0)
    ```
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fraction` must be in [0, 1]. Received: fraction={fraction}")
    if fraction and num_classes < 2:
        raise ValueError(f"Label noise needs two classes. Received: num_classes={num_classes}")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(y))
    steps = generator.integers(1, max(num_classes, 2), len(y))
    wrong = order[: round(fraction * len(y))]
    noisy = np.array(y)
    noisy[wrong] = (noisy[wrong] + steps[wrong]) % num_classes
    return noisy
