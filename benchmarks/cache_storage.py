"""Size, speed and memory of a cache on the disk, of made-up outputs for as many images as ImageNet.

    python benchmarks/cache_storage.py --out benchmarks/results

For each row 11 float16 numbers, 10 uint16 and one uint32. They are written in batches that follow
one another, and read in batches of random rows: at first of a table that was just opened, which
checks each shard when it touches it, then of the same one. The files stay in the system's memory
between writing and reading, so that no time is that of a disk. Each size runs in a process of its
own, as the peak of memory is a process's. Mapped pages of files count in the peak, though the
system may take them back at any time; `anonymous_mb` is what is the process's own.
"""

import argparse
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

from kdtoolkit import evaluation  # noqa: E402
from kdtoolkit.cache.contents import Contents  # noqa: E402
from kdtoolkit.cache.draft import Draft, size_of  # noqa: E402
from kdtoolkit.cache.table import Table  # noqa: E402

#: What the time is measured with.
COLUMNS = Contents((1000,), {}, "float16", 10).columns
#: Arguments of `kd.cache_teacher`, of which the size is given.
CODINGS = {
    "dense, float32": {},
    "dense, float16": {"dtype": "float16"},
    "top 10, float32": {"top_k": 10},
    "top 10, float16": {"dtype": "float16", "top_k": 10},
    "top 100, float16": {"dtype": "float16", "top_k": 100},
}


def batch_of(rows):
    """Other numbers for each batch, the same in each run."""
    random = np.random.default_rng(int(rows[0]))
    return {
        "values": random.random((len(rows), 11), "float32").astype("float16"),
        "indices": random.integers(0, 1000, (len(rows), 10), "uint16"),
        "inputs_crc32": random.integers(0, 2**32, len(rows), "uint32"),
    }


def write(path, rows, args):
    """Seconds of writing and of finishing, without those of making the numbers."""
    draft, seconds = Draft(path, rows, COLUMNS, {}, shard_rows=args.shard_rows), 0.0
    for start in range(0, rows, args.write_batch):
        numbers = np.arange(start, min(start + args.write_batch, rows))
        batch = batch_of(numbers)
        before = time.perf_counter()
        draft.write(numbers, batch)
        seconds += time.perf_counter() - before
    before = time.perf_counter()
    draft.finish()
    return seconds, time.perf_counter() - before


def read(table, batches, args):
    """Seconds of reading random batches."""
    random, seconds = np.random.default_rng(0), 0.0
    for _ in range(batches):
        rows = random.integers(0, table.rows, args.read_batch)
        before = time.perf_counter()
        table.read(rows)
        seconds += time.perf_counter() - before
    return seconds


def peak_mb():
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def anonymous_mb():
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) // 1024 for x in lines if x.startswith("RssAnon")), None)


def measure(rows, args):
    """The row of one size."""
    anonymous, peak = anonymous_mb(), peak_mb()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = pathlib.Path(folder) / "cache"
        writing, finishing = write(path, rows, args)
        written = anonymous_mb()
        before = time.perf_counter()
        table = Table(path)
        opening = time.perf_counter() - before
        # As many batches as an epoch has.
        batches = -(-rows // args.read_batch)
        first = opening + read(table, batches, args)
        again = read(table, batches, args)
        shards = len(list(path.iterdir()))
    return {
        "rows": rows,
        "shards": shards,
        "bytes": table.size,
        "bytes_per_row": round(table.size / rows, 2),
        "written_rows_per_second": round(rows / (writing + finishing)),
        "finish_seconds": round(finishing, 3),
        "open_seconds": round(opening, 4),
        "first_epoch_rows_per_second": round(batches * args.read_batch / first),
        "read_rows_per_second": round(batches * args.read_batch / again),
        "read_ms_per_batch": round(again / batches * 1000, 3),
        "peak_mb_before": peak,
        "peak_mb": peak_mb(),
        "anonymous_mb_before": anonymous,
        "anonymous_mb_written": written,
        "anonymous_mb": anonymous_mb(),
    }


def sizes(rows):
    """Bytes of a row in each coding, of a table of so many."""
    for classes in (100, 1000):
        for name, coding in CODINGS.items():
            if coding.get("top_k", 0) < classes:
                columns = Contents((classes,), {}, **coding).columns
                total = size_of(rows, columns, {})
                yield {"classes": classes, "coding": name, "bytes_per_row": round(total / rows, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[128_117, 1_281_167])
    parser.add_argument("--write-batch", type=int, default=1024)
    parser.add_argument("--read-batch", type=int, default=256)
    parser.add_argument("--shard-rows", type=int, default=2**16)
    parser.add_argument("--folder", type=pathlib.Path, help="where the cache is written")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the two CSV files")
    args = parser.parse_args()
    results = []
    for rows in args.rows:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(measure, (rows, args)))
        print(results[-1], flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv(results, args.out / "cache_storage.csv", overwrite=True)
        table = list(sizes(max(args.rows)))
        evaluation.write_csv(table, args.out / "cache_sizes.csv", overwrite=True)


if __name__ == "__main__":
    main()
