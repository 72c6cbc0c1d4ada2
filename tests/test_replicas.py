"""Two replicas train like one: every loss, and every wiring in one large graph.

On TensorFlow two virtual processors under MirroredStrategy, on JAX two virtual devices under
`keras.distribution.DataParallel`. A replica of TensorFlow sees its part of the batch alone; JAX
computes as if there were one device.
"""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from kdtoolkit.losses.base import BoundLoss, FunctionLoss, TransferLoss
from kdtoolkit.registry import PUBLIC_CLASSES
from kdtoolkit.sources.cohort import COMBINATIONS
from tests import contract, helpers, response_cases
from tests.support import CLASSES, FEATURES, crossentropy, data, dense
from tests.support import largest_difference as difference
from tests.test_contract import CASES as FEATURE_CASES

pytestmark = pytest.mark.core
ON_JAX = keras.backend.backend() == "jax"
EAGER = not ON_JAX
TOLERANCE = 1e-6
#: Examples in a batch; each replica gets half of them.
BATCH = 8

# Where examples meet each other in a loss, two halves of a batch aren't the whole ...
MEETING = {
    "dist",
    "confidence",
    "multi-level",
    "activation boundaries",
    "normalised hint",
    "overhaul",
    "overhaul with margins",
    "review",
    "review of a width",
    *(name for name, case in FEATURE_CASES.items() if case.needs_pairs),
}
# ... nor are they where a loss draws random numbers, the same on all replicas.
RANDOM = {"noisy", "permuted", "generation", "generation of channels"}
# It would keep a bank of its own on each replica of TensorFlow; see `test_contrastive`.
REFUSED = set() if ON_JAX else {"contrastive"}
# Its margins are a mean over the replicas, which then isn't that of either half.
AVERAGED = {"overhaul"}


@pytest.fixture(scope="module")
def spread(request):
    """The scope in which there are two replicas."""
    if not ON_JAX:
        return request.getfixturevalue("two_replicas").scope
    return keras.distribution.DataParallel().scope


# Every loss -----------------------------------------------------------------------------------


def cases():
    """`{name: (loss, source, student, context)}`, the same at each call."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(1)
    found = {}
    for name, (make, _) in response_cases.CASES.items():
        source, student = random.normal(0, 2, (2, BATCH, 5)).astype("float32")
        loss = make(name=None)
        found[name] = loss, source, student, {"labels": np.arange(BATCH) % 5} if loss.needs else {}
    for name, case in FEATURE_CASES.items():
        # JAX compiles them all, so there one of each class is all it is asked for.
        known = {type(loss) for loss, *_ in found.values()} if ON_JAX else ()
        if name in REFUSED or type(case.make()) in known:
            continue
        kind = next(iter(case.shapes))
        source, student, context = contract.features(case, kind, BATCH)
        if "example_id" in context:
            context = {"example_id": np.arange(BATCH, dtype="int32")}
        found[name] = contract.built(case, kind), source, student, context
    return found


def measured(made):
    """`{name: [loss, its gradient by each of the student's features]}`."""
    return {name: _value_and_gradients(*case) for name, case in made.items()}


def _value_and_gradients(loss, source, student, context):
    def value(features):
        # What a loss writes must not outlive JAX's trace.
        with keras.StatelessScope() if ON_JAX else contextlib.nullcontext():
            return BoundLoss(loss, context)(source, features)

    parts = keras.tree.map_structure(keras.ops.convert_to_tensor, student)
    if ON_JAX:
        import jax

        loss, gradients = jax.value_and_grad(value)(parts)
        return [loss, *keras.tree.flatten(gradients)]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(parts)
        total = value(parts)
    return [total, *keras.tree.flatten(tape.gradient(total, parts))]


def on_one(half=None):
    """What one replica measures of a batch, or of one half of it."""
    made = cases()
    if half is not None:
        made = {name: (loss, *halves(inputs)[half]) for name, (loss, *inputs) in made.items()}
    return keras.tree.map_structure(helpers.array, _jitted(made) if ON_JAX else measured(made))


def halves(inputs):
    def part(half):
        return keras.tree.map_structure(lambda a: np.split(np.asarray(a), 2)[half], inputs)

    return part(0), part(1)


def _jitted(made):
    import jax

    losses = {name: loss for name, (loss, *_) in made.items()}

    def run(inputs):
        return measured({name: (losses[name], *inputs[name]) for name in losses})

    return jax.jit(run)({name: inputs for name, (_, *inputs) in made.items()})


def on_two(scope):
    """The same from two replicas: the sum of the losses, the gradients of all examples."""
    with scope():
        return (_on_two_devices if ON_JAX else _on_two_replicas)(cases())


def _on_two_devices(made):
    spread = keras.distribution.distribution()

    def place(array):
        layout = spread.get_data_layout(np.shape(array))
        return keras.distribution.distribute_tensor(np.asarray(array), layout)

    made = {
        name: (loss, *keras.tree.map_structure(place, inputs))
        for name, (loss, *inputs) in made.items()
    }
    return keras.tree.map_structure(helpers.array, _jitted(made))


def _on_two_replicas(made):
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    parts = {name: halves(inputs) for name, (_, *inputs) in made.items()}

    def run():
        half = tf.distribute.get_replica_context().replica_id_in_sync_group
        half = int(tf.get_static_value(half))
        return measured({name: (loss, *parts[name][half]) for name, (loss, *_) in made.items()})

    found = {}
    for name, values in strategy.run(run).items():
        loss, *gradients = [
            map(helpers.array, strategy.experimental_local_results(v)) for v in values
        ]
        found[name] = [sum(loss), *(np.concatenate(list(g)) for g in gradients)]
    return found


@pytest.fixture(scope="module")
def both(spread):
    """`(of one replica, of two)` for every loss."""
    return on_one(), on_two(spread)


@pytest.mark.tensorflow
def test_every_public_loss_is_compared():
    ours = [c for c in PUBLIC_CLASSES.values() if c.__module__.startswith("kdtoolkit.")]
    public = {c for c in ours if issubclass(c, TransferLoss)} - {TransferLoss, FunctionLoss}
    assert public - {type(loss) for loss, *_ in cases().values()} == {
        kd.losses.ContrastiveRepresentation
    }


def test_losses_and_gradients_of_two_replicas_are_those_of_one(both):
    one, two = both
    # On JAX a batch is one, however many devices hold it.
    others = set() if ON_JAX else MEETING | RANDOM
    for name in one.keys() - others:
        for first, second in zip(one[name], two[name], strict=True):
            np.testing.assert_allclose(second, first, rtol=1e-6, atol=TOLERANCE, err_msg=name)
    for name in others:
        assert difference(one[name], two[name]) > 1e-4, f"{name} would be equal"


@pytest.mark.tensorflow
def test_two_replicas_learn_from_the_mean_of_what_each_sees(both):
    # True of all losses; for those whose examples meet, or that draw, it is all that there is.
    first, second = on_one(half=0), on_one(half=1)
    for name in both[1].keys() - AVERAGED:
        loss, *gradients = zip(first[name], second[name], strict=True)
        mean = [sum(loss) / 2, *(np.concatenate(pair) / 2 for pair in gradients)]
        assert difference(both[1][name], mean) < TOLERANCE, name


# Every wiring ---------------------------------------------------------------------------------


def network(seed):
    """A network with two stages, without batch statistics."""
    return kd.models.mlp((FEATURES,), CLASSES, units=(5, 4), seed=seed)


def students_of_one_graph():
    """Students that don't know of each other, unless a transfer below connects them."""
    names = ("offline", "memory", "snapshot", "average", "virtual", "small", "large")
    students = {name: dense(4, seed, norm=False, l2=1e-3) for seed, name in enumerate(names)}
    exits = kd.attach_exits(network(1), ["stage1"], seed=1)
    for layer in exits.layers:
        # Without batch statistics, which are a replica's own on TensorFlow.
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    branches = kd.models.branches
    scaled = layers.Rescaling(0.5), layers.Rescaling(-1.5)
    return {
        **students,
        "exits": exits,
        "one": branches(network(2), "stage1", 2, ensemble="mean", share_gradient=True),
        "others": branches(network(3), "stage1", 2, ensemble=None, others=True),
        "views": kd.two_views(dense(4, 8, norm=False), *scaled),
    }


def teachers_of_one_graph(students):
    peers = {how: kd.sources.PeerEnsemble(["small", "large"], how) for how in COMBINATIONS}
    return {
        "network": dense(8, 9),
        "predictions": kd.sources.PredictionMemory(follows="memory"),
        "best": kd.sources.Snapshot(students["snapshot"], follows="snapshot"),
        "mean": kd.sources.Snapshot(students["average"], decay=0.9, follows="average"),
        "labels": kd.sources.VirtualTeacher(follows="virtual"),
        **peers,
    }


def transfers_of_one_graph(students):
    def edge(source, student, gate=None, loss=None):
        loss = loss or kd.losses.SoftTargets(2.0)
        return kd.Transfer(loss, source=source, student=student, gate=gate, name=f"from_{source}")

    gates = kd.gates.Linear(1.0, 0.0), kd.gates.Correct(), kd.gates.Through(), None
    losses = (
        kd.losses.SoftTargets,
        kd.losses.HardTargets,
        kd.losses.LogitsMSE,
        kd.losses.DecoupledKD,
    )
    gated = [edge("network", "offline", g, loss()) for g, loss in zip(gates, losses, strict=True)]
    for index, transfer in enumerate(gated):
        transfer.name = f"gate{index}"
    taught = {"predictions": "memory", "best": "snapshot", "mean": "average", "labels": "virtual"}
    return [
        *gated,
        *(edge(source, student) for source, student in taught.items()),
        *(edge(how, "small") for how in COMBINATIONS),
        edge("small", "large"),
        *kd.wirings.own_exits(students["exits"], teachers=["network"], student="exits")[0],
        *kd.wirings.one(2, student="one"),
        *kd.wirings.collaborative(2, student="others"),
        *kd.wirings.views(student="views"),
    ]


def trained():
    keras.utils.set_random_seed(0)
    students = students_of_one_graph()
    distiller = kd.Distiller(
        student=students,
        teacher=teachers_of_one_graph(students),
        transfers=transfers_of_one_graph(students),
        label_weight=0.5,
    )
    # A few eager steps take less time than a trace; JAX compiles every operation by itself.
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), run_eagerly=EAGER)
    return distiller


def run(distiller):
    """Two epochs of two steps, each in another order, so that the replicas change examples."""
    x, y = data(16)
    weight = np.linspace(0.5, 1.5, 16).astype("float32")
    train = kd.data.ArrayPipeline(
        x, y, batch_size=8, sample_weight=weight, example_ids=True, seed=1
    )
    callbacks = [kd.callbacks.PeriodicTeacher()]
    history = distiller.fit(train, epochs=3, verbose=0, shuffle=False, callbacks=callbacks)
    sources = distiller.sources.values()
    kept = [source.network.weights for source in sources if source.network is not None]
    kept = sum(kept, start=[distiller.sources["predictions"].table])
    found = [*distiller.learned_variables, *kept]
    return history.history, [keras.ops.convert_to_numpy(v) for v in found]


def test_every_wiring_trains_on_two_replicas_as_on_one(spread):
    logs, weights = run(trained())
    with spread():
        distiller = trained()
        # TensorFlow's strategies want `fit` outside of their scope, distributions of JAX inside.
        two_logs, two_weights = run(distiller) if ON_JAX else (None, None)
    if not ON_JAX:
        two_logs, two_weights = run(distiller)
    assert logs.keys() == two_logs.keys()
    for name in logs:
        np.testing.assert_allclose(two_logs[name], logs[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert len(weights) > 50
    assert difference(weights, two_weights) < TOLERANCE
