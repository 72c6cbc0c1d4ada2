"""Vision Transformers with a distillation token, and both heads for any other backbone.

A model with both heads returns a dict:

- `"class"`: logits of the head that learns from the labels, `(batch, num_classes)`;
- `"distillation"`: logits of the head that learns from the teacher;
- `"fused"`: what to use after training, from both.

Each key is also a layer, and `features` and `distillation_features` are what the heads read. All
three outputs are float32 under every dtype policy.

In a `kd.Distiller`, give the labels to one head, `compile(optimizer, {"class": loss})`, and the
transfer to the other, `kd.Transfer(kd.losses.HardTargets(), student_layer="distillation")`.
Labels given once, `fit(x, y)`, serve the metrics of every output. `single_output` makes a plain
model of the trained one.

Source: Touvron et al., "Training data-efficient image transformers & distillation through
attention" (2021), arXiv:2012.12877.
"""

import math

import keras
from keras import layers, ops

from kdtoolkit.models.factory import check_num_classes, image_input, model_name, network_arguments
from kdtoolkit.models.vit import encode, take_token
from kdtoolkit.models.vit_layers import TransformerFactory


@network_arguments
def deit(
    input_shape,
    num_classes,
    *,
    size="tiny",
    width=None,
    depth=None,
    heads=None,
    mlp_ratio=4,
    patch_size=16,
    fusion="logits",
    stochastic_depth=0.0,
    dropout=0.0,
    attention_dropout=0.0,
    name=None,
    seed=None,
):
    """Builds a Vision Transformer with a class token, a distillation token and a head on each.

    Weights for images of 224 x 224, patches of 16 and 1000 classes: 5,910,800 (`"tiny"`),
    22,436,432 (`"small"`), 87,338,192 (`"base"`). Layers to tap are named as in `vit`.

    Args:
        fusion: how `"fused"` joins the heads' logits z_c and z_d. `"logits"` (default):
            `(z_c + z_d) / 2`, as the authors' code. `"probabilities"`: the log of
            `(softmax(z_c) + softmax(z_d)) / 2`, after the paper, which adds the softmax outputs;
            its softmax is that mean.
        name: str, or None for `deit`.
        input_shape, num_classes, size, width, depth, heads, mlp_ratio, patch_size,
            stochastic_depth, dropout, attention_dropout, seed: as in `vit`.

    Returns:
        A functional `keras.Model` from float images to a dict of logits: `"class"`,
        `"distillation"` and `"fused"`.

    Raises:
        ValueError: as in `vit`, and for an unknown fusion.

    Example:
        >>> from kdtoolkit import models
        >>> shape = {"width": 12, "depth": 1, "heads": 2, "patch_size": 4}
        >>> student = models.deit((8, 8, 1), 10, **shape, seed=0)
        >>> sorted(student.output)
        ['class', 'distillation', 'fused']
    """
    _check_heads(num_classes, fusion)
    factory = TransformerFactory(seed)
    inputs = image_input(input_shape)
    tokens = encode(
        inputs,
        factory,
        tokens=2,
        size=size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        patch_size=patch_size,
        stochastic_depth=stochastic_depth,
        dropout=dropout,
        attention_dropout=attention_dropout,
    )
    outputs = _two_heads(tokens, num_classes, (0, 1), fusion, factory)
    return keras.Model(inputs, outputs, name=model_name(name, "deit"))


def distillation_heads(
    backbone,
    num_classes,
    *,
    class_token=0,
    distillation_token=1,
    fusion="logits",
    name=None,
    seed=None,
):
    """Puts a head for the labels and one for the teacher on a backbone that returns tokens.

    For backbones from elsewhere, pretrained ones included: KerasHub's `DeiTBackbone` returns the
    class token, the distillation token and the patches, in this order. The backbone becomes one
    layer of the new model, so that it is saved with its own configuration, and keeps its weights:
    training the model trains it. Its layers are tapped as `"<name of the backbone>/<layer>"`.

    Args:
        backbone: a functional `keras.Model` whose only output is `(batch, tokens, width)`.
        num_classes: int >= 1, the number of logits of each head.
        class_token, distillation_token: int >= 0, two different tokens, by index.
        fusion: as in `deit`.
        name: str, or None for the backbone's name with `_two_heads` behind it.
        seed: int >= 0 for reproducible heads, or None. They start truncated normal with standard
            deviation 0.02.

    Returns:
        A functional `keras.Model` from what the backbone reads to a dict of logits, as `deit`.

    Raises:
        ValueError: for a backbone that returns something else, or tokens that it does not have.

    Example:
        >>> import keras
        >>> from kdtoolkit import models
        >>> images = keras.Input((4, 4, 3))
        >>> backbone = keras.Model(images, keras.layers.Reshape((4, 12))(images), name="patches")
        >>> student = models.distillation_heads(backbone, 10, seed=0)
        >>> student.output["fused"].shape
        (None, 10)
    """
    _check_heads(num_classes, fusion)
    tokens = getattr(backbone, "output", None)
    if not isinstance(tokens, keras.KerasTensor) or len(tokens.shape) != 3:
        raise ValueError(
            "`backbone` must be a functional model with one output, (batch, tokens, width). "
            f"Received: {getattr(backbone, 'name', backbone)} with output {tokens}. Cut it with "
            "`keras.Model(backbone.input, tokens)`"
        )
    indices = (class_token, distillation_token)
    _check_indices(indices, tokens.shape[1])
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), backbone.input
    )
    outputs = _two_heads(backbone(inputs), num_classes, indices, fusion, TransformerFactory(seed))
    return keras.Model(inputs, outputs, name=name or f"{backbone.name}_two_heads")


def _two_heads(tokens, num_classes, indices, fusion, factory):
    """The dict of outputs that read two of the `tokens`."""
    names = (("features", "class"), ("distillation_features", "distillation"))
    label, teacher = (
        factory.dense(num_classes, head, dtype="float32")(take_token(tokens, index, features))
        for index, (features, head) in zip(indices, names, strict=True)
    )
    return {"class": label, "distillation": teacher, "fused": _fused(label, teacher, fusion)}


def _fused(label, teacher, fusion):
    if fusion == "logits":
        return layers.Average(dtype="float32", name="fused")([label, teacher])
    mean = ops.logaddexp(ops.log_softmax(label), ops.log_softmax(teacher)) - math.log(2)
    return layers.Identity(dtype="float32", name="fused")(mean)


def _check_heads(num_classes, fusion):
    check_num_classes(num_classes)
    if fusion not in ("logits", "probabilities"):
        raise ValueError(
            f'`fusion` must be "logits" or "probabilities". Received: fusion={fusion!r}'
        )


def _check_indices(indices, count):
    last = math.inf if count is None else count - 1
    if not all(0 <= index <= last for index in indices) or indices[0] == indices[1]:
        raise ValueError(
            "`class_token` and `distillation_token` must be two different tokens of the backbone. "
            f"Received: {indices[0]} and {indices[1]}, for {count} tokens"
        )
