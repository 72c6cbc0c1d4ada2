"""One training in several processes of JAX: `keras.distribution`.

Two processes on one machine; between machines, the address is that of process 0.

    cd examples/distributed
    export KERAS_BACKEND=jax KERAS_DISTRIBUTION_NUM_PROCESSES=2
    export KERAS_DISTRIBUTION_JOB_ADDRESSES=localhost:23453
    KERAS_DISTRIBUTION_PROCESS_ID=1 python multi_process_jax.py &
    KERAS_DISTRIBUTION_PROCESS_ID=0 python multi_process_jax.py

Trusted networks only: JAX's coordinator asks nobody who they are, and listens on all interfaces;
see `docs/distributed.md`.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras  # noqa: E402

# Before any model is made or loaded.
keras.distribution.initialize()
# Each process feeds its own part of each batch, see `shard` below.
SPREAD = keras.distribution.DataParallel(auto_shard_dataset=False)
keras.distribution.set_distribution(SPREAD)

import jax  # noqa: E402
from common import distil  # noqa: E402

if __name__ == "__main__":
    distil(SPREAD.scope, shard=(jax.process_index(), jax.process_count()))
