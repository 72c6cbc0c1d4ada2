"""Files with a flipped bit or without their end, and the judgement of what reads them.

A reader passes if it raises a `ValueError` that names the file, or returns what it returns for the
whole file; and if the file is afterwards as it was. A `.tflite` file has no checksum: a weight that
became another weight is counted as `other`, and never as an error of the reader. LiteRT runs in a
process of its own, which may end or hang.
"""

import collections
import contextlib
import dataclasses
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

import keras
import numpy as np

import kdtoolkit as kd
from kdtoolkit.cli.data import load
from kdtoolkit.comparison.candidates import load_model
from kdtoolkit.generations.records import GenerationFolder, GenerationRecord, check_settings
from tests.support import FEATURES, arrays, conv, dense

OUTCOMES = ("refused", "harmless", "other", "failures")
# Seconds without a word of the child; importing takes some of them.
PATIENCE = 60


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Args:
        make: `make(folder) -> path` writes a whole file.
        read: `read(path) -> value`, which NumPy and `==` can compare leaf by leaf.
    """

    make: Callable
    read: Callable


def damage(content, count, seed):
    """Yields `(name, bytes)`: `count` files with one bit flipped, and a fifth as many cut."""
    random = np.random.default_rng(seed)
    for place, bit in zip(
        random.integers(len(content), size=count), random.integers(8, size=count), strict=True
    ):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(bit)
        yield f"flip {place}.{bit}", bytes(flipped)
    for size in random.integers(len(content), size=count // 5):
        yield f"cut {size}", content[:size]


def same(first, second):
    first, second = keras.tree.flatten(first), keras.tree.flatten(second)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def judge(kind, path, whole, content):
    """One outcome of `OUTCOMES`, and what is to be said of a failure."""
    path.write_bytes(content)
    try:
        found = kind.read(path)
    except ValueError as error:
        named = path.name in str(error) and len(str(error)) > 60
        outcome = ("refused", "") if named else ("failures", repr(error))
    except Exception as error:
        outcome = "failures", repr(error)
    else:
        outcome = ("harmless", "") if same(found, whole) else ("failures", "other values")
    if path.read_bytes() != content:
        return "failures", "the file was changed"
    return outcome


def run(kind, folder, count, seed=0):
    """Damage one file `count` times; returns a `Counter` of outcomes, and the failures in words."""
    path = kind.make(pathlib.Path(folder))
    content, whole = path.read_bytes(), kind.read(path)
    counts, failures = collections.Counter(), []
    for name, broken in damage(content, count, seed):
        outcome, why = judge(kind, path, whole, broken)
        counts[outcome] += 1
        failures += [f"{name}: {why}"] * (outcome == "failures")
    path.write_bytes(content)
    return counts, failures


# What is read -----------------------------------------------------------------------------------

RECORD = GenerationRecord(
    "born_again", 3, 1, 0.8125, 0.75, 0.5, None, 12, None, 480, 7680, 0, 12.5, 20.25,
    "generation-1/network.keras",
)  # fmt: skip
SETTINGS = {"method": "born_again", "seed": 3, "recipe": {"epochs": 12, "rate": 0.1}, "data": [7]}


def a_run(folder):
    """A finished generation, without the training."""
    directory = folder / "run"
    check_settings(directory, SETTINGS)
    generation = GenerationFolder(directory, 1)
    generation.path.mkdir(exist_ok=True)
    generation.finish(dense(4), RECORD)
    return directory


def a_cache(folder):
    x = np.random.default_rng(0).normal(size=(12, FEATURES)).astype("float32")
    kd.cache_teacher(dense(8, 1), x, folder / "cache", verbose=0)
    return folder / "cache" / "00000.kdcache"


def cached(path):
    teacher = kd.CachedTeacher(path.parent)
    return teacher.table.read(np.arange(teacher.examples)), repr(teacher.about)


def network(path):
    return arrays(kd.load_network(path.parents[1], 1))


def model(path):
    found = load_model(path)
    return repr(found.get_config()), arrays(found)


def saved(folder):
    conv().save(folder / "model.keras")
    return folder / "model.keras"


def examples(folder):
    np.savez(folder / "data.npz", x=np.ones((5, 3)), y=np.arange(5))
    return folder / "data.npz"


KINDS = {
    "teacher's cache": Kind(a_cache, cached),
    "record of a generation": Kind(
        lambda folder: a_run(folder) / "generation-1" / "record.json",
        lambda path: [dataclasses.astuple(r) for r in kd.load_generations(path.parents[1])],
    ),
    "settings of a run": Kind(
        lambda folder: a_run(folder) / "settings.json",
        lambda path: check_settings(path.parent, SETTINGS),
    ),
    "network of a generation": Kind(
        lambda folder: a_run(folder) / "generation-1" / "network.keras", network
    ),
    "Keras model": Kind(saved, model),
    "data of the command line": Kind(examples, load),
}


# LiteRT -----------------------------------------------------------------------------------------


def exported(folder, quantize=None):
    """A `.tflite` file, and examples for it."""
    x = np.random.default_rng(0).normal(size=(20, 8, 8, 1)).astype("float32")
    path = pathlib.Path(folder, "model.tflite")
    data = x if quantize == "int8" else None
    kd.export.litert(conv(), path, quantize=quantize, representative_data=data)
    return path


def predicted(path):
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype("float32")
    summary = kd.export.inspect(path)
    found = kd.export.LiteRTModel(path).predict(x)
    return summary.tensor_counts, found, kd.export.latency(path, warmup=0, runs=1).runs


LITERT = Kind(exported, predicted)


def child(path, count, seed, first):
    """Says one line before and one after each damaged file, from number `first` on."""
    path = pathlib.Path(path)
    whole, content = predicted(path), path.read_bytes()
    broken = path.with_name("broken.tflite")
    for number, (name, damaged) in enumerate(damage(content, count, seed)):
        if number >= first:
            print("begin", number, name, flush=True)
            outcome, why = judge(LITERT, broken, whole, damaged)
            # A weight that is another weight: nothing in the file tells.
            outcome = "other" if why == "other values" else outcome
            print("end", number, outcome, why, flush=True)


def run_litert(path, count, seed=0):
    """`run` for a `.tflite` file: a child that ends or falls silent counts as a failure."""
    counts, failures, number, total = collections.Counter(), [], 0, count + count // 5
    while number < total:
        code = f"from tests import broken; broken.child({str(path)!r}, {count}, {seed}, {number})"
        doing = "starting"
        for line in _lines([sys.executable, "-c", code]):
            word, told, rest = line.split(" ", 2)
            number = int(told) + (word == "end")
            doing = rest.strip() if word == "begin" else ""
            if word == "end":
                outcome, why = (rest.strip() + " ").split(" ", 1)
                counts[outcome] += 1
                failures += [f"{number}: {why}"] * (outcome == "failures")
        if doing:
            counts["failures"] += 1
            failures.append(f"{doing}: the process ended or hung")
            if doing == "starting":
                break
            number += 1
    return counts, failures


def _lines(command):
    """The lines that a child says on stdout, until it ends or is silent for too long."""
    root = pathlib.Path(__file__).parents[1]
    with tempfile.TemporaryFile("w") as sink:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=sink, text=True, cwd=root
        )
        said = queue.Queue()

        def listen():
            for line in process.stdout:
                said.put(line)
            said.put(None)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        with contextlib.suppress(queue.Empty):
            while (line := said.get(timeout=PATIENCE)) is not None:
                yield line
        process.kill()
        process.wait()
        listener.join()
        process.stdout.close()
