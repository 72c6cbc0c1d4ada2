"""One training in several processes of TensorFlow: MultiWorkerMirroredStrategy and TF_CONFIG.

Two processes on one machine; between machines, `localhost` becomes the name of each.

    cd examples/distributed
    export KERAS_BACKEND=tensorflow
    CLUSTER='"cluster": {"worker": ["localhost:23451", "localhost:23452"]}'
    TF_CONFIG="{$CLUSTER, \"task\": {\"type\": \"worker\", \"index\": 1}}" \
        python multi_worker_tensorflow.py &
    TF_CONFIG="{$CLUSTER, \"task\": {\"type\": \"worker\", \"index\": 0}}" \
        python multi_worker_tensorflow.py

Trusted networks only: TensorFlow's server asks nobody who they are, and listens on all interfaces
whatever the addresses say; see `docs/distributed.md`.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402

# Before anything else of TensorFlow runs.
STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()

from common import distil  # noqa: E402

if __name__ == "__main__":
    distil(STRATEGY.scope)
