"""The losses between relations, in NumPy: entry by entry, with loops."""

import math

import numpy as np

from kdtoolkit.losses.relation.correlation import CorrelationCongruence
from kdtoolkit.losses.relation.distance import RelationalAngle, RelationalDistance
from kdtoolkit.losses.relation.flow import FlowOfSolutions
from kdtoolkit.losses.relation.similarity import ProbabilisticTransfer, SimilarityPreserving
from tests import feature_reference as numpy_layers
from tests.contract import Case


def vectors_of(loss, features):
    """One float64 vector per example."""
    features = np.asarray(features, "float64")
    flat = features.reshape(len(features), -1, features.shape[-1])
    return flat.mean(axis=1) if loss.pool else flat.reshape(len(features), -1)


def matrix(function, vectors):
    """`function(x, y)` of all pairs."""
    return np.array([[function(x, y) for y in vectors] for x in vectors])


def huber(error):
    return np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def _distances(vectors):
    distances = matrix(lambda x, y: np.linalg.norm(x - y), vectors)
    return distances / distances[distances > 0].mean()


def _angles(vectors):
    count = len(vectors)
    angles = np.zeros((count,) * 3)
    for j in range(count):
        for i in range(count):
            for k in range(count):
                if j not in (i, k):
                    angles[j, i, k] = cosine(vectors[i] - vectors[j], vectors[k] - vectors[j])
    return angles


def _similarities(vectors):
    gram = matrix(np.dot, vectors)
    return gram / np.linalg.norm(gram, axis=1, keepdims=True)


def _relational(relation, error):
    def reference(loss, source, student):
        source, student = vectors_of(loss, source), vectors_of(loss, student)
        errors = error(relation(student) - relation(source))
        return errors.reshape(len(errors), -1).mean(axis=1)

    return reference


def _probabilistic(loss, source, student):
    found = []
    source, student = vectors_of(loss, source), vectors_of(loss, student)
    for i in range(len(source)):
        others = [j for j in range(len(source)) if loss.include_self or j != i]
        p, q = (
            np.array([(cosine(vectors[i], vectors[j]) + 1) / 2 for j in others])
            for vectors in (source, student)
        )
        p, q = p / p.sum(), q / q.sum()
        found.append(np.sum(p * np.log((p + 1e-7) / (q + 1e-7))))
    return np.array(found)


def _gaussian(order, gamma):
    def kernel(x, y):
        powers = [(2 * gamma * cosine(x, y)) ** p / math.factorial(p) for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(powers)

    return lambda vectors: matrix(kernel, vectors)


def _flow(first, second):
    """Channels against channels; of two layers of maps the larger is averaged to the smaller."""
    if first.ndim == second.ndim == 4:
        sizes = [layer.shape[1:3] for layer in (first, second)]
        first, second = (numpy_layers.average_pool(x, *min(sizes)) for x in (first, second))
    positions = [x.reshape(len(x), -1, x.shape[-1]) for x in (first, second)]
    pairs = zip(*positions, strict=True)
    return np.array([one.T @ two / len(one) for one, two in pairs])


def _solutions(loss, source, student):
    source = [np.asarray(layer, "float64") for layer in source]
    student = [np.asarray(layer, "float64") for layer in student]
    projectors = iter(loss.layers)
    for index, (old, new) in enumerate(zip(source, student, strict=True)):
        if old.shape[-1] != new.shape[-1]:
            student[index] = numpy_layers.dense(new, numpy_layers.weights_of(next(projectors)))
    total = 0.0
    for index in range(len(source) - 1):
        errors = _flow(*student[index : index + 2]) - _flow(*source[index : index + 2])
        squares = (errors**2).reshape(len(errors), -1)
        total = total + (squares.mean(axis=1) if loss.average else squares.sum(axis=1))
    return total


KINDS = {
    "vectors": ((5,), (3,)),
    "tokens": ((4, 5), (6, 3)),
    "maps": ((2, 2, 5), (4, 4, 3)),
    "map and vector": ((3, 3, 4), (6,)),
}
SEVERAL = {"several": ([(4,), (2, 3)], [(5,), (2, 2)])}
UNKNOWN = ((None, None, 4, 3), (None, 4), "known size")


def between_examples(make, reference, **more):
    """A case of a loss whose pairs of layers add up, and that is 0 for equal features."""

    def sums(loss, source, student):
        if not isinstance(source, list):
            return reference(loss, source, student)
        return sum(reference(loss, *pair) for pair in zip(source, student, strict=True))

    return Case(
        make=make,
        shapes={**KINDS, **more.pop("shapes", {})},
        reference=sums,
        zero_for_equal=True,
        needs_pairs=True,
        refused=(UNKNOWN,),
        **more,
    )


CASES = {
    "relational distance": between_examples(
        lambda **k: RelationalDistance(**k), _relational(_distances, huber), shapes=SEVERAL
    ),
    "flat relational distance": between_examples(
        lambda **k: RelationalDistance(pool=False, **k), _relational(_distances, huber)
    ),
    "relational angle": between_examples(
        lambda **k: RelationalAngle(**k), _relational(_angles, huber), shapes=SEVERAL
    ),
    "flat relational angle": between_examples(
        lambda **k: RelationalAngle(pool=False, **k), _relational(_angles, huber)
    ),
    "similarity": between_examples(
        lambda **k: SimilarityPreserving(**k),
        _relational(_similarities, np.square),
        shapes=SEVERAL,
    ),
    "pooled similarity": between_examples(
        lambda **k: SimilarityPreserving(pool=True, **k), _relational(_similarities, np.square)
    ),
    "probabilistic transfer": between_examples(
        lambda **k: ProbabilisticTransfer(**k), _probabilistic, shapes=SEVERAL
    ),
    "probabilistic transfer with itself": between_examples(
        lambda **k: ProbabilisticTransfer(include_self=True, pool=False, **k), _probabilistic
    ),
    "correlation": between_examples(
        lambda **k: CorrelationCongruence(**k),
        _relational(_gaussian(2, 0.4), np.square),
        shapes=SEVERAL,
    ),
    "correlation of order 3": between_examples(
        lambda **k: CorrelationCongruence(gamma=0.7, order=3, pool=False, **k),
        _relational(_gaussian(3, 0.7), np.square),
    ),
    "bilinear correlation": between_examples(
        lambda **k: CorrelationCongruence(kernel="bilinear", **k),
        _relational(lambda vectors: matrix(cosine, vectors), np.square),
    ),
    "flow": Case(
        # The gradient is cubic in the features.
        extreme=10.0,
        make=lambda **k: FlowOfSolutions(**k),
        shapes={
            "maps": ([(4, 4, 3), (2, 2, 5)], [(4, 4, 2), (2, 2, 5)]),
            "growing maps": ([(2, 2, 3), (4, 4, 5)], [(3, 3, 3), (3, 3, 5)]),
            "three layers": ([(4, 4, 2), (4, 4, 3), (2, 2, 2)], [(2, 2, 3), (2, 2, 2), (2, 2, 2)]),
            "tokens": ([(5, 3), (5, 4)], [(7, 2), (7, 2)]),
            "maps and tokens": ([(4, 4, 3), (2, 2, 5)], [(4, 3), (4, 2)]),
            "vectors": ([(3,), (4,)], [(2,), (5,)]),
        },
        reference=_solutions,
        zero_for_equal=False,
        refused=(
            ((None, 4, 4, 3), (None, 4, 4, 3), r"at least 2 layers.*shallow to deep"),
            ([(None, 4, 4, 3)], [(None, 4, 4, 3)], "at least 2 layers"),
            ([(None, 4), (None, 4)], [(None, 4)] * 3, "pair by pair.*2 layers.*3 layers"),
            ([(None, 4), (None, None, 4)], [(None, 4), (None, 4)], "known size"),
            ([(None, 12, 3), (None, 2, 2, 3)], [(None, 4), (None, 4)], "12 tokens form none"),
        ),
    ),
    "summed flow": Case(
        extreme=10.0,
        make=lambda **k: FlowOfSolutions(average=False, **k),
        shapes={"equal": ([(4, 4, 3), (2, 2, 5)], [(4, 4, 3), (2, 2, 5)])},
        reference=_solutions,
        zero_for_equal=True,
    ),
}
