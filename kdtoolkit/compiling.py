"""What `Distiller.compile` gives to Keras: optimizers, losses and metrics for every student."""

import keras


def policy_of(students):
    """The dtype policy under which Keras scales the loss if any student computes in float16.

    Keras wraps the optimizer of a `mixed_float16` model in a `LossScaleOptimizer`, but looks at the
    compiled model's policy alone; here that is the distiller's.
    """
    # `_flatten_layers` is the only walk that also finds the layers of composite layers.
    layers = [layer for student in students for layer in student._flatten_layers()]
    half = any(layer.compute_dtype == "float16" for layer in layers)
    return "mixed_float16" if half else "float32"


def combine(optimizer, graph):
    """Make one Keras optimizer of what `Distiller.compile` was given.

    Args:
        optimizer: anything that Keras takes, or a dict `{student name: optimizer}`.
        graph: the `TransferGraph`.

    Raises:
        ValueError: the dict's names aren't the students', or two students share an object.
    """
    if not isinstance(optimizer, dict) or "class_name" in optimizer:
        return optimizer
    if set(optimizer) != set(graph.student_names):
        raise ValueError(
            f"`optimizer` must have one entry per student: {sorted(graph.student_names)}. "
            f"Received: {sorted(optimizer)}"
        )
    found = {name: keras.optimizers.get(value) for name, value in optimizer.items()}
    if len({id(value) for value in found.values()}) < len(found):
        raise ValueError(
            "Each student needs an optimizer object of its own. Received the same object twice: "
            f"{found}"
        )
    return keras.optimizers.MultiOptimizer(_Owners(found, graph))


def for_each(given, names):
    """A label loss or metrics for each student, in the form that Keras takes for several outputs.

    Args:
        given: what `compile` was given for one student, or a dict with the students' names.
        names: the students' names.

    Returns:
        `given` itself where there is one student, else a dict; metric objects are copied, since
        each student's counts are its own.
    """
    if given is None or len(names) == 1:
        return given
    if isinstance(given, dict) and set(given) == set(names):
        return given
    return {name: keras.tree.map_structure(_copy_of_metric, given) for name in names}


def _copy_of_metric(value):
    return type(value).from_config(value.get_config()) if isinstance(value, keras.Metric) else value


class _Owners:
    """Maps a variable to the optimizer of the student that it trains.

    By identity, since two students' variables may well have equal paths. A transfer's own layers
    go with the student that they serve.
    """

    def __init__(self, optimizers, graph):
        self.optimizers = optimizers
        self._owner = {}
        for edge in graph.edges:
            self._owner.update((id(v), edge.student) for v in edge.transfer.trainable_weights)
        for name in graph.student_names:
            self._owner.update((id(v), name) for v in graph.node(name).trainable_weights)

    def __call__(self, variable):
        return self.optimizers[self._owner[id(variable)]]

    def values(self):
        return self.optimizers.values()
