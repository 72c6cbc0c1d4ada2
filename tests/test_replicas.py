"""Two replicas train like one: every loss, and every wiring in one large graph.

On TensorFlow two virtual processors under MirroredStrategy, on JAX two virtual devices under
`keras.distribution.DataParallel`. A replica of TensorFlow sees its part of the batch alone; JAX
computes as if there were one device.
"""

import contextlib

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit import losses, wirings
from kdtoolkit.losses.base import BoundLoss, TransferLoss
from kdtoolkit.registry import PUBLIC_CLASSES
from tests import contract, helpers, response_cases
from tests.support import CLASSES, FEATURES, arrays, crossentropy, data, dense, fit
from tests.support import largest_difference as difference
from tests.test_contract import CASES

pytestmark = pytest.mark.core
ON_JAX = keras.backend.backend() == "jax"
TOLERANCE = 1e-6
BATCH = 8

# What a loss makes of a part of the batch differs where examples meet each other ...
MEETING = {
    "dist", "confidence", "multi-level",
    "normalised hint", "overhaul", "overhaul with margins", "review",
}
# ... or draw random numbers.
RANDOM = {"noisy", "permuted", "generation", "generation of channels"}
# It would keep a bank on each replica of TensorFlow; see `test_contrastive`.
REFUSED = {"contrastive"}


@pytest.fixture(scope="module")
def spread(request):
    """The scope in which two replicas are made."""
    if not ON_JAX:
        return request.getfixturevalue("two_replicas").scope
    return keras.distribution.DataParallel().scope


def cases():
    """`{name: (loss, source, student, context)}` of every public loss."""
    keras.utils.set_random_seed(0)
    found = {}
    random = np.random.default_rng(1)
    for name, (make, _) in response_cases.CASES.items():
        source, student = random.normal(0, 2, (2, BATCH, 5)).astype("float32")
        loss = make(name=None)
        labels = {"labels": np.arange(BATCH) % 5} if loss.needs else {}
        found[name] = loss, source, student, labels
    for name, case in CASES.items():
        kind = next(iter(case.shapes))
        found[name] = contract.built(case, kind), *contract.features(case, kind, BATCH)
    return found


def value_and_gradients(loss, source, student, context):
    """The loss as an edge computes it, and its gradients by the student's features."""
    def value(features):
        with keras.StatelessScope() if ON_JAX else contextlib.nullcontext():
            return BoundLoss(loss, context)(source, features)

    found = [value(student)]
    for index, part in enumerate(contract.as_list(student)):
        def total(x, index=index):
            others = list(contract.as_list(student))
            others[index] = x
            return value(contract.like(student, others))
        found.append(helpers.gradient_tensor(total, part))
    return found


def all_of(losses, inputs):
    return {name: value_and_gradients(losses[name], *inputs[name]) for name in losses}


def test_x(spread):
    made = cases()
    ls = {n: c[0] for n, c in made.items() if ON_JAX or n not in REFUSED}
    ins = {n: c[1:] for n, c in made.items()}
    import time; t=time.time()
    whole = on_one(ls, ins); print("one", time.time()-t)
    half = [on_one({n: c[0] for n, c in cases().items() if n in ls}, part(ins, i)) for i in range(2)]; print("halves", time.time()-t)
    two = on_two(spread, ins); print("two", time.time()-t)
    for n in ls:
        joined = [sum(h[n][0] for h in half)/2] + [np.concatenate(g)/2 for g in zip(*(h[n][1:] for h in half))]
        print(n, type(ls[n]).__name__, difference(two[n], whole[n]), difference(two[n], joined))

def part(ins, i):
    h = BATCH//2
    return keras.tree.map_structure(lambda a: a[i*h:(i+1)*h] if getattr(a,"ndim",0) else a, ins)

def on_one(ls, ins):
    if ON_JAX:
        import jax
        out = jax.jit(lambda ins: all_of(ls, ins))(ins)
    else:
        out = all_of(ls, keras.tree.map_structure(keras.ops.convert_to_tensor, ins))
    return keras.tree.map_structure(helpers.array, out)

def on_two(spread, ins):
    if ON_JAX:
        import jax
        d = keras.distribution.DataParallel()
        ls = {n: c[0] for n, c in cases().items()}
        ins = keras.tree.map_structure(lambda a: keras.distribution.distribute_tensor(np.asarray(a), d.get_data_layout(np.shape(a))), ins)
        return keras.tree.map_structure(helpers.array, jax.jit(lambda ins: all_of(ls, ins))(ins))
    import tensorflow as tf
    strategy = tf.distribute.get_strategy()
    with spread():
        strategy = tf.distribute.get_strategy()
        import time; t=time.time(); ls = {n: c[0] for n, c in cases().items() if n not in REFUSED}; print("making", time.time()-t)
    ins = {n: v for n, v in ins.items() if n in ls}
    parts = [part(ins, i) for i in range(2)]
    flat = [keras.tree.flatten(p) for p in parts]
    per = [strategy.experimental_distribute_values_from_function(lambda c, i=i: tf.convert_to_tensor(flat[c.replica_id_in_sync_group][i])) for i in range(len(flat[0]))]
    def run(per):
        return strategy.run(lambda per: all_of(ls, keras.tree.pack_sequence_as(parts[0], per)), args=(per,))
    out = run(per)
    res = {}
    for n, vals in out.items():
        first, *g = [strategy.experimental_local_results(v) for v in vals]
        res[n] = [helpers.array(sum(first))] + [np.concatenate([helpers.array(k) for k in a]) for a in g]
    return res
