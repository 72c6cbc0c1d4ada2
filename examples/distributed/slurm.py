"""One training over the tasks of a SLURM job, on TensorFlow or JAX: see `slurm.sh`.

TensorFlow has a resolver for SLURM, which as it comes asks `nvidia-smi` how many GPUs a node has,
and doesn't work without GPUs. So the addresses are put together here, from what SLURM says. Two
tasks on one machine without SLURM:

    cd examples/distributed
    export SLURM_NTASKS=2 SLURM_JOB_NODELIST=localhost SLURM_TASKS_PER_NODE=2
    SLURM_PROCID=1 python slurm.py & SLURM_PROCID=0 python slurm.py
"""

import itertools
import json
import os
import subprocess

PORT = int(os.environ.get("KDTOOLKIT_PORT", "23460"))


def hosts(nodes):
    """The names of `n[01-03]`, as SLURM expands them."""
    if "[" not in nodes:
        return nodes.split(",")
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def tasks_per_node(text):
    """`2(x3),1` as [2, 2, 2, 1]."""
    found = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found


def addresses(environment):
    """`host:port` of each task, in the order of their numbers."""
    nodes = hosts(environment["SLURM_JOB_NODELIST"])
    counts = tasks_per_node(environment["SLURM_TASKS_PER_NODE"])
    pairs = zip(nodes, counts, strict=True)
    return list(itertools.chain(*([f"{n}:{PORT + i}" for i in range(count)] for n, count in pairs)))


def main():
    rank = int(os.environ["SLURM_PROCID"])
    workers = addresses(os.environ)
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "jax":
        os.environ["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = workers[0]
        os.environ["KERAS_DISTRIBUTION_NUM_PROCESSES"] = str(len(workers))
        os.environ["KERAS_DISTRIBUTION_PROCESS_ID"] = str(rank)
        from multi_process_jax import SPREAD as spread
    else:
        task = {"type": "worker", "index": rank}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
        from multi_worker_tensorflow import STRATEGY as spread
    from common import distil

    on_jax = os.environ.get("KERAS_BACKEND") == "jax"
    distil(spread.scope, shard=(rank, len(workers)) if on_jax else (0, 1))


if __name__ == "__main__":
    main()
