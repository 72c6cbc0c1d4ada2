"""What all tests share: a clean Keras before each, and two virtual processors."""

import os
import tempfile

import pytest


def pytest_collection_modifyitems(items):
    """Tests that need TensorFlow don't run on another backend, whatever else they are marked as."""
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        for item in items:
            if item.get_closest_marker("tensorflow"):
                item.add_marker(pytest.mark.skip(reason="needs the TensorFlow backend"))


@pytest.fixture(autouse=True)
def clean_keras():
    """Names and policies of one test don't reach the next."""
    import keras

    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def pytest_configure(config):
    """Split the processor in two before TensorFlow starts, for the tests of replicas.

    Where xdist runs, its workers wait for the process that hands them tests: Keras stays out there.
    """
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    # Rich measures the terminal once, when it first prints: tables must fit whoever is first.
    os.environ["COLUMNS"] = "160"
    # Read when JAX starts; what is on no device in particular stays on the first.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=2".strip()
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        half = tf.config.LogicalDeviceConfiguration()
        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(processor, [half, half])
    elif keras.backend.backend() == "jax":
        _remember_what_was_compiled(config)


def _remember_what_was_compiled(config):
    """Keep compiled steps on disk while the tests run: two equal models then compile once.

    Each process has a folder of its own, since JAX doesn't guard one against two writers.
    """
    import jax

    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def two_replicas():
    """A MirroredStrategy over two virtual processors; one per process, as TensorFlow demands."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
