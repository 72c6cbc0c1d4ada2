"""Compare networks and files on the same examples."""

import tempfile
from collections.abc import Iterable

import keras
import numpy as np

from kdtoolkit.comparison.candidates import named, open_candidate
from kdtoolkit.comparison.costs import ROUNDS, machine, memory, sizes, time_keys, times
from kdtoolkit.comparison.examples import examples_of
from kdtoolkit.comparison.resident import RUNS
from kdtoolkit.comparison.scores import BINS, differences, log_probabilities, quality
from kdtoolkit.comparison.table import ComparisonTable

THREADS = (1, 2)
_TEACHER = "teacher"


def compare(
    candidates,
    x,
    y=None,
    *,
    teacher=None,
    output=None,
    from_logits="auto",
    class_names=None,
    latency=True,
    runs=30,
):
    """Compare classifiers on the same examples: quality, size, time, memory.

    Keras models answer themselves. What they would cost on a device is measured on a float32
    `.tflite` file made for the table and deleted afterwards; under another backend than
    TensorFlow, which can make no such file, these numbers stay empty. Files are taken as they
    are. Each row says what was measured.

    Quality: accuracy with its 95 % interval (Wilson), `nll` (nats) and `ece` (15 bins), the share
    of examples with the same answer as the reference, and the change of accuracy for each class.
    The reference is the teacher, or else the first candidate.

    Cost: weights, multiply-accumulate operations, bytes, bytes after gzip, share of weights that
    are 0. Latency of one invocation, with 1 and 2 threads, in 5 rounds that go through all
    candidates in turns; memory as the growth of the peak resident set of a fresh process that
    opens and runs the file, the interpreter's own code included.

    Args:
        candidates: Dict from name to `keras.Model` (or one of tf_keras), path of a `.tflite` file,
            or path of a `.keras` file. All return logits or probabilities `(examples, classes)`
            over the same classes.
        x: Examples: one array, a dict or list of arrays that matches the inputs, or an iterable
            of batches such as a `tf.data.Dataset`, with or without labels.
        y: Class numbers `(examples,)` or one-hot labels `(examples, classes)`. Without labels
            only agreement and costs are measured.
        teacher: What the candidates are compared with: one of their names, or a further network
            in one of the three forms, which gets no row. Defaults to the first candidate.
        output: Name of the output to compare, of networks with several.
        from_logits: `True` (logits), `False` (probabilities) or `"auto"` (default): outputs
            without negative numbers whose rows sum to 1 within 0.1 are probabilities.
        class_names: List of str. Defaults to the class numbers.
        latency: If `False`, neither time nor memory is measured. Defaults to `True`.
        runs: Timed invocations of each file in each round, at least 1. Defaults to 30.

    Returns:
        A `ComparisonTable`.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If a candidate or `x` has an unknown form.
        ValueError: If there are no candidates, one doesn't take the examples, returns other classes
            than the others or something that isn't a number, cannot be converted or run, or an
            argument doesn't fit. The message names the candidate.
        ImportError: If LiteRT is not installed.

    Example:

    ```python
    table = kd.compare({"float": student, "int8": "student.tflite"}, x_test, y_test)
    print(table)
    table.write_html("comparison.html")
    ```
    """
    _check_arguments(candidates, from_logits, runs)
    opened = {name: open_candidate(name, value) for name, value in candidates.items()}
    x, y = examples_of(x, y)
    reference, against = _reference(opened, teacher)
    answers = {
        name: _answers(one, x, output, from_logits)
        for name, one in {**opened, reference: against}.items()
    }
    other = answers[reference][0]
    _check_classes({name: logs.shape[1] for name, (logs, _) in answers.items()}, y)
    class_names = _class_names(class_names, other.shape[1])
    costs = _costs(opened, x, runs if latency else None)
    rows = []
    for name, one in opened.items():
        logs, are_logits = answers[name]
        row = {"model": name, "source": one.source, "measured": _measured(one, costs[name])}
        row |= {"examples": len(logs), "from_logits": are_logits} | quality(logs, y)
        rows.append(row | differences(logs, other, y, class_names) | costs[name])
    counts = None if y is None else np.bincount(y, minlength=len(class_names)).tolist()
    setting = {"reference": against.source, "bins": BINS} | (_setting(runs) if latency else {})
    return ComparisonTable(rows, reference, class_names, counts, machine() | setting)


def _check_arguments(candidates, from_logits, runs):
    if not isinstance(candidates, dict) or not candidates:
        raise ValueError(
            "`candidates` must be a dict from name to a keras.Model or the path of a .tflite or "
            f".keras file, with 1 or more of them. Received: {candidates!r}."
        )
    wrong = [name for name in candidates if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise ValueError(f"The names of candidates must be text. Received: {wrong}.")
    if not any(from_logits is value for value in (True, False)) and from_logits != "auto":
        raise ValueError(f"`from_logits` must be True, False or 'auto'. Received: {from_logits!r}.")
    if not isinstance(runs, int) or runs < 1:
        raise ValueError(f"`runs` must be an integer of 1 or more. Received: {runs!r}.")


def _reference(opened, teacher):
    """Return the name of the reference and the reference."""
    if teacher is None:
        teacher = next(iter(opened))
    if isinstance(teacher, str) and teacher in opened:
        return teacher, opened[teacher]
    name = "teacher"
    while name in opened:
        name = f"the {name}"
    return name, open_candidate(name, teacher)


def _answers(one, x, output, from_logits):
    """Return log-probabilities, and whether the outputs were logits."""
    outputs = one.outputs(x, output)
    with named(one.name):
        return log_probabilities(outputs, from_logits)


def _check_classes(classes, y):
    if len(set(classes.values())) > 1:
        raise ValueError(
            f"All candidates must return the same classes. Received: {classes} classes. "
            "Compare only networks of one task."
        )
    count = next(iter(classes.values()))
    if y is not None and not 0 <= y.min() <= y.max() < count:
        raise ValueError(
            f"`y` must be class numbers from 0 to {count - 1}. Received: {y.min()} to {y.max()}."
        )


def _class_names(names, count):
    if names is not None and (isinstance(names, str) or not isinstance(names, Iterable)):
        raise TypeError(f"`class_names` must be a list of names. Received: class_names={names!r}")
    names = list(map(str, range(count) if names is None else names))
    if len(names) != count:
        raise ValueError(
            f"`class_names` must name each of the {count} classes. Received: {len(names)} names."
        )
    return names


def _costs(opened, x, runs):
    """Costs of each candidate by name. Without `runs` neither time nor memory is measured."""
    with tempfile.TemporaryDirectory(prefix="kdtoolkit-") as folder:
        files = {name: one.shipped(folder, x) for name, one in opened.items() if _has_file(one)}
        spent = times(files, THREADS, runs) if runs else {}
        missing = dict.fromkeys(key for count in THREADS for key in time_keys(count))
        return {
            name: sizes(one, files.get(name))
            | spent.get(name, missing)
            | {"memory_bytes": memory(name, files[name]) if name in spent else None}
            for name, one in opened.items()
        }


def _has_file(one):
    return one.path is not None or keras.backend.backend() == "tensorflow"


def _measured(one, costs):
    """On what the costs were measured."""
    if one.path is not None:
        return "the file"
    if costs["bytes"] is None:
        return f"no file: the backend {keras.backend.backend()} can make none"
    return f"a {one.precision} .tflite file made for this table, quality on the Keras model"


def _setting(runs):
    return {
        "rounds": ROUNDS,
        "runs_per_round": runs,
        "threads": list(THREADS),
        "memory": f"growth of the peak resident set of a fresh process over opening the file, "
        f"allocating and {RUNS} runs, 1 thread; the interpreter's own code is included",
    }
