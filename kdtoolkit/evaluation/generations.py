"""Experiments in generations: group their rows, accumulate time, compare methods.

A row is the result of one generation in one trial of one method: a dict, or an object with
attributes, of `COLUMNS`. Accuracies are fractions from 0 to 1. Trial i of all methods should share
seed and split; the comparisons pair trials by their number.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from kdtoolkit.evaluation.statistics import compare, holm, summary
from kdtoolkit.registry import expects

COLUMNS = ("method", "trial", "generation", "test_accuracy", "val_accuracy", "seconds", "epochs")


def as_dict(row):
    """Returns a row as a new dict: all keys of a mapping, or `COLUMNS` of another object."""
    return dict(row) if isinstance(row, Mapping) else {key: _read(row, key) for key in COLUMNS}


@expects(rows="several", value="text")
def by_generation(rows, value):
    """Collects one value of all rows by method and generation.

    Args:
        rows: iterable of rows, in any order: dicts or objects with `method`, `trial`,
            `generation` and the value.
        value: str, the key of the value, for example `"test_accuracy"`.

    Returns:
        A dict `{method: {generation: array (trials,)}}`. Methods are in the order of their first
        rows, generations ascend, and an array is in the order of the trial numbers.

    Raises:
        ValueError: without rows, for a row without one of these keys, for a value that isn't a
            finite number, or for two rows of the same method, trial and generation.

    Example:

    ```python
    accuracy = kdtoolkit.evaluation.by_generation(rows, "test_accuracy")
    accuracy["born-again"][2].mean()
    ```
    """
    return {
        method: {
            generation: np.array(_in_order(trials))
            for generation, trials in sorted(generations.items())
        }
        for method, generations in _by_trial(rows, value).items()
    }


@expects(rows="several", value="text")
def cumulative(rows, value="seconds"):
    """Adds to each row what its trial has needed from the first generation up to this one.

    Args:
        rows: iterable of rows, in any order.
        value: str, the key to sum over generations. Defaults to `"seconds"`.

    Returns:
        A list of dicts in the same order, each with the new key `"cumulative_" + value`.

    Raises:
        ValueError: as `by_generation`, or if a trial lacks a generation before one that it has;
            each method starts at the lowest generation among its rows.

    Example:

    ```python
    rows = kdtoolkit.evaluation.cumulative(rows)
    kdtoolkit.evaluation.compare_methods(rows, "self", "born-again", "cumulative_seconds")
    ```
    """
    rows = [as_dict(row) for row in rows]
    groups = _by_trial(rows, value)
    for row in rows:
        method, trial, generation = row["method"], row["trial"], row["generation"]
        generations = groups[method]
        total = 0.0
        for earlier in range(min(generations), generation + 1):
            if trial not in generations.get(earlier, {}):
                raise ValueError(
                    f"Trial {trial} of {method!r} has generation {generation}, but not {earlier}: "
                    f"its cumulative {value!r} is unknown. Expected: all generations of each trial"
                )
            total += generations[earlier][trial]
        row[f"cumulative_{value}"] = total
    return rows


@expects(rows="several")
def generation_table(rows):
    """Summarises an experiment: one line per method and generation.

    Args:
        rows: iterable of rows with all of `COLUMNS`.

    Returns:
        A list of dicts with the keys `method`, `generation`, `n` (trials),
        `test_accuracy_mean`, `test_accuracy_sd`, `val_accuracy_mean`, `val_accuracy_sd`,
        `cumulative_seconds_mean`, `cumulative_seconds_sd` and `epochs_mean`. Standard deviations
        have n - 1 in the denominator and are NaN for one trial.

    Raises:
        ValueError: as `cumulative`, or for accuracies outside 0 to 1.

    Example:

    ```python
    for line in kdtoolkit.evaluation.generation_table(rows):
        line["method"], line["generation"], line["test_accuracy_mean"]
    ```
    """
    rows = cumulative(rows)
    values = ("test_accuracy", "val_accuracy", "cumulative_seconds", "epochs")
    groups = {value: by_generation(rows, value) for value in values}
    _check_fractions(groups)
    table = []
    for method, generations in groups["test_accuracy"].items():
        for generation, accuracies in generations.items():
            line = {"method": method, "generation": generation, "n": len(accuracies)}
            for value in values:
                mean, sd = summary(groups[value][method][generation])
                line |= {f"{value}_mean": mean, f"{value}_sd": sd}
            del line["epochs_sd"]
            table.append(line)
    return table


@expects(rows="several", first="text", second="text", value="text")
def compare_methods(rows, first, second, value="test_accuracy", paired=True):
    """Compares two methods generation by generation.

    Args:
        rows: iterable of rows, see `by_generation`.
        first, second: names of two different methods.
        value: str, the key to compare. Defaults to `"test_accuracy"`.
        paired: bool, see `compare`. Trials are paired by their number. Defaults to True.

    Returns:
        A list with a dict for each generation that both methods have: `first`,
        `first_generation`, `second`, `second_generation`, all attributes of `Comparison`, and
        `p_holm`, the p-value adjusted for all generations of this list.

    Raises:
        ValueError: for an unknown method, no common generation, paired trials with different
            numbers, or as `compare`.
        ImportError: without SciPy.

    Example:

    ```python
    for line in kdtoolkit.evaluation.compare_methods(rows, "self", "born-again"):
        line["first_generation"], line["mean_difference"], line["p_holm"]
    ```
    """
    results = _two_methods(rows, first, second, value)
    common = sorted(results[first].keys() & results[second].keys())
    if not common:
        raise ValueError(
            f"{first!r} and {second!r} have no generation in common. Received: "
            f"{sorted(results[first])} and {sorted(results[second])}. Use `compare_matrix`"
        )
    return _compared(results, [(generation, generation) for generation in common], paired)


@expects(rows="several", first="text", second="text", value="text")
def compare_matrix(rows, first, second, value="test_accuracy", paired=True):
    """Compares each generation of one method with each generation of another.

    Args:
        rows, first, second, value, paired: as in `compare_methods`.

    Returns:
        A list of dicts as of `compare_methods`, for all pairs of generations, in the order of the
        first's generations and then the second's. `p_holm` is adjusted for the whole list.

    Raises:
        ValueError, ImportError: as `compare_methods`.

    Example:

    ```python
    matrix = kdtoolkit.evaluation.compare_matrix(rows, "self", "born-again")
    [line for line in matrix if line["first_generation"] == 2 and line["p_holm"] < 0.05]
    ```
    """
    results = _two_methods(rows, first, second, value)
    pairs = itertools.product(sorted(results[first]), sorted(results[second]))
    return _compared(results, list(pairs), paired)


def _read(row, key):
    try:
        return row[key] if isinstance(row, Mapping) else getattr(row, key)
    except (KeyError, AttributeError):
        raise ValueError(f"Every row must have `{key}`. Received: {row!r}") from None


def _number(row, key):
    value = _read(row, key)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"`{key}` must be a finite number in every row. Received: {row!r}. Leave out trials "
            "that failed"
        )
    return number


def _in_order(trials):
    """The values of `{trial: value}` by trial, so that pairs meet whatever the order of rows."""
    return [trials[trial] for trial in sorted(trials)]


def _by_trial(rows, value):
    """`{method: {generation: {trial: value}}}`"""
    found = {}
    for row in rows:
        method, generation, trial = (_read(row, key) for key in ("method", "generation", "trial"))
        trials = found.setdefault(method, {}).setdefault(generation, {})
        if trial in trials:
            raise ValueError(
                "A method must have one row per trial and generation. Received twice: "
                f"method={method!r}, trial={trial!r}, generation={generation!r}"
            )
        trials[trial] = _number(row, value)
    if not found:
        raise ValueError("There must be rows. Received: none")
    return found


def _two_methods(rows, first, second, value):
    """What `_by_trial` returns, of two methods alone."""
    if first == second:
        raise ValueError(f"Compare two different methods. Received: {first!r} twice")
    groups = _by_trial(rows, value)
    for method in (first, second):
        if method not in groups:
            raise ValueError(f"No row is of the method {method!r}. The rows have: {list(groups)}")
    return {method: groups[method] for method in (first, second)}


def _compared(results, pairs, paired):
    (first, firsts), (second, seconds) = results.items()
    comparisons = []
    for i, j in pairs:
        a, b = firsts[i], seconds[j]
        if paired and a.keys() != b.keys():
            raise ValueError(
                f"Generation {i} of {first!r} and generation {j} of {second!r} must have the same "
                f"trials. Received: {sorted(a)} and {sorted(b)}. Leave out the trials that only "
                "one of them has, or use `paired=False`"
            )
        comparisons.append(compare(_in_order(a), _in_order(b), paired=paired))
    adjusted = holm([comparison.p for comparison in comparisons])
    return [
        {
            "first": first,
            "first_generation": i,
            "second": second,
            "second_generation": j,
            **asdict(comparison),
            "p_holm": float(p),
        }
        for (i, j), comparison, p in zip(pairs, comparisons, adjusted, strict=True)
    ]


def _check_fractions(groups):
    for value in ("test_accuracy", "val_accuracy"):
        for method, generations in groups[value].items():
            for generation, accuracies in generations.items():
                if accuracies.min() < 0 or accuracies.max() > 1:
                    raise ValueError(
                        f"`{value}` must be fractions from 0 to 1, not percent. Received: "
                        f"{accuracies.tolist()} in generation {generation} of {method!r}"
                    )
