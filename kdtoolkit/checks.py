"""Checks of networks and data that a distiller makes before it trains."""

import keras
import numpy as np

from kdtoolkit.data.keys import is_arrays, strip
from kdtoolkit.inner import squashes
from kdtoolkit.outputs import layer_names
from kdtoolkit.progress import LastCallback, TeacherPolicy
from kdtoolkit.sources.numbering import with_example_ids
from kdtoolkit.steps import placed

PROBABILITIES = (
    "returns probabilities, but this loss expects logits (class scores before the softmax). Build "
    "the last layer with `activation=None` and use `from_logits=True` in the label loss; or, for a "
    "teacher that can't be rebuilt, wrap it: `kd.as_logits(model)`."
)


def ends_in_softmax(model, key=None):
    """Whether an output of a functional or Sequential model is a softmax or sigmoid.

    What a subclassed model returns shows only in its values, see `check_values`.

    Args:
        model: a `keras.Model`.
        key: which output, where they are a dict; None for any.
    """
    if isinstance(model, keras.Sequential):
        last = model.layers[-1:]
    else:
        names = getattr(model, "output_names", [])
        if names and key is not None:
            names = [layer_names(model)[key]]
        last = [layer for layer in model.layers if layer.name in names]
    return any(
        squashes(layer) or (isinstance(layer, keras.Model) and ends_in_softmax(layer))
        for layer in last
    )


def check_logits(name, model, key=None):
    """Raise a ValueError if the model is built to return probabilities, for one key or for any."""
    if ends_in_softmax(model, key):
        raise ValueError(f"'{name}' ({model.name}) {PROBABILITIES}")


def check_values(name, output, wants_logits):
    """Look at one batch of a source's output before training.

    Args:
        name: the node's name.
        output: its output for a few examples, any structure of arrays.
        wants_logits: whether probabilities would be a mistake.

    Raises:
        ValueError: NaN or infinite values, or probabilities where logits are expected.
    """
    for value in keras.tree.flatten(output):
        array = keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))
        if not np.all(np.isfinite(array)):
            bad = int(np.sum(~np.isfinite(array)))
            raise ValueError(
                f"'{name}' returns {bad} values of {array.size} that are NaN or infinite on the "
                "first batch, expected finite numbers. Check its weights and its input's "
                "preprocessing before training from it."
            )
        if wants_logits and _looks_like_probabilities(array):
            raise ValueError(f"'{name}' {PROBABILITIES}")


def _looks_like_probabilities(array):
    if array.ndim < 2 or array.shape[-1] < 2 or np.min(array) < 0:
        return False
    # float16 probabilities of many classes sum to 1 only roughly.
    return bool(np.all(np.abs(np.sum(array, axis=-1) - 1) < 1e-2))


def input_spec(model):
    """The symbolic input of a functional or Sequential model, None for any other."""
    inputs = getattr(model, "inputs", None)
    if inputs is None:
        return None
    # `input` keeps the structure, but a Sequential model doesn't have it.
    inputs = inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, dtype=t.dtype), inputs)


def check_input_shapes(nodes, preprocessed):
    """Refuse networks that can't read the same batch.

    Args:
        nodes: `{name: model}`.
        preprocessed: names of the nodes that get an input of their own making.

    Raises:
        ValueError: two single-input models expect different shapes.
    """
    specs = {name: input_spec(model) for name, model in nodes.items() if name not in preprocessed}
    shapes = {n: tuple(s.shape) for n, s in specs.items() if isinstance(s, keras.KerasTensor)}
    for other, shape in shapes.items():
        first = next(iter(shapes))
        if not compatible(shapes[first], shape):
            raise ValueError(
                f"'{first}' reads inputs of shape {shapes[first]} and '{other}' of shape {shape}, "
                "expected the same. Give one of them its own view of the batch, for instance "
                f"`preprocess={{'{other}': keras.layers.Resizing(64, 64)}}`."
            )


def compatible(first, second):
    """Whether two shapes may be one, with None for sizes that aren't known."""
    same_rank = len(first) == len(second)
    return same_rank and all(None in (a, b) or a == b for a, b in zip(first, second, strict=True))


def check_weights(name, model):
    """Raise a ValueError if a network's weights are not finite."""
    for variable in model.weights:
        if not np.all(np.isfinite(keras.ops.convert_to_numpy(variable).astype("float32"))):
            raise ValueError(
                f"'{name}' ({model.name}) has NaN or infinite values in '{variable.path}', "
                "expected finite weights. Load the teacher again before training from it."
            )


def first_batch(x, y=None, batch_size=8):
    """A few examples of the data if they can be had without disturbing it, else None.

    Arrays can be sliced and a `PyDataset` indexed. Opening a `tf.data.Dataset` or a generator
    would move its random state or lose its first batch.

    Args:
        x, y: inputs and labels, as given to `fit`.
        batch_size: how many examples to take of arrays.

    Returns:
        `(inputs, labels)`, labels None where there are none; or None.
    """
    if isinstance(x, keras.utils.PyDataset):
        batch = x[0]
        parts = batch if isinstance(batch, tuple) else (batch,)
        return (*parts, None)[:2]
    if is_arrays(x):
        both = x if y is None else (x, y)
        both = keras.tree.map_structure(lambda leaf: leaf[:batch_size], both)
        return (both, None) if y is None else both
    return None


def check_sources(graph, x):
    """Look at what the networks return for the first examples, before anything trains.

    Args:
        graph: the `TransferGraph`.
        x: the training input, as given to `fit`.

    Raises:
        ValueError: a teacher has broken weights or returns NaN, or a network returns probabilities
            where logits are expected.
    """
    teachers = [name for name in graph.teacher_names if name in graph.networks]
    for name in teachers:
        check_weights(name, graph.network(name))
    batch = first_batch(x)
    if batch is None:
        return
    inputs, _ = strip(batch[0])
    for name in dict.fromkeys([*teachers, *graph.logit_nodes]):
        output = graph.forward(name, inputs)["output"]
        check_values(name, output, wants_logits=name in graph.logit_nodes)


def one_per_example(sample_weight):
    """`sample_weight`, refused unless it is one tensor for all outputs."""
    if isinstance(sample_weight, dict | list | tuple):
        raise ValueError(
            "Transfers take one weight per example, for all outputs. Expected `sample_weight` as "
            f"an array of shape (examples,). Received: a {type(sample_weight).__name__}"
        )
    return sample_weight


def before_fit(distiller, x, callbacks):
    """What a distiller looks at before it trains; returns the input, with what sources need.

    Args:
        distiller: the `Distiller`.
        x: the training input, as given to `fit`.
        callbacks: list of the callbacks given to `fit`.

    Raises:
        ValueError: see `check_callbacks`, `with_example_ids`, `check_sources`.
    """
    check_callbacks(distiller, callbacks)
    arrays = is_arrays(x) or isinstance(x, int | float | np.generic | np.ndarray)
    shapes = [np.shape(leaf) for leaf in keras.tree.flatten(x)] if arrays else []
    if any(shape[:1] in ((), (0,)) for shape in shapes):
        raise ValueError(
            f"`fit` expects examples on the first axis of `x`, 1 or more. Received: shapes {shapes}"
        )
    with placed(distiller):
        losses = [transfer.loss for transfer in distiller.transfers if transfer.needs_ids]
        x = with_example_ids(distiller.sources.values(), losses, x)
        for source in distiller.sources.values():
            x = source.attach(x)
    if not distiller.checked:
        check_sources(distiller.graph, x)
        distiller.checked = True
    return x


def check_callbacks(distiller, callbacks):
    """Refuse callbacks under which the sources of a distiller would never, or wrongly, take over.

    Args:
        distiller: the `Distiller`.
        callbacks: list of the callbacks given to `fit`.

    Raises:
        ValueError: no such callback although a source waits, or several; one behind a callback
            that must be the last; one that monitors what nothing will measure.
    """
    policies = [c for c in callbacks if isinstance(c, TeacherPolicy)]
    waiting = [name for name, source in distiller.sources.items() if source.commits]
    names = [type(c).__name__ for c in callbacks]
    if waiting and len(policies) != 1:
        raise ValueError(
            f"The sources {waiting} wait for a callback that tells them when to take over what "
            "they saw. Expected one of `kd.callbacks.BestTeacher()` (needs validation data) or "
            "`kd.callbacks.PeriodicTeacher()` among the callbacks of `fit`. Received: "
            f"callbacks={names}"
        )
    late = [c for c in callbacks[:-1] if isinstance(c, LastCallback)]
    if late:
        raise ValueError(
            f"{type(late[0]).__name__} must see what the other callbacks did. Expected it as the "
            f"last of the callbacks. Received: callbacks={names}"
        )
    if any(policy.monitor == "val_loss" for policy in policies) and not distiller.measures_loss:
        raise ValueError(
            "Without a label loss, 'val_loss' measures the transfers, and memories say nothing of "
            "validation data, so it would always be 0. Expected a metric as `monitor`, a label "
            "loss in `compile`, or `kd.callbacks.PeriodicTeacher()`. Received: monitor='val_loss'"
        )
