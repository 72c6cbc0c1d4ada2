"""The networks that dropout was studied with: Caffe's LeNet and Quick, and All-CNN-C.

Like the others they give logits, and tap by name: `stage1`, `stage2`, ... (what ends each stage),
`features` (what the output layer reads, before dropout) and `logits`.
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
def lenet(
    input_shape,
    num_classes,
    *,
    filters=(20, 50),
    dense=500,
    dropout=0.5,
    conv_dropout=0.0,
    weight_decay=0.0,
    name=None,
    seed=None,
):
    """Builds the LeNet of Caffe: two unpadded 5x5 convolutions, each with 2x2 max-pooling, then two
    dense layers, the first with ReLU.

    With 28x28x1 images and 10 classes it has 431 080 weights. Gal's network for CIFAR-10 is
    `lenet((32, 32, 3), 10, filters=(192, 192), dense=1000)`, and his "LeNet-all" has
    `conv_dropout=0.5` as well.

    Source: LeCun et al., 1998; Caffe's `lenet.prototxt`; Gal and Ghahramani, 2015, arXiv:1506.02158
    (dropout).

    Args:
        input_shape: tuple (height, width, channels), without the batch axis; at least 16 x 16.
        num_classes: int >= 1, the number of logits.
        filters: two ints, channels of the convolutions.
        dense: int >= 1, units of the hidden layer.
        dropout: float in [0, 1), the share dropped before the logits. Defaults to 0.5; 0 leaves
            the layer out.
        conv_dropout: float in [0, 1), the share dropped behind each pooling. Defaults to 0.
        weight_decay: float >= 0, adds `weight_decay / 2 * sum(kernel**2)` per kernel.
        name: str, or None for `lenet`.
        seed: int >= 0 for reproducible weights and masks, or None.

    Returns:
        A functional `keras.Model` from images to logits.

    Raises:
        ValueError: images below 16 x 16, or other than two `filters`.

    Example:
        >>> import kdtoolkit as kd
        >>> kd.models.lenet((28, 28, 1), 10, seed=0).count_params()
        431080
    """
    _check_filters("lenet", filters, 2)
    inputs, factory = _begin(input_shape, num_classes, seed, weight_decay, smallest=16)
    x = inputs
    for stage, channels in enumerate(filters, start=1):
        x = factory.conv(channels, 5, f"stage{stage}_conv", use_bias=True, padding="valid")(x)
        x = keras.layers.MaxPooling2D(2, data_format="channels_last", name=f"stage{stage}")(x)
        x = factory.dropped(x, conv_dropout, f"stage{stage}_dropout")
    x = keras.layers.Flatten(data_format="channels_last", name="flatten")(x)
    x = factory.relu("features")(factory.dense(dense, "dense")(x))
    return _end(factory, inputs, x, dropout, num_classes, name, "lenet")


@network_arguments
def quick(
    input_shape,
    num_classes,
    *,
    filters=(32, 32, 64),
    dense=64,
    dropout=0.5,
    conv_dropout=0.0,
    weight_decay=0.0,
    name=None,
    seed=None,
):
    """Builds "CIFAR-10 quick" of Caffe: three 5x5 convolutions and two dense layers. Behind each
    convolution is a 3x3 pooling of stride 2: the first takes the maximum, the others the average.

    With 32x32x3 images and 10 classes it has 145 578 weights. Caffe's has no activation between
    the dense layers, nor dropout; here the first one has ReLU, since dropout of linear units that
    feed a linear layer would be noise on the logits and no ensemble of different features.

    Source: Caffe's `cifar10_quick.prototxt`; Bulo, Porzi and Kontschieder, "Dropout Distillation"
    (ICML 2016), who put dropout in. Where they put it is this library's reading.

    Args:
        input_shape: tuple (height, width, channels), without the batch axis; at least 8 x 8.
        num_classes: int >= 1, the number of logits.
        filters: three ints, channels of the convolutions.
        dense: int >= 1, units of the hidden layer.
        dropout: float in [0, 1), the share dropped before each dense layer. Defaults to 0.5; 0
            leaves the layers out.
        conv_dropout: float in [0, 1), the share dropped behind the first two poolings. Defaults to
            0.
        weight_decay: float >= 0, adds `weight_decay / 2 * sum(kernel**2)` per kernel.
        name: str, or None for `quick`.
        seed: int >= 0 for reproducible weights and masks, or None.

    Returns:
        A functional `keras.Model` from images to logits.

    Raises:
        ValueError: images below 8 x 8, or other than three `filters`.

    Example:
        >>> import kdtoolkit as kd
        >>> kd.models.quick((32, 32, 3), 10, seed=0).count_params()
        145578
    """
    _check_filters("quick", filters, 3)
    inputs, factory = _begin(input_shape, num_classes, seed, weight_decay, smallest=8)
    x = inputs
    for stage, channels in enumerate(filters, start=1):
        x = factory.conv(channels, 5, f"stage{stage}_conv", use_bias=True)(x)
        if stage == 1:
            x = factory.relu("stage1")(_pooling(keras.layers.MaxPooling2D, stage)(x))
        else:
            x = factory.relu(f"stage{stage}_relu")(x)
            x = _pooling(keras.layers.AveragePooling2D, stage, f"stage{stage}")(x)
        if stage < len(filters):
            x = factory.dropped(x, conv_dropout, f"stage{stage}_dropout")
    x = keras.layers.Flatten(data_format="channels_last", name="flatten")(x)
    x = factory.dropped(x, dropout, "dense_dropout")
    x = factory.relu("features")(factory.dense(dense, "dense")(x))
    return _end(factory, inputs, x, dropout, num_classes, name, "quick")


@network_arguments
def all_conv(
    input_shape,
    num_classes,
    *,
    width=96,
    dropout=0.5,
    input_dropout=0.2,
    weight_decay=0.0,
    name=None,
    seed=None,
):
    """Builds the all-convolutional network "All-CNN-C": 3x3 convolutions, two of them with stride 2
    instead of poolings, two 1x1 convolutions, and the average over height and width.

    Channels are `width` three times (the third with stride 2), then twice that three times (the
    third again), then 3x3 and 1x1 with as many, and 1x1 to the classes; each has ReLU. With
    32x32x3 images and 10 classes it has 1 369 738 weights.

    The paper takes the average behind the last convolution, which has ReLU; here the average comes
    first, so that there are `features` to read, and the logits have no ReLU. The paper's average is
    over 6 x 6 positions, so its last 3x3 convolution isn't padded; here it is.

    Source: Springenberg et al., 2015, arXiv:1412.6806 (All-CNN-C).

    Args:
        input_shape: tuple (height, width, channels), without the batch axis; at least 4 x 4.
        num_classes: int >= 1, the number of logits.
        width: int >= 1, channels of the first stage. Defaults to 96.
        dropout: float in [0, 1), the share dropped behind each stride. Defaults to 0.5.
        input_dropout: float in [0, 1), the share of the image's numbers that is dropped. Defaults
            to 0.2. With it nothing can run ahead of the dropout in `kd.MonteCarloDropout`.
        weight_decay: float >= 0, adds `weight_decay / 2 * sum(kernel**2)` per kernel.
        name: str, or None for `all_conv`.
        seed: int >= 0 for reproducible weights and masks, or None.

    Returns:
        A functional `keras.Model` from images to logits.

    Raises:
        ValueError: images below 4 x 4.

    Example:
        >>> import kdtoolkit as kd
        >>> kd.models.all_conv((32, 32, 3), 10, seed=0).count_params()
        1369738
    """
    inputs, factory = _begin(input_shape, num_classes, seed, weight_decay, smallest=4)
    x = factory.dropped(inputs, input_dropout, "input_dropout")
    for stage, channels in enumerate((width, 2 * width), start=1):
        for index in (1, 2, 3):
            place, last = f"stage{stage}_conv{index}", index == 3
            x = factory.conv(channels, 3, place, strides=2 if last else 1, use_bias=True)(x)
            x = factory.relu(f"stage{stage}" if last else f"{place}_relu")(x)
        x = factory.dropped(x, dropout, f"stage{stage}_dropout")
    for index, size in ((1, 3), (2, 1)):
        x = factory.conv(2 * width, size, f"stage3_conv{index}", use_bias=True)(x)
        x = factory.relu("stage3" if index == 2 else "stage3_conv1_relu")(x)
    x = factory.pool("features")(x)
    return _end(factory, inputs, x, 0.0, num_classes, name, "all_conv")


def _begin(input_shape, num_classes, seed, weight_decay, smallest):
    check_num_classes(num_classes)
    inputs = image_input(input_shape)
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"This network is made for images of at least {smallest} x {smallest}. "
            f"Received: input_shape={input_shape}"
        )
    return inputs, LayerFactory(seed, weight_decay)


def _end(factory, inputs, x, dropout, num_classes, name, prefix):
    x = factory.dropped(x, dropout, "logits_dropout")
    return keras.Model(inputs, factory.logits(num_classes)(x), name=model_name(name, prefix))


def _pooling(kind, stage, name=None):
    return kind(
        3,
        strides=2,
        padding="same",
        data_format="channels_last",
        name=name or f"stage{stage}_pool",
    )


def _check_filters(network, filters, count):
    if not isinstance(filters, list | tuple) or len(filters) != count:
        raise ValueError(
            f"`filters` of {network} must hold the channels of its {count} convolutions. "
            f"Received: {filters!r}"
        )
