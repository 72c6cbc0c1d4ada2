"""What a file costs: bytes, time, memory; and on which machine that was measured."""

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import keras

from kdtoolkit import export
from kdtoolkit.comparison.candidates import named
from kdtoolkit.comparison.counting import multiplications, stored_weights
from kdtoolkit.export.graph import parameters_of
from kdtoolkit.export.run import over_rounds

ROUNDS = 5
_PACKAGES = ("kdtoolkit", "keras", "tensorflow", "ai-edge-litert", "numpy")
_SECONDS = 300
_SIZES = ("parameters", "macs", "bytes", "gzip_bytes", "sparsity", "full_integer", "batch_size")
_TIMES = ("latency_ms", "latency_min_ms", "latency_p95_ms")


def sizes(candidate, path):
    """What can be read from the file without running it.

    Args:
        candidate: The `Candidate`.
        path: The file measured, or `None`.

    Returns:
        A dict: `parameters` (those of the Keras model, or the weights in a file given), `macs`,
        `bytes`, `gzip_bytes`, `sparsity`, `full_integer` and `batch_size`.
    """
    parameters = None if candidate.model is None else parameters_of(candidate.model)
    if path is None:
        return dict.fromkeys(_SIZES) | {"parameters": parameters}
    with named(candidate.name):
        summary = export.inspect(path)
        return {
            "parameters": stored_weights(path) if parameters is None else parameters,
            "macs": multiplications(path),
            "bytes": summary.bytes,
            "gzip_bytes": summary.gzip_bytes,
            "sparsity": summary.sparsity,
            "full_integer": summary.full_integer,
            "batch_size": next(iter(summary.inputs[0].shape), 1),
        }


def times(files, threads, runs):
    """Time files in turns, so that a slow moment of the machine doesn't fall on one of them.

    Args:
        files: Dict from name to path.
        threads: Numbers of threads.
        runs: Timed invocations of each file in each of the 5 rounds.

    Returns:
        A dict from name to a dict: `latency_ms`, the median over the rounds of their medians,
        `latency_min_ms`, the fastest run of all, `latency_p95_ms`, the median over the rounds
        of their 95th percentiles; and the same for 2 threads as `latency_2_threads_ms`, ...
    """
    found = {(name, count): [] for count in threads for name in files}
    for _ in range(ROUNDS):
        for name, count in found:
            with named(name, "its file could not be timed"):
                one = export.latency(files[name], num_threads=count, runs=runs)
            found[name, count].append(one)
    rows = {name: {} for name in files}
    for (name, count), rounds in found.items():
        rows[name] |= dict(zip(time_keys(count), over_rounds(rounds), strict=True))
    return rows


def time_keys(threads):
    """Names of the three times for a number of threads.

    Example:
        >>> time_keys(1)
        ('latency_ms', 'latency_min_ms', 'latency_p95_ms')
        >>> time_keys(2)[0]
        'latency_2_threads_ms'
    """
    middle = "" if threads == 1 else f"_{threads}_threads"
    return tuple(key.replace("latency", f"latency{middle}") for key in _TIMES)


def memory(name, path):
    """Measure the memory that the interpreter takes for a file, in a fresh process.

    Args:
        name: Name of the candidate.
        path: The file.

    Returns:
        Growth of the peak resident set from before the file is opened until it ran, in bytes.
        `None` where the system has no `/proc`.

    Raises:
        ValueError: If the process fails.
    """
    if not Path("/proc/self/status").exists():
        return None
    # -P: the folder of the script must not hide modules of the same names.
    command = [sys.executable, "-P", str(Path(__file__).with_name("resident.py")), str(path)]
    with named(name, "its memory could not be measured"):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"no answer in {_SECONDS} s. Pass latency=False.") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"the process ended with {done.returncode}: {last}")
    return int(done.stdout.split()[-1])


def machine():
    """On what all was measured.

    Returns:
        A dict: `processor`, `cores`, `system`, `python`, `backend`, `versions` by package, and
        `date` with the time zone.
    """
    return {
        "processor": _processor(),
        "cores": _cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "backend": keras.backend.backend(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _cores():
    """Those that this process may use, which can be fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # A copy of the sources that was never installed.
        from kdtoolkit.version import __version__

        return __version__ if name == "kdtoolkit" else None
