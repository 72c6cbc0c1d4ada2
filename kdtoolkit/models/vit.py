"""Vision Transformers, with named layers.

Every network here and in `deit` is a functional `keras.Model` made of Keras's own layers. Blocks
normalise first (pre-LN): `x + attention(norm(x))`, then `x + mlp(norm(x))`. With n patches and k
learned tokens in front of them, the layers worth tapping are:

- `patches`: the embedded patches, `(batch, n, width)`;
- `tokens`: learned tokens and patches, positions added, `(batch, k + n, width)`;
- `block1`, `block2`, ...: the output of each block, same shape; inside them `block1_attention` and
  `block1_mlp`, what the two branches add;
- `norm`: the last block's output, normalised;
- `features`: what the logits read, `(batch, width)`;
- `logits`: the output, float32 under every dtype policy.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020, arXiv:2010.11929), with the sizes
and the initialisation of DeiT (Touvron et al., 2021, arXiv:2012.12877): kernels, tokens and
positions start as a truncated normal with standard deviation 0.02, biases at 0, layer normalisation
has an epsilon of 1e-6, GELU is the exact one. The truncation is Keras's, at two standard
deviations. PyTorch code leaves the convolution of the patches at that framework's default.
"""

import keras
from keras import layers

from kdtoolkit.models.factory import check_num_classes, image_input, model_name, network_arguments
from kdtoolkit.models.vit_layers import TransformerFactory

#: Width and heads by size, from the table of DeiT. All have `DEPTH` blocks.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
DEPTH = 12


@network_arguments
def vit(
    input_shape,
    num_classes,
    *,
    size="tiny",
    width=None,
    depth=None,
    heads=None,
    mlp_ratio=4,
    patch_size=16,
    pooling="token",
    stochastic_depth=0.0,
    dropout=0.0,
    attention_dropout=0.0,
    name=None,
    seed=None,
):
    """Builds a Vision Transformer.

    Weights for images of 224 x 224, patches of 16 and 1000 classes: 5,717,416 (`"tiny"`),
    22,050,664 (`"small"`), 86,567,656 (`"base"`).

    There is no `weight_decay` here: the recipe of these networks is decoupled decay, which the
    optimizer does. DeiT spares biases, normalisations, tokens and positions:

    ```python
    optimizer = keras.optimizers.AdamW(5e-4, weight_decay=0.05)
    optimizer.exclude_from_weight_decay(
        var_names=["bias", "gamma", "beta", "tokens", "positions"]
    )
    ```

    Args:
        input_shape: tuple (height, width, channels), without the batch axis.
        num_classes: int >= 1, the number of logits.
        size: `"tiny"` (width 192, 3 heads; default), `"small"` (384, 6) or `"base"` (768, 12), each
            of 12 blocks.
        width: int, numbers per token; a multiple of `heads`. None for the one of `size`.
        depth: int >= 1, how many blocks. None for 12.
        heads: int >= 1, heads of each attention. None for the one of `size`.
        mlp_ratio: float > 0, hidden units of a block's MLP divided by `width`. Defaults to 4.
        patch_size: int, side of the square patches; divides height and width. Defaults to 16.
        pooling: what the logits read. `"token"` (default): a learned class token. `"mean"`: the
            mean of the patches; then there is no class token (Beyer et al., 2022,
            arXiv:2205.01580; other code keeps an idle one).
        stochastic_depth: float in [0, 1). In training, a share of the examples skips the branch,
            and the rest is divided by 1 - share. Block i of n has the share
            `stochastic_depth * (i - 1) / (n - 1)`, as in DeiT's code, which takes 0.1; Huang et al.
            (2016, arXiv:1603.09382) start at 1 / n of it. Both branches draw for themselves.
        dropout: float in [0, 1), after the positions, the attention and both layers of the MLP.
        attention_dropout: float in [0, 1), share of attention weights dropped.
        name: str, or None for `vit`.
        seed: int >= 0 for reproducible weights and masks, or None. The weights do not depend on the
            three rates. A `keras.models.clone_model` has new weights in its attention layers; build
            anew with the same seed for the same ones.

    Returns:
        A functional `keras.Model` from float images to logits.

    Raises:
        ValueError: for an unknown size or pooling, a width that the heads cannot share, patches
            that do not fill the image, a rate outside [0, 1), or an `input_shape` that is not one
            of images.

    Example:
        >>> from kdtoolkit import models
        >>> student = models.vit((8, 8, 1), 10, width=12, depth=1, heads=2, patch_size=4, seed=0)
        >>> student.get_layer("block1").output.shape
        (None, 5, 12)
    """
    if pooling not in ("token", "mean"):
        raise ValueError(f'`pooling` must be "token" or "mean". Received: pooling={pooling!r}')
    check_num_classes(num_classes)
    factory = TransformerFactory(seed)
    inputs = image_input(input_shape)
    x = encode(
        inputs,
        factory,
        tokens=1 if pooling == "token" else 0,
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
    if pooling == "token":
        x = take_token(x, 0, "features")
    else:
        x = layers.GlobalAveragePooling1D(data_format="channels_last", name="features")(x)
    return keras.Model(inputs, factory.logits(num_classes)(x), name=model_name(name, "vit"))


def encode(
    inputs,
    factory,
    *,
    tokens,
    size,
    width,
    depth,
    heads,
    mlp_ratio,
    patch_size,
    stochastic_depth,
    dropout,
    attention_dropout,
):
    """Returns the normalised output of all blocks, `(batch, tokens + patches, width)`."""
    width, depth, heads = _sizes(size, width, depth, heads)
    _check_rates(
        stochastic_depth=stochastic_depth, dropout=dropout, attention_dropout=attention_dropout
    )
    _check_patches(inputs.shape[1:3], patch_size)
    patches = factory.conv(width, patch_size, "patch_conv", strides=patch_size, use_bias=True)
    x = patches(inputs)
    x = layers.Reshape((x.shape[1] * x.shape[2], width), name="patches")(x)
    x = factory.drop(factory.tokens(tokens, "tokens")(x), dropout, "tokens_dropout")
    block = _Block(factory, heads, int(width * mlp_ratio), dropout, attention_dropout)
    for index in range(depth):
        x = block(x, stochastic_depth * index / max(depth - 1, 1), f"block{index + 1}")
    return factory.norm("norm")(x)


def take_token(tokens, index, name):
    """Returns one token of each example under a name to tap, `(batch, width)`."""
    return layers.Identity(name=name)(tokens[:, index])


class _Block:
    """Adds blocks of attention and MLP: `block(x, branch_rate, name)`."""

    def __init__(self, factory, heads, hidden, dropout, attention_dropout):
        self._factory = factory
        self._heads = heads
        self._hidden = hidden
        self._dropout = dropout
        self._attention_dropout = attention_dropout

    def __call__(self, x, branch_rate, name):
        make = self._factory
        y = make.norm(f"{name}_norm1")(x)
        y = make.attend(y, self._heads, self._attention_dropout, f"{name}_attention")
        x = self._add(x, y, branch_rate, f"{name}_attention", f"{name}_attention_add")
        y = make.norm(f"{name}_norm2")(x)
        y = make.dense(self._hidden, f"{name}_mlp_hidden")(y)
        y = layers.Activation("gelu", name=f"{name}_mlp_gelu")(y)
        y = make.drop(y, self._dropout, f"{name}_mlp_gelu_dropout")
        y = make.dense(x.shape[-1], f"{name}_mlp")(y)
        return self._add(x, y, branch_rate, f"{name}_mlp", name)

    def _add(self, x, y, branch_rate, branch, name):
        y = self._factory.drop(y, self._dropout, f"{branch}_dropout")
        y = self._factory.drop_branch(y, branch_rate, f"{branch}_depth")
        return layers.Add(name=name)([x, y])


def _sizes(size, width, depth, heads):
    if not isinstance(size, str) or size not in SIZES:
        raise ValueError(
            f"`size` must be one of {', '.join(map(repr, SIZES))}; `width`, `depth` and `heads` "
            f"change it. Received: size={size!r}"
        )
    width = SIZES[size][0] if width is None else width
    depth = DEPTH if depth is None else depth
    heads = SIZES[size][1] if heads is None else heads
    if min(width, depth, heads) < 1 or width % heads:
        raise ValueError(
            "`width`, `depth` and `heads` must be 1 or more, and `width` a multiple of `heads`. "
            f"Received: width={width}, depth={depth}, heads={heads}"
        )
    return width, depth, heads


def _check_rates(**rates):
    for argument, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"`{argument}` must be in [0, 1). Received: {argument}={rate}")


def _check_patches(image, patch_size):
    if patch_size < 1 or any(side % patch_size for side in image):
        raise ValueError(
            "`patch_size` must divide the image's height and width. "
            f"Received: patch_size={patch_size} and images of {image[0]} x {image[1]}"
        )
