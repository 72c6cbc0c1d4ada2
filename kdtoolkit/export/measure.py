"""Export several networks and measure the files side by side."""

import os
import re
import tempfile
from pathlib import Path

import numpy as np

from kdtoolkit.export.examples import collect
from kdtoolkit.export.graph import describe
from kdtoolkit.export.pipeline import litert
from kdtoolkit.export.prepare import check_model
from kdtoolkit.export.run import LiteRTModel, check_threads, latency, over_rounds
from kdtoolkit.export.verify import reference

_ROUNDS = 5


def measure(networks, directory, x, y, *, overwrite=False, num_threads=1, runs=50, **options):
    """Export classifiers to `.tflite` files and measure each file on the same test data.

    What counts on a device is the file: its size, its accuracy, its time. Of an anytime network,
    whose exits are networks of their own, this gives accuracy against latency exit by exit.

    The files are timed in turns, in 5 rounds, so that a slow moment of the machine doesn't fall
    on one of them. The numbers hold for this machine; differences between files tell more than
    each number alone. All files are written, or none.

    Args:
        networks: Dict `{name: keras.Model}`, of classifiers with one output, logits `(batch,
            classes)`. Each becomes `<directory>/<name>.tflite`.
        directory: Where to write. It must exist.
        x: Test inputs, array `(examples, ...)`.
        y: Their class numbers, integers `(examples,)` from 0.
        overwrite: If `True`, replace existing files. Defaults to `False`.
        num_threads: Threads of the interpreter. Defaults to 1.
        runs: Timed invocations of each file in each round, at least 1. Defaults to 50.
        **options: Passed to `litert` for every network, such as `quantize` and
            `representative_data`.

    Returns:
        A list of dicts, one per network in their order, that `kd.evaluation.write_csv` and
        `plot_tradeoff` take:

            model               the name
            path                the file
            parameters          weights of the Keras model
            bytes, gzip_bytes   size of the file, and after gzip
            test_accuracy       of the file, 0 to 1
            latency_ms          median over the rounds of their median time per invocation
            latency_min_ms      fastest invocation of all
            latency_p95_ms      median over the rounds of their 95th percentile
            num_threads         as given

        An invocation covers `batch_size` examples, which is 1 unless `options` say otherwise.

    Raises:
        FileExistsError: If there is one of the files and `overwrite` is `False`.
        FileNotFoundError: If the directory does not exist.
        TypeError: If a network is no Keras model.
        ValueError: If an argument is out of range, a name is no file name, a network has other
            outputs, or does not fit `x` and `y`.
        ExportMismatchError, ImportError: As `litert`.

    Example:

    ```python
    exits = {key: kd.models.single_output(student, key) for key in student.output}
    rows = kd.export.measure(exits, "out", data.x_test, data.y_test)
    kd.evaluation.plot_tradeoff(rows, "out/exits.png")
    ```
    """
    check_threads(num_threads)
    if runs < 1:
        raise ValueError(f"`runs` must be at least 1. Received: {runs=}.")
    paths = _check_paths(networks, directory, overwrite)
    x, y = _check_data(x, y)
    for name, network in networks.items():
        _check_network(name, network, x, y)
    with tempfile.TemporaryDirectory(prefix=".measure-", dir=directory) as folder:
        drafts = {name: Path(folder, path.name) for name, path in paths.items()}
        options["num_threads"] = num_threads
        reports = {name: _export(name, networks[name], drafts[name], options) for name in drafts}
        times = _in_turns(drafts, num_threads, runs)
        rows = [
            _row(name, paths[name], reports[name])
            | {"test_accuracy": _accuracy(draft, x, y, num_threads)}
            | times[name]
            | {"num_threads": num_threads}
            for name, draft in drafts.items()
        ]
        for name, draft in drafts.items():
            os.replace(draft, paths[name])
    return rows


def _export(name, network, path, options):
    try:
        return litert(network, path, **options)
    except Exception as error:
        error.add_note(f"This was the export of network '{name}'.")
        raise


def _row(name, path, report):
    return {
        "model": name,
        "path": str(path),
        "parameters": report.parameters,
        "bytes": report.bytes,
        "gzip_bytes": report.gzip_bytes,
    }


def _accuracy(path, x, y, num_threads):
    logits = LiteRTModel(path, num_threads).predict(x)
    return float(np.mean(logits.argmax(axis=-1) == y))


def _in_turns(paths, num_threads, runs):
    """Times of each file, in milliseconds."""
    found = {name: [] for name in paths}
    for _ in range(_ROUNDS):
        for name, path in paths.items():
            found[name].append(latency(path, num_threads=num_threads, runs=runs))
    keys = ("latency_ms", "latency_min_ms", "latency_p95_ms")
    return {
        name: dict(zip(keys, over_rounds(rounds), strict=True)) for name, rounds in found.items()
    }


def _check_paths(networks, directory, overwrite):
    """Return `{name: path of its file}`."""
    if not networks:
        raise ValueError(
            "`networks` must be a dict of one or more networks by name. Received: none."
        )
    for name in networks:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w .,+=-]*", name):
            raise ValueError(
                "The names of `networks` become names of files: letters, digits, spaces and any "
                f"of _.,+=- behind the first letter. Received: {name!r}."
            )
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"The directory '{directory}' does not exist. Create it first.")
    paths = {name: directory / f"{name}.tflite" for name in networks}
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{existing} exist already. Pass overwrite=True to replace them, or another directory."
        )
    return paths


def _check_data(x, y):
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu" or x.shape[:1] != y.shape or not y.size:
        raise ValueError(
            "`y` must be the class number of each example of `x`, integers (examples,). "
            f"Received: x of shape {x.shape}, y of shape {y.shape} and dtype {y.dtype}. "
            "Class numbers of one-hot labels: y.argmax(axis=-1)."
        )
    return x, y


def _check_network(name, network, x, y):
    """Refuse what is no classifier of these examples, by asking it about one."""
    check_model(network)
    graph = describe(network)
    one = collect(x[:1], graph.inputs, "x", limit=1, by_name=graph.by_name)
    shapes = {key: array.shape for key, array in reference(graph, one).items()}
    (_, *classes), *others = shapes.values()
    if others or len(classes) != 1:
        raise ValueError(
            f"Network '{name}' must have one output, logits (examples, classes). Received: "
            f"{shapes} for one example. `kd.models.single_output` takes one of several outputs."
        )
    if y.min() < 0 or y.max() >= classes[0]:
        raise ValueError(
            f"`y` must be from 0 to {classes[0] - 1}, the classes of network '{name}'. "
            f"Received: {y.min()} to {y.max()}."
        )
