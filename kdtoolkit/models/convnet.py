"""Two plain networks for quick experiments: a small convnet and a multi-layer perceptron.

Like the residual networks they give logits and have fixed names to tap: `stage1`, `stage2`, ...
(the activation that ends each stage), `features` (what the output layer reads, before dropout)
and `logits` (float32 under every dtype policy).
"""

import keras

from kdtoolkit.models.factory import (
    LayerFactory,
    check_num_classes,
    image_input,
    model_name,
    network_arguments,
)


@network_arguments
def convnet(
    input_shape,
    num_classes,
    *,
    filters=(16, 32),
    dense=(),
    dropout=0.0,
    batch_norm=True,
    weight_decay=0.0,
    name=None,
    seed=None,
):
    """Builds a plain convnet.

    Each stage is a 3x3 convolution, batch normalisation and ReLU; a 2x2 max-pooling stands
    between two stages. Then the average over height and width, the hidden dense layers, and the
    logits.

    Args:
        input_shape: tuple (height, width, channels), without the batch axis. Height and width
            must be at least `2 ** (len(filters) - 1)`.
        num_classes: int >= 1, the number of logits.
        filters: sequence of int, channels of each stage. At least one.
        dense: sequence of int, units of hidden dense layers after the pooling. Defaults to none.
        dropout: float in [0, 1), the share dropped before every dense layer, the logits included.
        batch_norm: bool. False leaves normalisation out and gives the convolutions a bias.
        weight_decay: float >= 0, adds `weight_decay / 2 * sum(kernel**2)` per kernel.
        name: str, or None for `convnet`.
        seed: int >= 0 for reproducible weights, or None.

    Returns:
        A functional `keras.Model` from images to logits.

    Raises:
        ValueError: for no filters, or images that are too small for the poolings.

    Example:

    ```python
    student = kdtoolkit.models.convnet((8, 8, 1), 10, filters=(8, 16), seed=0)
    ```
    """
    _check_not_empty("filters", filters)
    check_num_classes(num_classes)
    inputs = image_input(input_shape)
    _check_poolings(input_shape, filters)
    factory = LayerFactory(seed, weight_decay)
    x = inputs
    for stage, channels in enumerate(filters, start=1):
        if stage > 1:
            x = keras.layers.MaxPooling2D(
                2, data_format="channels_last", name=f"stage{stage}_pool"
            )(x)
        x = factory.conv(channels, 3, f"stage{stage}_conv", use_bias=not batch_norm)(x)
        if batch_norm:
            x = factory.norm(f"stage{stage}_norm")(x)
        x = factory.relu(f"stage{stage}")(x)
    x = factory.pool("pool" if dense else "features")(x)
    for index, units in enumerate(dense, start=1):
        x = factory.dropped(x, dropout, f"dense{index}_dropout")
        x = factory.dense(units, f"dense{index}")(x)
        x = factory.relu("features" if index == len(dense) else f"dense{index}_relu")(x)
    x = factory.dropped(x, dropout, "logits_dropout")
    outputs = factory.logits(num_classes)(x)
    return keras.Model(inputs, outputs, name=model_name(name, "convnet"))


@network_arguments
def mlp(
    input_shape,
    num_classes,
    *,
    units=(128, 128),
    dropout=0.0,
    weight_decay=0.0,
    name=None,
    seed=None,
):
    """Builds a multi-layer perceptron: dense layers with ReLU, then the logits.

    Args:
        input_shape: tuple, the shape of one example of any rank; it is flattened.
        num_classes: int >= 1, the number of logits.
        units: sequence of int, units of each hidden layer (stage). At least one.
        dropout: float in [0, 1), the share dropped after every hidden layer.
        weight_decay: float >= 0, adds `weight_decay / 2 * sum(kernel**2)` per kernel.
        name: str, or None for `mlp`.
        seed: int >= 0 for reproducible weights, or None.

    Returns:
        A functional `keras.Model` from examples to logits.

    Raises:
        ValueError: for no units.

    Example:

    ```python
    student = kdtoolkit.models.mlp((64,), 10, units=(32,), dropout=0.5, seed=0)
    ```
    """
    _check_not_empty("units", units)
    check_num_classes(num_classes)
    factory = LayerFactory(seed, weight_decay)
    inputs = keras.Input(input_shape, name="inputs")
    x = keras.layers.Flatten(name="flatten")(inputs)
    for stage, width in enumerate(units, start=1):
        if stage > 1:
            x = factory.dropped(x, dropout, f"stage{stage - 1}_dropout")
        x = factory.relu(f"stage{stage}")(factory.dense(width, f"stage{stage}_dense")(x))
    # The last stage again under the name that every network has for what its logits read.
    x = keras.layers.Identity(name="features")(x)
    x = factory.dropped(x, dropout, f"stage{len(units)}_dropout")
    return keras.Model(inputs, factory.logits(num_classes)(x), name=model_name(name, "mlp"))


def _check_not_empty(argument, values):
    if not values:
        raise ValueError(f"`{argument}` must name at least one stage. Received: {values!r}")


def _check_poolings(input_shape, filters):
    smallest = 2 ** (len(filters) - 1)
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"{len(filters)} stages halve the image {len(filters) - 1} times, so height and width "
            f"must be at least {smallest}. Received: input_shape={input_shape}. Use fewer `filters`"
        )
