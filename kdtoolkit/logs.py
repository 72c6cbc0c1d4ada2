"""What the logs show of the label losses."""

import keras


class LabelLosses(keras.layers.Layer):
    """The means of the label losses: of all together, and of each output where there are several.

    A layer, so that Keras tracks the metrics. It is never called as one.

    Args:
        outputs: the students' `Outputs`.
    """

    def __init__(self, outputs):
        super().__init__(name="label_losses", dtype="float32", autocast=False)
        self.together = keras.metrics.Mean(name="label_loss")
        names = list(outputs.names)
        self._each = [keras.metrics.Mean(name=f"{name}_loss") for name in names]
        self._names = names
        self._used = ()
        self._measuring = False
        self.built = True

    @property
    def by_output(self):
        """`{name of an output: its mean}`, empty for one student."""
        return dict(zip(self._names, self._each, strict=True))

    def use(self, losses):
        """Show the outputs that have a loss: `losses` is what Keras was given, None for none."""
        self._measuring = losses is not None
        self._used = tuple(losses) if self._names and losses else ()

    def select(self, metrics, labelled, training):
        """The metrics to show, in order.

        Args:
            metrics: Keras's, its total first, with these among them.
            labelled: whether the data had labels.
            training: whether these are the logs of training, which alone show "label_loss".
        """
        # Of several outputs Keras follows the losses too, under the same names.
        own = {self.together.name, *(metric.name for metric in self._each)}
        compiled = [metric for metric in metrics if metric.name not in own]
        if not labelled:
            # All but the total would need labels.
            return compiled[:1]
        each = [self.by_output[name] for name in self._used]
        return [*compiled, *each, *[self.together][: training and self._measuring]]
