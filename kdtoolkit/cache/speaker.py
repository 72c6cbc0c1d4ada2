"""A teacher as it speaks to be cached."""

import keras
import numpy as np

from kdtoolkit import checks
from kdtoolkit.cache.contents import Contents
from kdtoolkit.taps import Taps, output_spec, spec_of


class Speaker:
    """Runs a teacher, and gives NumPy arrays.

    Args:
        teacher, layers, preprocess: as given to `kd.cache_teacher`.
    """

    def __init__(self, teacher, layers, preprocess):
        if isinstance(layers, str):
            raise TypeError(f"`layers` must be a list of paths. Received: layers={layers!r}")
        self.name = teacher.name
        self._pass = _Pass(teacher, layers, preprocess)
        strategy = getattr(teacher, "distribute_strategy", None)
        self._replicas = 1 if strategy is None else strategy.num_replicas_in_sync

    def __call__(self, inputs):
        """The teacher's view of a batch, `{"output": ..., "taps": {path: array}}`."""
        if self._replicas > 1:
            # `predict` shares a batch out to the replicas.
            count = len(keras.tree.flatten(inputs)[0])
            said = self._pass.predict(inputs, batch_size=count, verbose=0)
        else:
            said = self._pass.predict_on_batch(inputs)
        return keras.tree.map_structure(np.asarray, said)

    def contents(self, inputs, dtype, top_k):
        """What is to be stored, from the shapes that the teacher returns.

        Raises:
            ValueError: several outputs of which none is named, one that ends in a softmax, or one
                whose size isn't fixed.
        """
        self._pass.prepare(inputs)
        view = output_spec(self._pass, spec_of(inputs))
        output, teacher = view["output"], self._pass.teacher
        one = isinstance(output, keras.KerasTensor)
        if not one and not view["taps"]:
            known = list(output) if isinstance(output, dict) else "its output layers"
            raise ValueError(
                f"'{self.name}' has several outputs. Expected `layers` with some of {known}. "
                "Received: layers=()"
            )
        # Losses that read logits can't tell later.
        several = output if isinstance(output, dict) else {}
        keys = [None] if one else [path for path in view["taps"] if path in several]
        for key in keys:
            checks.check_logits(self.name, teacher, key)
        shapes = {path: _shape(path, tensor) for path, tensor in view["taps"].items()}
        return Contents(_shape(self.name, output) if one else None, shapes, dtype, top_k)


class _Pass(keras.Model):
    """The teacher as it runs in a step: after its preprocessing, in inference mode."""

    def __init__(self, teacher, layers, preprocess):
        super().__init__(name=f"{teacher.name}_speaks", autocast=False)
        self.teacher = teacher
        if preprocess is not None and not callable(preprocess):
            raise TypeError(
                f"`preprocess` must be a layer, or None. Received: preprocess={preprocess!r}"
            )
        self.preprocess = preprocess
        self._taps = Taps(teacher, layers)
        self.built = True

    def prepare(self, inputs):
        """Lets the preprocessing make its variables outside of any graph."""
        if self.preprocess is not None:
            self.preprocess(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))

    def call(self, inputs):
        inputs = inputs if self.preprocess is None else self.preprocess(inputs)
        output, read = self._taps(inputs, training=False)
        return {"output": output, "taps": read}


def _shape(what, tensor):
    shape = tuple(tensor.shape[1:])
    if None in shape:
        raise ValueError(
            f"'{what}' of the teacher has no fixed size: {tuple(tensor.shape)}. Expected one that "
            "is the same for all examples, such as a pooled layer"
        )
    return shape
