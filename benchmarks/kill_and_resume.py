"""Kills training runs at random moments and compares what they end with, to the bit.

    export KERAS_BACKEND=tensorflow  # and again with jax
    python benchmarks/kill_and_resume.py --kills 50 --out benchmarks/results

Each run of `interrupted_runs.py` is first left alone. Then it is started again and again in a
folder of its own, and killed (SIGKILL) at a random moment after its first batch began, until one
attempt ends by itself; its result must equal that of the run left alone. New runs begin until there
were enough kills. A checkpoint is written after every batch. Every second kill waits from its
random moment for the next time that a checkpoint is half written.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import keras

from kdtoolkit import evaluation

HERE = pathlib.Path(__file__).parent
KINDS = ["offline", "mutual", "self_distilled", "born_again"]
RESULT = "result.json"


def start(kind, folder):
    """A process that has begun its first batch, or has ended."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    command = [sys.executable, str(HERE / "interrupted_runs.py"), kind, str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    return process


def left_alone(kind, folder):
    """What an uninterrupted run ends with, and the seconds from its first batch to its end."""
    process = start(kind, folder)
    began = time.perf_counter()
    failed = process.wait()
    process.stdout.close()
    if failed:
        raise RuntimeError(f"The run '{kind}' failed by itself")
    return result_of(folder), time.perf_counter() - began


def result_of(folder):
    return json.loads((folder / RESULT).read_text())


def killed(kind, folder, seconds, in_a_save=False):
    """Let a run train so long; returns whether that killed it, and the seconds that it trained."""
    process, began = start(kind, folder), time.perf_counter()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        while in_a_save and process.poll() is None and not half_written(folder):
            pass
    if process.poll() is None:
        process.kill()
    code = process.wait()
    process.stdout.close()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"The run '{kind}' could not go on in {folder}")
    return code != 0, time.perf_counter() - began


def half_written(folder):
    """Whether a process died while it wrote a checkpoint."""
    # A folder may go while this looks at it.
    with contextlib.suppress(OSError):
        return any(folder.rglob(".epoch-*.npz"))
    return False


def torture(kind, kills, seed, folder):
    """Kill runs of one kind; returns a row of the table."""
    expected, alone = left_alone(kind, folder / "alone")
    moments, longest = random.Random(seed), alone
    row = {"kind": kind, "kills": 0, "while_saving": 0, "runs": 0, "bit_equal": 0}
    while row["kills"] < kills:
        place, before, ended = folder / f"run-{row['runs']}", row["kills"], False
        while not ended:
            # The last run is left alone once there were enough kills.
            moment = moments.uniform(0.0, longest) if row["kills"] < kills else None
            was_killed, seconds = killed(kind, place, moment, in_a_save=row["kills"] % 2 == 1)
            row["kills"] += was_killed
            row["while_saving"] += was_killed and half_written(place)
            ended = not was_killed
        if row["kills"] == before:
            # The machine was slower for the run that was left alone: these moments are too late.
            longest = min(longest, seconds)
        row["runs"] += 1
        row["bit_equal"] += result_of(place) == expected
        print(row, flush=True)
    return {"backend": keras.backend.backend(), **row, "seconds_alone": round(alone, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--kills", type=int, default=50, help="in all, shared out to the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="folder for the table")
    args = parser.parse_args()
    table = []
    for index, kind in enumerate(args.kinds):
        share = args.kills // len(args.kinds) + (index < args.kills % len(args.kinds))
        with tempfile.TemporaryDirectory() as folder:
            table.append(torture(kind, share, args.seed + index, pathlib.Path(folder)))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"kill_and_resume_{keras.backend.backend()}.csv"
        evaluation.write_csv(table, args.out / name, overwrite=True)
    failed = [row["kind"] for row in table if row["bit_equal"] != row["runs"]]
    sys.exit(f"Not bit-equal: {failed}" if failed else 0)


if __name__ == "__main__":
    main()
