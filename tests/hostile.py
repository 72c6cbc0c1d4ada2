"""Hostile input: what is given to the toolkit, and what counts as an answer.

The rule. Each call ends in one of two ways:

* a right answer: of the promised shape, without NaN where every number given was finite (infinite
  only where the true value is beyond float32), not negative where that is promised, and equal to a
  simple reference where there is one. What takes a softmax gives no NaN for logits of 1e30 either;
  of features and relations whose products leave float32, that is beyond 1e15, NaN and infinity are
  right, since nothing else would show it;
* an error of ours: ValueError, TypeError, NotImplementedError or a file error, raised inside of
  kdtoolkit, with a message in words.

NaN and infinity in the data are no error: a compiled step can't raise. They must be seen, though:
an example with a NaN in it gets a value that isn't finite. A logit of -inf is a class that is ruled
out, and may give any value but a wrong one.

Everything else is a failure: an error from the depths of Keras, a backend or NumPy; NaN from finite
numbers; a finite number from NaN.
"""

import dataclasses
import math
import pathlib
import re
import warnings
from collections.abc import Callable

import keras
import numpy as np
from hypothesis import strategies as st

import kdtoolkit as kd
from kdtoolkit import functional
from tests import (
    cases_attention,
    cases_contrastive,
    cases_generative,
    cases_hints,
    cases_relation,
    contract,
    reference,
    response_cases,
)
from tests.helpers import array

PACKAGE = str(pathlib.Path(kd.__file__).parent)
OURS = (ValueError, TypeError, NotImplementedError, FileNotFoundError, FileExistsError)
#: What Keras says of its own arguments, where ours are handed on to it.
KERAS_SAYS = re.compile(
    r"incompatible with the layer|Invalid input shape|Unrecognized data type: [xy]="
    r"|Data cardinality is ambiguous|Argument `seed` must be an integer"
    r"|Invalid value received for argument `rate`|Invalid value for argument l2"
    r"|invalid value for `units`|"
    r"Invalid value for argument `?reduction|`name` must be a string|Argument `name` must be"
    r"|Cannot interpret `dtype`|Invalid dtype|`?dtype`? .*must be|optimizer"
)
LARGE = 1e15


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Args:
        area, name: what is called.
        run: `run() -> value`.
        check: `check(value)` raises an AssertionError that says what is wrong.
        given: what to print of the arguments.
    """

    area: str
    name: str
    run: Callable
    check: Callable
    given: object = None


def judge(call):
    """`("right" | "ours" | "failure", why)`."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            call.check(call.run())
    except AssertionError as error:
        return "failure", f"{error}"
    except Exception as error:
        flaw = strange(error)
        return ("failure", flaw) if flaw else ("ours", "")
    return "right", ""


def strange(error):
    """What keeps an error from being one of ours; None for those that are."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    file, line = frames[-1]
    text = str(error)
    # Python's own, which names the file.
    if isinstance(error, OSError) and error.filename:
        return None
    told = isinstance(error, OURS) and len(text) > 30 and len(text.split()) > 4
    if told and (file.startswith(PACKAGE) or KERAS_SAYS.search(text)):
        return None
    ours = [f"{pathlib.Path(f).name}:{n}" for f, n in frames if f.startswith(PACKAGE)]
    where = f"{pathlib.Path(file).name}:{line}"
    return f"{type(error).__name__} at {where} below {ours[-2:]}: {text[:300]}"


# Arrays -----------------------------------------------------------------------------------------

CONTENTS = ("normal", "ones", "zeros", "large", "huge", "tiny", "nan", "inf", "-inf")
DTYPES = ("float32",) * 8 + ("float16", "float64", "int32", "int8", "bool", "complex64", "U1")
SHAPES = st.lists(st.integers(0, 4), max_size=5).map(tuple)


def filled(shape, content, dtype, seed):
    """An array of a kind of content; text has no content but itself."""
    random = np.random.default_rng(seed)
    values = random.normal(size=shape)
    size = {"zeros": 0.0, "large": 1e4, "huge": 1e30, "tiny": 1e-30}.get(content, 1.0)
    values = np.ones(shape) if content == "ones" else values * size
    if content in ("nan", "inf", "-inf") and values.size:
        values.flat[random.integers(values.size)] = float(content)
    if dtype == "U1":
        return np.full(shape, "a")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return values.astype(dtype)


@st.composite
def arrays(draw, shape, alike=9):
    """Mostly of the shape given, float32 and ordinary."""
    if draw(st.integers(0, 9)) >= alike:
        shape = draw(SHAPES)
    content = draw(st.sampled_from(("normal",) * 6 + CONTENTS))
    dtype = draw(st.sampled_from(DTYPES))
    return filled(shape, content, dtype, draw(st.integers(0, 99)))


SOMETHING_ELSE = st.sampled_from(
    [None, "text", {}, [], [1.0, "a"], 3, object(), [[1.0], [2.0, 3.0]]]
)


def mostly(strategy, other=SOMETHING_ELSE, of=25):
    return st.integers(0, of).flatmap(lambda n: other if n == of else strategy)


TEMPERATURES = (1.0,) * 6 + (
    4, 0.5, 1e3, 1e-3, 1e30, 1e-30, 1e9, 0, 0.0, -1.0, math.nan, math.inf, None, "4", True,
    np.float32(2.0), np.float64(-2.0), np.array(3.0), np.array([1.0, 2.0]), 1j, 10**400, [],
)  # fmt: skip


def number(value):
    """A finite number > 0, or NaN."""
    try:
        found = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if found > 0 and math.isfinite(found) else math.nan


@st.composite
def labels_for(draw, shape):
    classes = shape[-1] if shape else 0
    kind = draw(st.sampled_from(("numbers",) * 5 + ("column", "soft", "out", "floats", "any")))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    numbers = random.integers(max(classes, 1), size=shape[:-1])
    if kind == "column":
        return numbers[..., None]
    if kind == "soft":
        return random.dirichlet(np.ones(max(classes, 1)), size=shape[:-1])
    if kind == "out":
        return numbers - 2 if draw(st.booleans()) else numbers + 7
    if kind == "any":
        return draw(mostly(arrays(shape[:-1], 5), of=4))
    return numbers.astype("float32") if kind == "floats" else numbers


def is_numeric(value):
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def facts(values):
    """`(all finite, largest size, has NaN)` of what was given."""
    leaves = [np.asarray(v, "float64") for v in keras.tree.flatten(values) if is_numeric(v)]
    finite = all(np.all(np.isfinite(v)) for v in leaves)
    largest = max((np.max(np.abs(v), initial=0) for v in leaves), default=0)
    return finite, largest, any(np.any(np.isnan(v)) for v in leaves)


def check_numbers(value, given, each=None, positive=False, factor=1.0, strict=False):
    """The rule for numbers.

    Args:
        value: what came out, any structure.
        given: what went in.
        each: number of examples, where there is a value for each, else None.
        positive: whether a negative number is wrong.
        factor: by what rounding is multiplied.
        strict: whether NaN is wrong also where products of what was given leave float32.
    """
    finite, largest, _ = facts(given)
    for leaf in keras.tree.flatten(value):
        leaf = array(leaf)
        if each is not None:
            assert leaf.shape == (each,), f"shape {leaf.shape} for {each} examples"
        if finite:
            nan = np.any(np.isnan(leaf)) and (strict or largest <= LARGE)
            assert not nan, f"NaN from finite numbers: {leaf}"
            assert largest > LARGE or np.all(np.isfinite(leaf)), f"infinite: {leaf}"
            if positive and leaf.size and largest <= LARGE:
                assert leaf.min() >= -1e-4 * factor * max(1.0, largest), f"negative: {leaf}"
        if each is not None:
            check_nan_is_seen(leaf, given)


def check_nan_is_seen(leaf, given):
    for one in keras.tree.flatten(given):
        if is_numeric(one) and one.dtype.kind == "f" and one.ndim and len(one) == len(leaf):
            broken = np.isnan(one.reshape(len(one), -1)).any(axis=1) if one.size else []
            seen = ~np.isfinite(leaf[broken]) if len(broken) else np.ones(1, bool)
            assert np.all(seen), f"finite from NaN: {leaf}"


# Functions --------------------------------------------------------------------------------------

#: name: (roles of the arguments, what is returned, whether it is never negative). Roles: z logits,
#: y labels, t temperature, k list of logits, f features, v vectors, p power.
FUNCTIONS = {
    "kl_divergence": ("zzt", "each", True),
    "cross_entropy": ("zz", "each", False),
    "soft_cross_entropy": ("zzt", "each", True),
    "hard_target_cross_entropy": ("zz", "each", True),
    "mixed_target_cross_entropy": ("zzyst", "each", False),
    "confidence_weighted_cross_entropy": ("zzy", "each", False),
    "logits_mse": ("zz", "each", True),
    "decoupled_kd": ("zzyt", "each", True),
    "inter_class_relation": ("zzt", "each", True),
    "intra_class_relation": ("zzt", "any", True),
    "squared_divergence": ("zzt", "each", True),
    "logistic_divergence": ("zzt", "each", True),
    "batch_relation": ("zzt", "each", True),
    "class_relation": ("zzt", "any", True),
    "log_probabilities": ("zt", "same", False),
    "standardise": ("z", "same", False),
    "confidence_weights": ("z", "any", True),
    "pearson_correlation": ("zz", "any", False),
    "at_least_float32": ("f", "same", False),
    "per_example": ("f", "each", False),
    "label_distribution": ("yz", "any", False),
    "class_numbers": ("yz", "any", False),
    "mean_probabilities": ("k", "any", False),
    "mean_logits": ("k", "any", False),
    "min_logits": ("ky", "any", False),
    "best_logits": ("ky", "any", False),
    "best_mixture": ("ky", "any", False),
    "attention": ("fp", "any", True),
    "as_tokens": ("f", "any", False),
    "as_vectors": ("f", "any", False),
    "pooled": ("f", "any", False),
    "unit_vectors": ("v", "same", False),
    "gram_matrix": ("v", "any", False),
    "cosine_similarities": ("v", "any", False),
    "pairwise_distances": ("v", "any", True),
    "angle_cosines": ("v", "any", False),
    "flow_matrix": ("ff", "any", False),
}


#: What works with the softmax of any finite logits.
IN_LOG_SPACE = {name for name, (roles, *_) in FUNCTIONS.items() if "t" in roles} | {
    "hard_target_cross_entropy", "confidence_weighted_cross_entropy", "mean_probabilities"
}  # fmt: skip


@st.composite
def function_calls(draw):
    name = draw(st.sampled_from(sorted(FUNCTIONS)))
    roles, returns, positive = FUNCTIONS[name]
    middle = draw(st.sampled_from([(), (), (), (2,), (2, 2)]))
    shape = (draw(st.integers(0, 3)), *middle, draw(st.sampled_from([0, 1, 2, 3, 3, 4])))
    makers = {
        "z": mostly(arrays(shape)),
        "f": mostly(arrays(shape)),
        "v": mostly(arrays((shape[0], shape[-1]))),
        "y": mostly(labels_for(shape)),
        "k": mostly(st.lists(arrays(shape), max_size=3)),
        "t": st.sampled_from(TEMPERATURES),
        "s": st.sampled_from((0.5,) * 6 + (0, 1, 1.5, -1, math.nan, None, "1")),
        "p": st.sampled_from((2.0,) * 4 + (1, 3.5, 0, -1, 100, math.nan, None, "2")),
    }
    given = [draw(makers[role]) for role in roles]
    temperature = given[roles.index("t")] if "t" in roles else 1.0
    function = getattr(functional, name)

    def check(value):
        assert not math.isnan(number(temperature)), f"accepted the temperature {temperature}"
        first = next((g for g in given if is_numeric(g)), None)
        # Without a batch there is one value.
        rank = 1 if name == "per_example" else 2
        many = first is not None and first.ndim >= rank and returns == "each"
        each = len(first) if many else None
        if returns == "same":
            assert tuple(value.shape) == np.shape(given[0])
        factor = max(1.0, number(temperature) ** 2)
        check_numbers(value, given, each, positive, factor, strict=name in IN_LOG_SPACE)
        _check_reference(name, given, value)

    return Call("functional", name, lambda: function(*given), check, given)


def _check_reference(name, given, value):
    """Where NumPy can say it in a line: logits of ordinary size."""
    expected = getattr(reference, name, None)
    finite, largest, _ = facts(given)
    plain = name in ("kl_divergence", "soft_cross_entropy", "logits_mse")
    if plain and finite and largest < 50 and np.ndim(given[0]) == 2 and len(given[0]):
        rest = [float(t) for t in given[2:]]
        if rest and not 0.1 <= rest[0] <= 100:
            return
        numbers = [np.asarray(g, "float64") for g in given[:2]]
        size = (rest or [1.0])[0] ** 2
        np.testing.assert_allclose(array(value), expected(*numbers, *rest), 1e-3, 1e-4 * size)


# Losses -----------------------------------------------------------------------------------------

CASES = {
    **cases_attention.CASES,
    **cases_contrastive.CASES,
    **cases_generative.CASES,
    **cases_hints.CASES,
    **cases_relation.CASES,
}
RANDOM = ("permuted", "noisy")


@st.composite
def response_loss_calls(draw):
    name = draw(st.sampled_from(sorted(response_cases.CASES)))
    middle = draw(st.sampled_from([(), (), (2,)]))
    shape = (draw(st.integers(0, 3)), *middle, draw(st.sampled_from([1, 2, 3, 3, 4])))
    given = [draw(mostly(arrays(shape))) for _ in range(2)]
    labels = draw(mostly(labels_for(shape)))
    loss = response_cases.CASES[name][0](reduction=None)

    def run():
        return response_cases.call(loss, given[0], given[1], labels)

    def check(value):
        both = [*given, labels] if loss.needs else given
        each = len(given[1]) if isinstance(given[1], np.ndarray) and given[1].ndim else None
        positive = name not in ("noisy", "mixed", "confidence")
        check_numbers(value, both, each, positive, 400.0)

    return Call("response losses", name, run, check, [*given, labels])


@st.composite
def feature_loss_calls(draw):
    name = draw(st.sampled_from(sorted(CASES)))
    case = CASES[name]
    kind = draw(st.sampled_from(sorted(case.shapes)))
    batch = draw(st.sampled_from([0, 1, 2, 4, 4]))
    ends = [
        contract.like(end, [draw(mostly(arrays((batch, *one), 29), of=40)) for one in
                            contract.as_list(end)])
        for end in case.shapes[kind]
    ]  # fmt: skip
    context = case.context(batch)

    def run():
        loss = _built(name, kind)
        y_true = {"source": ends[0], **context} if loss.needs else ends[0]
        return loss(y_true, ends[1])

    def check(value):
        positive = name not in ("variational information", "narrow variational information")
        check_numbers(value, ends, batch, positive, 10.0)

    # What a loss keeps of a batch with NaN is NaN from then on.
    def tidied():
        try:
            return run()
        finally:
            if not all(facts(end)[0] and facts(end)[1] <= LARGE for end in ends):
                _LOSSES.pop((name, kind), None)

    return Call("feature losses", name, tidied, check, (kind, ends))


_LOSSES = {}


def _built(name, kind):
    if (name, kind) not in _LOSSES:
        keras.utils.set_random_seed(0)
        _LOSSES[name, kind] = contract.built(CASES[name], kind, reduction=None)
    return _LOSSES[name, kind]


NUMBERS = {
    "functional": function_calls(),
    "response losses": response_loss_calls(),
    "feature losses": feature_loss_calls(),
}
