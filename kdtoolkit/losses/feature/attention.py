"""Attention transfer: where a network looks, and not what it sees there."""

from keras import ops

from kdtoolkit import functional, scalars
from kdtoolkit.functional.attention import attention
from kdtoolkit.functional.positions import check_common_layout, check_positions, in_common
from kdtoolkit.losses.feature.base import FeatureLoss
from kdtoolkit.registry import public

FORMS = ("code", "paper")


@public
class AttentionTransfer(FeatureLoss):
    """Attention transfer: squared difference of normalised attention maps.

        code:   mean_i (Q_i(source) - Q_i(student))^2
        paper:  sqrt(sum_i (Q_i(source) - Q_i(student))^2)

    i runs over the positions, and Q = vec(mean_c |A_c|^p), divided by its L2 norm: at each
    position the strength of all channels together. Nothing is learned, and the numbers of channels
    may differ. The loss doesn't change if an example's features are multiplied by a positive
    number, or if channels change places. Of tokens it compares which ones are strong.

    Where the grids differ, the attention map of the larger one is averaged down to the smaller one
    (adaptive average pooling; tokens are read as a grid). The authors' code needs equal grids. The
    CRD benchmark pools the features instead, where signs cancel before the power is taken.

    Source: Zagoruyko and Komodakis, 2017, arXiv:1612.03928, activation-based. The authors' code
    takes the mean over the positions and the weight 1000; that is the default. Their paper writes
    the norm of the difference: `form="paper"`. A mean over the channels and a sum give the same Q.

    Args:
        power: p >= 1, a float. The larger, the more the strongest positions count. Defaults to 2.
        form: "code" (default) or "paper", see above.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: p below 1, or an unknown form; when connected, vectors, features of one
            position, or tokens that form no grid against a map.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source, student = np.array([[[3.0], [0.0]]]), np.array([[[0.0], [3.0]]])
        >>> float(losses.AttentionTransfer()(source, student))
        1.0
    """

    kinds = ("tokens", "maps")

    def __init__(
        self,
        power=2.0,
        form="code",
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        if form not in FORMS:
            raise ValueError(
                f"`form` of AttentionTransfer must be one of {FORMS}. Received: form={form!r}"
            )
        self.power = scalars.checked(power, "power", "AttentionTransfer", minimum=1.0)
        self.form = form

    def check_pair(self, source, student):
        super().check_pair(source, student)
        owner = "AttentionTransfer"
        check_positions(check_common_layout(source, student, owner), owner)

    def pair_values(self, source, student, layer):
        maps = in_common(attention(source, self.power), attention(student, self.power))
        source, student = (functional.unit_vectors(functional.as_vectors(one)) for one in maps)
        squared = ops.square(source - student)
        if self.form == "code":
            return functional.per_example(squared)
        total = ops.sum(squared, axis=-1)
        # The square root has no gradient at 0, where both networks agree.
        return ops.where(total == 0, 0.0, ops.sqrt(ops.where(total == 0, 1.0, total)))

    def get_config(self):
        return {**super().get_config(), "power": self.power, "form": self.form}
