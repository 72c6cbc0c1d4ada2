"""Residual networks for small images, with named stages.

Every network here is a functional `keras.Model` from float images `(batch, height, width,
channels)` to logits `(batch, num_classes)`. Layers worth tapping have fixed names:

- `stage1`, `stage2`, `stage3` (and `stage4`): the last layer of each stage. In variant `"v1"`
  it is the activation after the addition, in `"v2"` the addition itself;
- `features`: the average over height and width, `(batch, channels)`;
- `logits`: the output, float32 under every dtype policy.

Sources: He et al., "Deep Residual Learning for Image Recognition" (2015) for `"v1"`, "Identity
Mappings in Deep Residual Networks" (2016) for `"v2"`. Strided convolutions use Keras's `same`
padding, which puts the odd row of zeros at the bottom; PyTorch code puts it at the top.
"""

import functools

import keras

from kdtoolkit.models.factory import (
    LayerFactory,
    check_num_classes,
    image_input,
    model_name,
    network_arguments,
)


@network_arguments
def resnet(
    depth,
    input_shape,
    num_classes,
    *,
    width=16,
    stem_width=None,
    variant="v1",
    shortcut="projection",
    weight_decay=0.0,
    name=None,
    seed=None,
):
    """Builds a ResNet of the CIFAR family: three stages of basic blocks.

    The stages have `width`, `2 * width` and `4 * width` channels and `(depth - 2) / 6` blocks
    each. With 100 classes and width 16, ResNet-20 has 278,324 trainable weights as `"v1"`
    (the network of the distillation benchmarks) and 279,508 weights, moving statistics included,
    as `"v2"`.

    Args:
        depth: int, `6 * n + 2`: 8, 14, 20, 32, 44, 56, 110, ...
        input_shape: tuple (height, width, channels), without the batch axis.
        num_classes: int >= 1, the number of logits.
        width: int, channels of the first stage. Defaults to 16.
        stem_width: int, channels of the first convolution, or None for `width`.
        variant: `"v1"` (convolution, normalisation, activation) or `"v2"` (normalisation and
            activation come first; one more pair of them before the pooling).
        shortcut: what a block does where the shape changes. `"projection"`: a 1x1 convolution
            (normalised in `"v1"`). `"pad"`: drops pixels and adds zero channels, no weights
            (option A of He et al. 2015).
        weight_decay: float >= 0, adds `weight_decay / 2 * sum(kernel**2)` per kernel to the loss.
            The gradient is `weight_decay * kernel`, so `5e-4` means what it means in the papers.
        name: str, or None for `resnet<depth>`.
        seed: int >= 0 for reproducible weights, or None. A `keras.models.clone_model` of a
            seeded network starts from the same weights again; build anew with another seed
            for a fresh one.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: for a depth outside the family, an unknown variant or shortcut, or an
            `input_shape` that is not one of images.

    Example:

    ```python
    student = kdtoolkit.models.resnet(20, (32, 32, 3), 100, variant="v2", seed=0)
    ```
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(
            "`depth` must be 6 * n + 2 with n >= 1 (8, 14, 20, 26, 32, 44, 56, 110, ...). "
            f"Received: depth={depth}"
        )
    stem_width = width if stem_width is None else stem_width
    if shortcut == "pad" and stem_width > width:
        raise ValueError(
            'shortcut="pad" can only add channels, so `stem_width` must not be above `width`. '
            f"Received: stem_width={stem_width}, width={width}"
        )
    return _residual_network(
        input_shape,
        num_classes,
        stem_width=stem_width,
        widths=(width, 2 * width, 4 * width),
        depths=((depth - 2) // 6,) * 3,
        blocks=_Blocks(LayerFactory(seed, weight_decay), variant, shortcut),
        name=model_name(name, f"resnet{depth}"),
    )


def resnet8x4(input_shape, num_classes, *, weight_decay=0.0, name=None, seed=None):
    """Builds ResNet-8x4, the small student of the distillation benchmarks.

    The same as `resnet(8, ..., width=64, stem_width=32)`: stages of 64, 128 and 256 channels.
    1,233,540 trainable weights with 100 classes. Arguments as in `resnet`.

    Example:

    ```python
    student = kdtoolkit.models.resnet8x4((32, 32, 3), 100)
    ```
    """
    name = model_name(name, "resnet8x4")
    options = {"weight_decay": weight_decay, "name": name, "seed": seed}
    return resnet(8, input_shape, num_classes, width=64, stem_width=32, **options)


def resnet32x4(input_shape, num_classes, *, weight_decay=0.0, name=None, seed=None):
    """Builds ResNet-32x4, the usual teacher of `resnet8x4`.

    The same as `resnet(32, ..., width=64, stem_width=32)`. 7,433,860 trainable weights with 100
    classes. Arguments as in `resnet`.

    Example:

    ```python
    teacher = kdtoolkit.models.resnet32x4((32, 32, 3), 100)
    ```
    """
    name = model_name(name, "resnet32x4")
    options = {"weight_decay": weight_decay, "name": name, "seed": seed}
    return resnet(32, input_shape, num_classes, width=64, stem_width=32, **options)


def resnet18(input_shape, num_classes, *, variant="v1", weight_decay=0.0, name=None, seed=None):
    """Builds ResNet-18 with the stem for small images: 3x3, stride 1, no pooling.

    Four stages of 64, 128, 256 and 512 channels, two basic blocks each. 11,220,132 trainable
    weights with 100 classes. Arguments as in `resnet`.

    Example:

    ```python
    student = kdtoolkit.models.resnet18((32, 32, 3), 100, weight_decay=5e-4)
    ```
    """
    blocks = _Blocks(LayerFactory(seed, weight_decay), variant)
    name = model_name(name, "resnet18")
    return _residual_network(
        input_shape, num_classes, depths=(2, 2, 2, 2), blocks=blocks, name=name
    )


def resnet34(input_shape, num_classes, *, variant="v1", weight_decay=0.0, name=None, seed=None):
    """Builds ResNet-34 with the stem for small images.

    As `resnet18`, with 3, 4, 6 and 3 blocks. 21,328,292 trainable weights with 100 classes.
    Arguments as in `resnet`.

    Example:

    ```python
    teacher = kdtoolkit.models.resnet34((32, 32, 3), 100)
    ```
    """
    blocks = _Blocks(LayerFactory(seed, weight_decay), variant)
    name = model_name(name, "resnet34")
    return _residual_network(
        input_shape, num_classes, depths=(3, 4, 6, 3), blocks=blocks, name=name
    )


def resnet50(input_shape, num_classes, *, variant="v1", weight_decay=0.0, name=None, seed=None):
    """Builds ResNet-50 with the stem for small images.

    Bottleneck blocks (1x1, 3x3, 1x1 with four times the channels), 3, 4, 6 and 3 of them.
    23,705,252 trainable weights with 100 classes. Arguments as in `resnet`.

    Example:

    ```python
    teacher = kdtoolkit.models.resnet50((32, 32, 3), 100)
    ```
    """
    blocks = _Blocks(LayerFactory(seed, weight_decay), variant, bottleneck=True)
    name = model_name(name, "resnet50")
    return _residual_network(
        input_shape, num_classes, depths=(3, 4, 6, 3), blocks=blocks, name=name
    )


def _residual_network(
    input_shape,
    num_classes,
    *,
    stem_width=64,
    widths=(64, 128, 256, 512),
    depths,
    blocks,
    name,
):
    """Stem, `depths[i]` blocks of `widths[i]` channels per stage, pooling, logits."""
    check_num_classes(num_classes)
    factory = blocks.factory
    inputs = image_input(input_shape)
    x = factory.conv(stem_width, 3, "stem_conv")(inputs)
    if not blocks.pre_activation:
        x = factory.relu("stem_relu")(factory.norm("stem_norm")(x))
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for block in range(1, depth + 1):
            prefix = f"stage{stage}_block{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            output_name = f"stage{stage}" if block == depth else f"{prefix}_output"
            x = blocks(x, width, strides, prefix, output_name)
    if blocks.pre_activation:
        x = factory.relu("final_relu")(factory.norm("final_norm")(x))
    x = factory.pool("features")(x)
    return keras.Model(inputs, factory.logits(num_classes)(x), name=name)


class _Blocks:
    """Adds residual blocks of one kind: `blocks(x, width, strides, prefix, output_name)`."""

    def __init__(self, factory, variant, shortcut="projection", bottleneck=False):
        if variant not in ("v1", "v2"):
            raise ValueError(f'`variant` must be "v1" or "v2". Received: variant={variant!r}')
        if shortcut not in ("projection", "pad"):
            raise ValueError(
                f'`shortcut` must be "projection" or "pad". Received: shortcut={shortcut!r}'
            )
        self.factory = factory
        self.pre_activation = variant == "v2"
        self._pad = shortcut == "pad"
        self._bottleneck = bottleneck

    def __call__(self, x, width, strides, prefix, output_name):
        # Filters, kernel size and strides of each convolution.
        if self._bottleneck:
            convs = ((width, 1, 1), (width, 3, strides), (4 * width, 1, 1))
        else:
            convs = ((width, 3, strides), (width, 3, 1))
        shortcut = None
        if strides != 1 or x.shape[-1] != convs[-1][0]:
            shortcut = functools.partial(
                self._shortcut, filters=convs[-1][0], strides=strides, prefix=prefix
            )
        block = self._v2_block if self.pre_activation else self._v1_block
        return block(x, convs, shortcut, prefix, output_name)

    def _v1_block(self, x, convs, shortcut, prefix, output_name):
        make, y = self.factory, x
        for index, (filters, kernel_size, strides) in enumerate(convs, start=1):
            y = make.conv(filters, kernel_size, f"{prefix}_conv{index}", strides=strides)(y)
            y = make.norm(f"{prefix}_norm{index}")(y)
            if index < len(convs):
                y = make.relu(f"{prefix}_relu{index}")(y)
        skip = shortcut(x) if shortcut else x
        return make.relu(output_name)(keras.layers.Add(name=f"{prefix}_add")([skip, y]))

    def _v2_block(self, x, convs, shortcut, prefix, output_name):
        make, y, skip = self.factory, x, x
        for index, (filters, kernel_size, strides) in enumerate(convs, start=1):
            y = make.relu(f"{prefix}_relu{index}")(make.norm(f"{prefix}_norm{index}")(y))
            if index == 1 and shortcut:
                # Where the shape changes, the shortcut reads the normalised tensor, as in the
                # code of the paper's authors.
                skip = shortcut(y)
            y = make.conv(filters, kernel_size, f"{prefix}_conv{index}", strides=strides)(y)
        return keras.layers.Add(name=output_name)([skip, y])

    def _shortcut(self, x, filters, strides, prefix):
        if self._pad:
            return _pad_shortcut(x, filters, strides, prefix)
        x = self.factory.conv(filters, 1, f"{prefix}_shortcut_conv", strides=strides)(x)
        return x if self.pre_activation else self.factory.norm(f"{prefix}_shortcut_norm")(x)


def _pad_shortcut(x, filters, strides, prefix):
    missing = filters - x.shape[-1]
    if strides > 1:
        # Pooling over one pixel only drops the others; unlike slicing, it is a plain layer.
        pooling = keras.layers.AveragePooling2D(
            1, strides, data_format="channels_last", name=f"{prefix}_shortcut_pool"
        )
        x = pooling(x)
    before = missing // 2
    return keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [before, missing - before]])
