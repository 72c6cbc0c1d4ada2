"""One training in several workers of a Ray cluster, with Ray's `TensorflowTrainer`.

    pip install "ray[train]"  # run with Ray 2.60
    cd examples/distributed && python ray_launcher.py --workers 2

Ray starts the processes and sets TF_CONFIG; the rest is `multi_worker_tensorflow.py`. On CPUs don't
take Ray's `JaxTrainer` without a check: it may return before the processes know of each other, and
each then trains alone without an error. kdtoolkit refuses to train on several JAX processes without
a distribution, but can't tell one process from a lost one: compare `jax.process_count()` with the
number of workers.
"""

import argparse
import os
import pathlib

HERE = pathlib.Path(__file__).parent


def train():
    """What each worker runs."""
    import sys

    # Ray asks TensorFlow for the older Keras; kdtoolkit is for Keras 3.
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.path.insert(0, str(HERE))
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    from common import distil

    distil(strategy.scope, out=HERE / "out" / "distributed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    try:
        from ray.train import ScalingConfig
        from ray.train.tensorflow import TensorflowTrainer
    except ImportError as error:
        raise SystemExit(
            "This example needs Ray, which kdtoolkit doesn't install. Expected: "
            f'pip install "ray[train]". Received: {error}'
        ) from None
    scaling = ScalingConfig(num_workers=args.workers, use_gpu=False)
    TensorflowTrainer(train, scaling_config=scaling).fit()


if __name__ == "__main__":
    main()
