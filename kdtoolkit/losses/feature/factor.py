"""Factor transfer: the source's features in other words, and the student's in the same."""

import keras
from keras import layers, ops

from kdtoolkit import functional, scalars
from kdtoolkit.functional.positions import as_map, map_shape
from kdtoolkit.losses.feature.base import FeatureLoss
from kdtoolkit.losses.feature.projector import convolution
from kdtoolkit.registry import public
from kdtoolkit.scalars import Scalar


def _stack(shape, widths):
    """3x3 convolutions of these widths, each with leaky ReLU, for maps `(None, h, w, channels)`."""
    stack = [keras.Input(shape[1:], dtype="float32")]
    for width in widths:
        stack.append(convolution(width, shape))
        stack.append(layers.LeakyReLU(negative_slope=0.1, dtype="float32"))
    return keras.Sequential(stack)


def paraphraser(shape, rate=0.5):
    """A paraphraser and its decoder: train one after the other as an autoencoder, keep the first.

    Three 3x3 convolutions with leaky ReLU (slope 0.1) each: from c channels to c, `rate * c` and
    `rate * c`; then the same back.

    ```python
    encoder, decoder = kd.losses.paraphraser(maps.shape[1:])
    autoencoder = keras.Sequential([encoder, decoder])
    autoencoder.compile("adam", "mse")
    autoencoder.fit(maps, maps, epochs=5)
    loss = kd.losses.FactorTransfer(paraphraser=encoder)
    ```

    Source: Kim et al., 2018, arXiv:1802.04977. The authors' code trains it with the mean absolute
    error, for 5 epochs.

    Args:
        shape: tuple `(height, width, channels)` of the source's features.
        rate: k > 0, channels of the factors by channels of the features. Defaults to 0.5.

    Returns:
        Two `keras.Sequential`: features to factors, factors to features.

    Raises:
        ValueError: a rate that isn't > 0 and finite.

    Example:
        >>> from kdtoolkit.losses.feature.factor import paraphraser
        >>> encoder, decoder = paraphraser((4, 4, 6))
        >>> encoder.output_shape, decoder.output_shape
        ((None, 4, 4, 3), (None, 4, 4, 6))
    """
    rate = scalars.checked(rate, "rate", "paraphraser", above=0.0)
    channels = shape[-1]
    few = max(1, round(rate * channels))
    encoder = _stack((None, *shape), (channels, few, few))
    decoder = _stack((None, *shape[:2], few), (few, channels, channels))
    return encoder, decoder


def _frozen_copy(layer):
    """A copy with the same weights, so that a second loss or training doesn't meet the first."""
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    if layer.built and copy.built:
        copy.set_weights(layer.get_weights())
    copy.trainable = False
    return copy


class _Factors(layers.Layer):
    """The networks between features and factors.

    Args:
        paraphraser: from the source's maps to its factors.
        decoder: back again, or None for a paraphraser that doesn't train.
        translator: from the student's maps, of the factors' size, to its factors.
    """

    def __init__(self, paraphraser, decoder, translator):
        super().__init__(dtype="float32", autocast=False)
        self.paraphraser = paraphraser
        self.decoder = decoder
        self.translator = translator
        self.built = True

    @property
    def metrics(self):
        # A paraphraser that was compiled to be trained has some, which are none of ours.
        return []

    def call(self, source, student, training=None):
        """The source's factors, the student's, and the reconstruction (None without decoder)."""
        student = self.translator(student, training=training)
        if self.decoder is None:
            return self.paraphraser(source, training=False), student, None
        factors = self.paraphraser(source, training=training)
        restored = self.decoder(factors, training=training)
        return ops.stop_gradient(factors), student, restored


@public
class FactorTransfer(FeatureLoss):
    """Factor transfer (FT): difference of normalised factors of both networks' features.

        u = P(source) / ||P(source)||,  v = T(student) / ||T(student)||
        mean |u - v|^p  +  reconstruction_weight * mean (source - D(P(source)))^2

    Each u and v is one vector per example; means run over its entries and the source's. The
    paraphraser P turns the source's maps into fewer channels, and the translator T learns to do so
    with the student's: three 3x3 convolutions with leaky ReLU each. T is trained, saved with the
    distiller, and never part of the student.

    In the paper P is trained first, without labels, as one half of an autoencoder, and then frozen:
    give it as `paraphraser` (see the function `paraphraser`); the second term is then left out.
    Without one, P and its decoder D are trained beside the student, by the second term alone: a
    variant of ours, in one stage.

    The student's features are laid out like the source's before T, without weights. Tokens are read
    as a square grid without the class token, or else along their axis, a vector as one cell.

    Source: Kim et al., 2018, arXiv:1802.04977, with the mean over the entries as in the authors'
    code, weight 500 for CIFAR-10. CRD's benchmark has neither P nor T: it compares normalised means
    over the channels of the squared features, with weight 200.

    Args:
        paraphraser: a trained `keras.layers.Layer` or model from the source's features, as maps
            `(batch, height, width, channels)`, to factors, which are maps too. The loss keeps a
            copy, which isn't trained further and is saved with the distiller. `None` (default) for
            one that the loss makes and trains.
        rate: k > 0, channels of the factors by channels of the source, where the loss makes P.
            Defaults to 0.5.
        p: 1 (default) or 2.
        reconstruction_weight: weight of the second term, >= 0. It is multiplied by the transfer's
            weight too, so the default 0.002 makes 1 of 500.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        TypeError: a paraphraser that is no Keras layer.
        ValueError: a rate, p or weight out of range; when connected, shapes that can't be compared
            or that the paraphraser doesn't take, or several pairs of layers for one paraphraser.

    Example:
        >>> import keras, numpy as np
        >>> from kdtoolkit import losses
        >>> loss = losses.FactorTransfer(paraphraser=keras.layers.Identity())
        >>> source, student = np.ones((2, 2, 2, 4)), np.zeros((2, 4, 4, 3))
        >>> float(loss(source, student))
        0.25
    """

    reconstruction_weight = Scalar(minimum=0.0)

    def __init__(
        self,
        paraphraser=None,
        rate=0.5,
        p=1,
        reconstruction_weight=0.002,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        if not isinstance(paraphraser, layers.Layer | None):
            raise TypeError(
                "`paraphraser` of FactorTransfer must be a Keras layer or model from features to "
                f"factors, or None. Received: paraphraser={paraphraser!r}"
            )
        if p not in (1, 2):
            raise ValueError(f"`p` of FactorTransfer must be 1 or 2. Received: p={p!r}")
        self.paraphraser = None if paraphraser is None else _frozen_copy(paraphraser)
        self.rate = scalars.checked(rate, "rate", "FactorTransfer", above=0.0)
        self.p = p
        self.reconstruction_weight = reconstruction_weight

    def check_shapes(self, source, student):
        super().check_shapes(source, student)
        if self.paraphraser is not None and isinstance(source, list) and len(source) > 1:
            raise ValueError(
                "A `paraphraser` of FactorTransfer serves one pair of layers. Received: "
                f"{len(source)} pairs. Make a transfer with a loss of its own for each."
            )

    def check_pair(self, source, student):
        super().check_pair(source, student)
        functional.check_arrangement(student, source, "FactorTransfer")
        if self.paraphraser is not None:
            self._factor_shape(map_shape(source))

    def _factor_shape(self, maps):
        """Shape of what the given paraphraser makes of maps of this shape."""
        try:
            shape = tuple(self.paraphraser.compute_output_shape(maps))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`paraphraser` of FactorTransfer must take the source's features as maps. "
                f"Received: {self.paraphraser!r} for shape {maps}. Train one with them: see "
                "`kd.losses.paraphraser`."
            ) from error
        functional.check_features(shape, "The translator of FactorTransfer", ("maps",))
        return shape

    def make_layer(self, source, student):
        source, channels = map_shape(source), student[-1]
        if self.paraphraser is None:
            encoder, decoder = paraphraser(source[1:], self.rate)
            factors = encoder.output_shape
        else:
            encoder, decoder = self.paraphraser, None
            if not encoder.built:
                encoder.build(source)
            factors = self._factor_shape(source)
        few = factors[-1]
        translator = _stack((None, *factors[1:3], channels), (channels, few, few))
        return _Factors(encoder, decoder, translator)

    def pair_values(self, source, student, layer):
        student = as_map(functional.arrange(student, source.shape))
        student = functional.resize_maps(student, *layer.translator.input_shape[1:3])
        source = as_map(source)
        u, v, restored = layer(source, student, training=self.training)
        u, v = (functional.unit_vectors(functional.as_vectors(factors)) for factors in (u, v))
        difference = u - v
        difference = ops.abs(difference) if self.p == 1 else ops.square(difference)
        values = functional.per_example(difference)
        if restored is None:
            return values
        error = functional.per_example(ops.square(source - restored))
        return values + ops.cast(self.reconstruction_weight, error.dtype) * error

    def get_config(self):
        return {
            **super().get_config(),
            "paraphraser": keras.saving.serialize_keras_object(self.paraphraser),
            "rate": self.rate,
            "p": self.p,
        }

    @classmethod
    def from_config(cls, config):
        given = keras.saving.deserialize_keras_object(config["paraphraser"])
        return cls(**{**config, "paraphraser": given})
