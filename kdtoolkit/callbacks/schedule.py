"""A number that changes from epoch to epoch: a weight, a temperature, a learning rate."""

import keras


class Schedule(keras.callbacks.Callback):
    """Sets one number of a loss, transfer, distiller or optimizer at the start of each epoch.

        owner.attribute = function(epoch),  epoch = 0, 1, 2, ...

    It acts on the next batch and the step isn't traced again. The logs get the value.

    Args:
        owner: object with the attribute.
        attribute: str, an attribute whose class checks and assigns it, such as `temperature` of a
            loss, `weight` of a transfer, `label_weight` of a distiller, `teacher_share` of a
            `kd.SelfDistiller`, or `learning_rate` of an optimizer.
        function: any callable that takes the epoch, an int from 0, and returns a number; a
            `keras.optimizers.schedules.LearningRateSchedule` too, which then counts in epochs.
        name: str, key of the logs. Defaults to the owner's name and the attribute, such as
            `"soft_targets_weight"`, or the attribute alone if the owner has no name.

    Raises:
        TypeError: `function` can't be called.
        ValueError: the owner has no such attribute, or a plain number that the compiled step would
            never read again; at the start of an epoch, a value that the owner refuses.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> edge = kd.Transfer(kd.losses.SoftTargets())
        >>> warm_up = kd.callbacks.Schedule(edge, "weight", lambda epoch: min(1.0, epoch / 20))
        >>> cool = kd.callbacks.Schedule(
        ...     edge.loss, "temperature", keras.optimizers.schedules.CosineDecay(8.0, 100))
    """

    def __init__(self, owner, attribute, function, name=None):
        super().__init__()
        if not callable(function):
            raise TypeError(
                "`function` must be callable: epoch -> number, such as `lambda epoch: 0.9**epoch`. "
                f"Received: function={function!r}"
            )
        value = getattr(owner, attribute, None)
        kind = getattr(type(owner), attribute, None)
        # A variable that is a plain attribute of its object would be replaced and not assigned.
        assigned = isinstance(value, keras.Variable) and kind is not None
        if not assigned and getattr(kind, "fset", None) is None:
            raise ValueError(
                f"`attribute` must name a number of {type(owner).__name__} that is kept in a "
                "variable and assigned when it is set, such as `temperature` of a loss or `weight` "
                f"of a transfer. Received: attribute={attribute!r}, which is {value!r}. Other "
                "numbers are fixed when the step is compiled"
            )
        self.owner = owner
        self.attribute = attribute
        self.function = function
        owner_name = getattr(owner, "name", None)
        self.name = name or (f"{owner_name}_{attribute}" if owner_name else attribute)
        self._value = None

    def on_epoch_begin(self, epoch, logs=None):
        # Looking at `model` makes JAX write the state of the last step into the variables.
        _ = self.model
        self._value = float(keras.ops.convert_to_numpy(self.function(epoch)))
        setattr(self.owner, self.attribute, self._value)

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self._value
