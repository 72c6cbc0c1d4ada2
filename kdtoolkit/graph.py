"""The transfer graph: networks as nodes, transfers as edges, one forward pass per network."""

import keras
from keras import ops

from kdtoolkit import checks, wiring
from kdtoolkit.data.keys import stored, strip
from kdtoolkit.outputs import keys_of
from kdtoolkit.sources import Source
from kdtoolkit.steps import learner, whole
from kdtoolkit.taps import Taps, in_stage, output_spec, spec_of


def context_of(x, labels, sample_weight, epoch, progress):
    """What losses and sources may ask for beside the networks' outputs, by name."""
    return {
        "labels": labels,
        "sample_weight": checks.one_per_example(sample_weight),
        "example_id": strip(x)[1],
        "stored": stored(x),
        "epoch": ops.convert_to_tensor(epoch),
        "progress": ops.convert_to_tensor(progress),
    }


class TransferGraph(keras.layers.Layer):
    """Holds the networks and transfers of a distiller, and computes the transfers' losses.

    A layer, so that Keras tracks and saves what is inside. It is never called as one.

    Args:
        students, teachers: `{name: keras.Model}`; teachers may be `kd.sources.Source`s too.
        transfers: list of `kd.Transfer`.
        preprocess: `{node name: layer}`, what makes a node's input from the batch's.

    Raises:
        TypeError, ValueError: see `Distiller`.
    """

    def __init__(self, students, teachers, transfers, preprocess):
        super().__init__(name="graph", dtype="float32", autocast=False)
        wiring.check_nodes(students, teachers)
        self.student_names = list(students)
        self.teacher_names = list(teachers)
        self.source_names = [n for n, node in teachers.items() if isinstance(node, Source)]
        self._followed = wiring.followed({n: teachers[n] for n in self.source_names}, students)
        # One attribute each: PyTorch finds parameters in attributes only, not in dicts.
        for name, model in {**students, **teachers}.items():
            setattr(self, f"node_{name}", model)
        if not isinstance(preprocess, dict):
            raise TypeError(
                "`preprocess` must be a dict from names of nodes to layers. "
                f"Received: preprocess={preprocess!r}"
            )
        self.preprocessed = list(preprocess)
        for name, layer in preprocess.items():
            self._check_preprocess(name, layer)
            setattr(self, f"preprocess_{name}", layer)
        self.edges = wiring.connect_edges(transfers, students, teachers)
        self.transfers = [edge.transfer for edge in self.edges]
        self.trackers = [keras.metrics.Mean(name=edge.log_name) for edge in self.edges]
        self._taps = self._make_taps()
        self._check_networks()

    def node(self, name):
        """The model or source of a node."""
        return getattr(self, f"node_{name}")

    def network(self, name):
        """The network of a node, None for a source without one."""
        node = self.node(name)
        return node.network if isinstance(node, Source) else node

    @property
    def networks(self):
        """`{name: network}` of all nodes that have one."""
        names = [*self.student_names, *self.teacher_names]
        return {n: network for n in names if (network := self.network(n)) is not None}

    def preprocess(self, name):
        """The layer that makes this node's input, or None. A source sees what its student sees."""
        if name in self.preprocessed:
            return getattr(self, f"preprocess_{name}")
        followed = self._followed.get(name)
        return self.preprocess(followed) if isinstance(followed, str) else None

    @property
    def trained_weights(self):
        """What an optimizer updates: the students and the transfers' own layers.

        Teachers are frozen by being left out, not by their `trainable` flags: a layer that a
        teacher shares with a student stays the student's.
        """
        return self.trained_with(*self.student_names)

    def trained_with(self, *students):
        """Those of `trained_weights` that belong to these students."""
        opened = [e for e in self.edges if e.transfer.gate.is_open and e.student in students]
        found = {}
        for part in [*map(self.node, students), *(edge.transfer for edge in opened)]:
            found.update((id(v), v) for v in part.trainable_weights)
        return list(found.values())

    def losses_of_layers(self, student):
        """The regularisers of the layers of losses that serve this student."""
        return [loss for e in self.edges if e.student == student for loss in e.transfer.losses]

    @property
    def metrics(self):
        """The edges' means alone. A network that was compiled before keeps its own to itself."""
        return list(self.trackers)

    @property
    def learned_variables(self):
        """All weights of the students, BatchNorm's statistics too, and of the losses' layers."""
        found = {}
        for name in self.student_names:
            found.update((id(v), v) for v in self.node(name).weights)
        for transfer in self.transfers:
            found.update((id(v), v) for layer in transfer.own_layers for v in layer.weights)
        return list(found.values())

    # Checks before the first step ------------------------------------------------------------

    def _check_preprocess(self, name, layer):
        names = [*self.student_names, *self.teacher_names]
        if name not in names or not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                f"`preprocess` must map names of nodes ({names}) to Keras layers. "
                f"Received: {name}={layer!r}"
            )
        if self.network(name) is None:
            raise ValueError(
                f"`preprocess` makes the input of a network, and '{name}' is a source that holds "
                "outputs. Leave it out, or give it where they are made, as in "
                "`kd.cache_teacher(..., preprocess=...)`"
            )

    def _make_taps(self):
        paths = {name: [] for name in [*self.student_names, *self.teacher_names]}
        for edge in self.edges:
            for name, found in edge.ends:
                paths[name] += [path for path in found if path is not None]
        networks = self.networks
        for name in paths.keys() - networks.keys():
            held = self.node(name).layers_held
            if not set(paths[name]) <= set(held):
                known = f"source_layer=None{f' or one of {list(held)}' if held else ''}"
                raise ValueError(
                    f"Source '{name}' holds outputs and has no layers{' but these' * bool(held)}. "
                    f"Expected a transfer with {known}. Received: source_layer={paths[name]}"
                )
        return {name: Taps(network, paths[name]) for name, network in networks.items()}

    def _check_networks(self):
        nodes = self.networks
        seeing = [name for name in nodes if self.preprocess(name) is not None]
        checks.check_input_shapes(nodes, seeing)
        for name, path in self._logit_ends():
            if path is None or path in (keys_of(nodes[name]) or ()):
                checks.check_logits(name, nodes[name], path)
        specs = {name: checks.input_spec(model) for name, model in nodes.items()}
        if all(spec is not None for spec in specs.values()):
            self._connect(self._raw, specs)

    @property
    def logit_nodes(self):
        """Names of the networks whose output some transfer reads as logits."""
        return sorted({name for name, path in self._logit_ends() if path is None})

    def _logit_ends(self):
        """`(name of a network, path)` of what transfers read as logits; None is its output."""
        ends = [end for e in self.edges if e.transfer.reads_logits for end in e.ends]
        return [(name, path) for name, paths in ends for path in paths if name in self._taps]

    def connect(self, x):
        """Connect networks whose shapes only the first batch tells (subclassed models)."""
        if not self.built:
            self._connect(self.forward, dict.fromkeys(self._taps, spec_of(x)))

    def _connect(self, forward, specs):
        """Learn the shapes that the edges read, check them, build the transfers' own layers."""
        views = output_spec(
            lambda inputs: {name: forward(name, x) for name, x in inputs.items()}, specs
        )
        for name, students in self._followed.items():
            output = self._outputs_of(students, views)
            models = keras.tree.map_structure(self.node, students)
            self.node(name).connect(models, output)
            views.setdefault(name, self.node(name).form(output))
        for edge in self.edges:
            shapes = [
                [tuple(tensor.shape) for tensor in self._read(views, *end)] for end in edge.ends
            ]
            edge.transfer.connect(*shapes)
        self.built = True

    def active_edges(self, training):
        """The edges of a step, without those that a gate cuts off.

        Memories know training data alone, those of sources and those of losses, so `evaluate`
        leaves theirs out. Where one student learns at a time, only the edges to it count.
        """
        opened = [e for e in self.edges if e.transfer.gate.is_open]
        learning = [e for e in opened if learner() in (None, e.student)]
        return [e for e in learning if training or not self._remembers(e)]

    def _remembers(self, edge):
        """Whether an edge's source speaks of training batches alone."""
        remembers = edge.source in self.source_names and self.node(edge.source).remembers
        return (remembers and edge.source not in self._taps) or edge.transfer.needs_ids

    def trackers_of(self, training):
        """The logged means of `active_edges`."""
        active = self.active_edges(training)
        pairs = zip(self.edges, self.trackers, strict=True)
        return [tracker for edge, tracker in pairs if edge in active]

    # One pass --------------------------------------------------------------------------------

    def _raw(self, name, x, training=False):
        output, read = self._taps[name](x, training=training)
        return {"output": output, "taps": read}

    def forward(self, name, x, training=False):
        """One pass of a network: its view, `{"output": ..., "taps": {path: tensor}}`."""
        layer = self.preprocess(name)
        if layer is not None:
            # A teacher's view stays as random as its layer is by itself.
            learns = name in self.student_names and training is not None
            x = in_stage(layer, x, training) if learns else layer(x)
        return self._raw(name, x, training)

    def _read(self, views, name, paths):
        output = views[name]["output"]
        if None in paths and isinstance(output, dict | list | tuple):
            known = list(output) if isinstance(output, dict) else "its output layers"
            raise ValueError(
                f"'{name}' has several outputs, so a transfer must say which as `source_layer` or "
                f"`student_layer`. Expected one of {known}. Received: None"
            )
        return [output if path is None else views[name]["taps"][path] for path in paths]

    def losses_of(self, x, views, context, training):
        """The weighted losses of all edges for one batch, as scalars; updates the trackers.

        Args:
            x: the batch's input, without example ids.
            views: the students' views, and of any teachers that have run on this batch already.
            context: what losses may ask for, see `TransferLoss`.
            training: whether sources see this batch, see `active_edges`.
        """
        edges = self.active_edges(training)
        sources = self.source_names if training else []
        for name in sources:
            self.node(name).update()
        teachers = sorted({edge.source for edge in edges} - set(views))
        said = {name: self._taught(name, x, views, context, training) for name in teachers}
        views = {**views, **said}
        losses = [self._loss_of(edge, x, views, context) for edge in edges]
        for name in sources:
            self.node(name).observe(self._said(name, views), context)
        return losses

    def teachers_views(self, x):
        """The views of the frozen networks that some edge reads, `{name: view}`."""
        edges = self.active_edges(training=True)
        read = {edge.source for edge in edges} - {*self.student_names, *self.source_names}
        return {name: self.forward(name, x) for name in sorted(read)}

    def _taught(self, name, x, views, context, training):
        """What a teacher says: a network's view, or what a source holds."""
        if name not in self.source_names or (not training and name in self._taps):
            return self.forward(name, x)
        said = self._said(name, views)
        return self.node(name).read(lambda: self.forward(name, x), said, context)

    def _said(self, source, views):
        said = self._outputs_of(self._followed[source], views)
        return keras.tree.map_structure(ops.stop_gradient, said)

    def _outputs_of(self, students, views):
        """The output of one student, or a list of those of several."""
        several = isinstance(students, tuple)
        return [views[n]["output"] for n in students] if several else views[students]["output"]

    def _loss_of(self, edge, x, views, context):
        source, student = (self._read(views, *end) for end in edge.ends)
        source = keras.tree.map_structure(ops.stop_gradient, source)
        outputs = [views[name]["output"] for name in (edge.source, edge.student)]
        weight = context["sample_weight"]
        value = edge.transfer.value(source, student, weight, context, outputs)
        batch_size = ops.shape(keras.tree.flatten(x)[0])[0]
        tracker = self.trackers[self.edges.index(edge)]
        tracker.update_state(whole(value), sample_weight=batch_size)
        return value * ops.cast(edge.transfer.weight, value.dtype)
