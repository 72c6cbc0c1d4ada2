"""What is made before the first step, so that the step is traced once."""

import keras
from keras import ops

from kdtoolkit.checks import first_batch
from kdtoolkit.steps import placed

#: Number of examples that are looked at.
LOOK = 8


def build_ahead(distiller, x, y):
    """Make the variables of the optimizer, and of the compiled loss and metrics.

    Keras makes them inside the step. TensorFlow then throws that trace away and traces once more,
    which for large networks is half of the time until the first batch. JAX doesn't.

    Args:
        distiller: a compiled `Distiller`.
        x, y: the data, as given to `fit`. Loss and metrics are built where a few examples can be
            had without disturbing it.
    """
    if keras.backend.backend() != "tensorflow" or not distiller.built:
        return
    # Of the metrics only the compiled ones, as a whole, wait to be built.
    waiting = any(not getattr(metric, "built", True) for metric in distiller.metrics)
    if distiller.optimizer.built and not waiting:
        return
    with placed(distiller):
        distiller.optimizer.build(distiller.trainable_variables)
        batch = first_batch(x, y)
        if batch is None or batch[1] is None:
            return
        batch = keras.tree.map_structure(lambda leaf: leaf[:LOOK], batch)
        known = {id(v): ops.convert_to_numpy(v) for v in distiller.metrics_variables}
        outputs = distiller(batch[0])
        # The loss too: with several outputs Keras keeps a mean for each.
        distiller.compute_loss(*batch, outputs, training=False)
        distiller.compute_metrics(*batch, outputs)
        distiller.reset_metrics()
        # Metrics of the user's may count across resets.
        for variable in distiller.metrics_variables:
            if id(variable) in known:
                variable.assign(known[id(variable)])
