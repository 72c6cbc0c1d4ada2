"""Thousands of calls with hostile input over the whole API: right answers, our errors, failures.

    python benchmarks/hostile_input.py --cases 10000 --out benchmarks/results/hostile_input.csv

One row per area. What counts as right, and as an error of ours, is said and judged in
`tests/hostile.py`. Failures are printed, and the exit code is then 1.
"""

import argparse
import collections
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import hypothesis  # noqa: E402

from kdtoolkit import evaluation  # noqa: E402
from tests import hostile, hostile_arguments  # noqa: E402

AREAS = {**hostile.NUMBERS, **hostile_arguments.AREAS}
#: How many of 100 cases each area gets: numbers are cheap, distillers aren't.
SHARES = {
    "functional": 30, "response losses": 15, "feature losses": 8, "loss arguments": 10,
    "distillers": 2, "sources, gates, callbacks": 8, "data": 6, "models": 5, "compress": 3,
    "export, generations, compare": 4, "evaluation": 9,
}  # fmt: skip


def run(area, count, seed):
    """Judge `count` calls; returns a row."""
    counts, start = collections.Counter(), time.perf_counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(AREAS[area])
    def judged(call):
        outcome, why = hostile.judge(call)
        counts[outcome] += 1
        if outcome == "failure":
            print(f"{area}, {call.name}: {why}\n    {call.given!r:.500}", file=sys.stderr)

    judged()
    return {
        "area": area,
        "cases": sum(counts.values()),
        "right_answers": counts["right"],
        "our_errors": counts["ours"],
        "failures": counts["failure"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/results/hostile_input.csv")
    options = parser.parse_args()
    rows = []
    for area, share in SHARES.items():
        rows.append(run(area, -(-options.cases * share // 100), options.seed))
        print(rows[-1], flush=True)
    evaluation.write_csv(rows, options.out, overwrite=True)
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
