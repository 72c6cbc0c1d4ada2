"""The step of students that are updated one after the other.

Deep mutual learning as in its paper: each student sees what the students before it say *after*
their update. One scalar loss can't express that, so this step isn't Keras's own. It runs each
student forward once for its gradient, and once more after its update unless it is the last.
"""

import keras
from keras import ops

from kdtoolkit.data.keys import strip
from kdtoolkit.steps import only, share, whole
from kdtoolkit.steps.workers import as_rows


def train_step(distiller, *args):
    """One training step, as `keras.Model.train_step`: of `(data)`, on JAX of `(state, data)`.

    Args:
        distiller: a `Distiller` whose optimizer is a `StudentOptimizers`.

    Raises:
        NotImplementedError: on another backend than TensorFlow or JAX.
    """
    steps = {"tensorflow": _tensorflow, "jax": _jax}
    backend = keras.backend.backend()
    if backend not in steps:
        raise NotImplementedError(
            "Alternating updates run on TensorFlow and JAX. Expected `updates='simultaneous'`, "
            f"which runs on all. Received: the backend {backend}"
        )
    return steps[backend](distiller, *args)


def _forward(distiller, name, x):
    """A student's view in training, and its own regularisation."""
    with only(name):
        view = distiller(x, training=True)[name]
    losses = [share(ops.sum(loss)) for loss in distiller.graph.node(name).losses]
    return view, ops.sum(ops.stack([ops.zeros(()), *losses]))


def _loss(distiller, name, batch, views, own):
    """All that one student learns from, given the views of all as constants."""
    x, y, sample_weight = batch
    with only(name):
        return own + distiller.compute_loss(x, y, views, sample_weight, training=True)


def _logs(distiller, batch, views, total):
    x, y, sample_weight = batch
    tracker = next(metric for metric in distiller.metrics if metric.name == "loss")
    tracker.update_state(whole(total), ops.shape(keras.tree.flatten(x)[0])[0])
    distiller.optimizer.iterations.assign_add(1)
    return distiller.compute_metrics(x, y, views, sample_weight)


def _tensorflow(distiller, data):
    import tensorflow as tf

    batch = keras.utils.unpack_x_y_sample_weight(data)
    graph, names = distiller.graph, distiller.graph.student_names
    views, own, tapes = {}, {}, {}
    for name in names:
        with tf.GradientTape() as tapes[name]:
            views[name], own[name] = _forward(distiller, name, batch[0])
    if not distiller.optimizer.built:
        distiller.optimizer.build(distiller.trainable_variables)
    trained, total = dict(views), 0.0
    views |= graph.teachers_views(strip(batch[0])[0])
    for name in names:
        # The tape goes on where the student's forward pass ended.
        with tapes[name]:
            loss = _loss(distiller, name, batch, views, own[name])
        variables = graph.trained_with(name)
        gradients = tapes[name].gradient(loss, variables)
        distiller.optimizer.by_student[name].apply(gradients, variables)
        total += loss
        if name != names[-1]:
            views[name], _ = _forward(distiller, name, batch[0])
    return as_rows(_logs(distiller, batch, trained, total))


class _State:
    """The values of all variables within a step of JAX, by the variables' identity."""

    def __init__(self, variables, values):
        self.variables = {id(v): v for v in variables}
        self.values = dict(zip(self.variables, values, strict=True))

    def of(self, variables):
        return [self.values[id(v)] for v in variables]

    def run(self, function, variables=(), values=()):
        """The result of `function` and all values after it, with other values of `variables`."""
        start = {**self.values, **dict(zip(map(id, variables), values, strict=True))}
        mapping = [(self.variables[key], value) for key, value in start.items()]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            result = function()
        return result, {key: scope.get_current_value(v) for key, v in self.variables.items()}


def _jax(distiller, state, data):
    import jax

    batch = keras.utils.unpack_x_y_sample_weight(data)
    graph, names = distiller.graph, distiller.graph.student_names
    groups = [
        distiller.trainable_variables,
        distiller.non_trainable_variables,
        distiller.optimizer.variables,
        distiller.metrics_variables,
    ]
    now = _State(sum(map(list, groups), []), sum(map(list, state), []))

    def forward(name, values):
        variables = graph.trained_with(name)
        return now.run(lambda: _forward(distiller, name, batch[0]), variables, values)

    views, back, own = {}, {}, {}
    for name in names:
        values = now.of(graph.trained_with(name))
        (views[name], own[name]), back[name], now.values = jax.vjp(
            lambda values, name=name: forward(name, values), values, has_aux=True
        )
    trained, total = dict(views), 0.0
    views |= now.run(lambda: graph.teachers_views(strip(batch[0])[0]))[0]
    for name in names:
        variables = graph.trained_with(name)

        def loss_of(view, own, values, name=name, variables=variables):
            said = {**views, name: view}
            return now.run(lambda: _loss(distiller, name, batch, said, own), variables, values)

        values = now.of(variables)
        with_gradient = jax.value_and_grad(loss_of, argnums=(0, 1, 2), has_aux=True)
        (loss, now.values), (*outer, inner) = with_gradient(views[name], own[name], values)
        gradients = keras.tree.map_structure(ops.add, back[name](tuple(outer))[0], inner)
        optimizer = distiller.optimizer.by_student[name]
        _, now.values = now.run(lambda o=optimizer, g=gradients, v=variables: o.apply(g, v))
        total += loss
        if name != names[-1]:
            (views[name], _), now.values = forward(name, now.of(variables))
    logs, now.values = now.run(lambda: _logs(distiller, batch, trained, total))
    return logs, tuple(now.of(group) for group in groups)
