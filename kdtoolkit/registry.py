"""Registration of public classes with Keras's serialisation, in one place."""

import keras

PACKAGE = "kdtoolkit"

#: Every registered public class, by name. The generic tests are generated from it.
PUBLIC_CLASSES = {}


def public(cls):
    """Register `cls` so that Keras saves and loads it as `kdtoolkit>ClassName`."""
    PUBLIC_CLASSES[cls.__name__] = cls
    return keras.saving.register_keras_serializable(package=PACKAGE)(cls)
