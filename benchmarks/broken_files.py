"""Files with one bit flipped, and files that end too early: what their readers say.

    python benchmarks/broken_files.py --out benchmarks/results/broken_files.csv

One row per kind of file: how many bits were flipped and how many files cut at a random length; how
many were refused with an error that names the file (`refused`), read as if nothing had happened
since the place doesn't matter (`harmless`), read with other numbers although nothing in the file
could have told (`other`, of `.tflite` files alone), and everything else (`failures`): another
error, wrong numbers, a crash, a hang, a file that was changed. `tests/broken.py` judges.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kdtoolkit import evaluation  # noqa: E402
from tests import broken  # noqa: E402

LITERT = {"float32": None, "int8": "int8", "dynamic": "dynamic"}


def row(kind, count, counts, failures, seconds):
    for failure in failures:
        print(f"{kind}: {failure}", file=sys.stderr)
    outcomes = {name: counts[name] for name in broken.OUTCOMES}
    return {
        "kind": kind, "flips": count, "cuts": count // 5, **outcomes, "seconds": round(seconds, 1)
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="flips of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/results/broken_files.csv")
    options = parser.parse_args()
    rows = []
    for name, kind in broken.KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            found = broken.run(kind, folder, options.count, options.seed)
            rows.append(row(name, options.count, *found, time.perf_counter() - start))
            print(rows[-1], flush=True)
    for name, quantize in LITERT.items():
        with tempfile.TemporaryDirectory() as folder:
            path = broken.exported(folder, quantize)
            start = time.perf_counter()
            found = broken.run_litert(path, options.count, options.seed)
            kind = f"LiteRT file, {name}"
            rows.append(row(kind, options.count, *found, time.perf_counter() - start))
            print(rows[-1], flush=True)
    evaluation.write_csv(rows, options.out, overwrite=True)


if __name__ == "__main__":
    main()
