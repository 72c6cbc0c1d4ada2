"""Statistics of batch normalisation, measured anew."""

from keras import layers

from kdtoolkit.compress.batches import run_on
from kdtoolkit.registry import expects
from kdtoolkit.taps import around_calls, walk


@expects(model="model")
def recalibrate_batchnorm(model, data, *, batch_size=64, batches=100):
    """Measures the statistics of batch normalisation anew, in place.

        moving_mean = mean over batches of the batch's mean,    moving_variance likewise

    Compression changes what goes through a network, and the running averages of a few steps don't
    follow: a network may look ruined for that alone. Only the statistics change. Everything
    else computes as with `training=False`: no dropout, no augmentation.

    Args:
        model: built `keras.Model` of any kind.
        data: inputs as the network is trained on: an array, a dict or list of arrays, or an
            iterable of batches, with labels or without, such as a `tf.data.Dataset`.
        batch_size: int, rows per batch of arrays. Defaults to 64. Statistics of tiny batches are
            noisy in their variance.
        batches: int, at most so many are read. Defaults to 100.

    Returns:
        int, how many batches were read. 0 for a network without batch normalisation, whose data
        are not read.

    Raises:
        TypeError: `data` has none of these forms.
        ValueError: `data` is empty, or holds NaN or infinity.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
        >>> kd.compress.recalibrate_batchnorm(network, np.full((8, 2), 3.0), batch_size=4)
        2
        >>> network.layers[0].moving_mean.numpy()
        array([3., 3.], dtype=float32)
    """
    norms = [layer for _, layer in walk(model) if isinstance(layer, layers.BatchNormalization)]
    norms = list({id(layer): layer for layer in norms}.values())
    if not norms:
        return 0
    before = [(layer, layer.momentum, layer.trainable) for layer in norms]
    runs = dict.fromkeys(map(id, norms), 0)

    def measure(batch):
        model(batch, training=False)

    def in_training(layer, call, *args, **kwargs):
        # From weight 1, 1/2, 1/3, ... a running average becomes the mean of all calls.
        layer.momentum = runs[id(layer)] / (runs[id(layer)] + 1)
        runs[id(layer)] += 1
        return call(*args, **{**kwargs, "training": True})

    try:
        for layer in norms:
            layer.trainable = True
        with around_calls(norms, in_training):
            return run_on(measure, data, batch_size, batches, "data")
    finally:
        for layer, momentum, trainable in before:
            layer.momentum, layer.trainable = momentum, trainable
