"""What a distiller does with the arguments of `fit` before Keras gets them."""

from kdtoolkit import checks, placement
from kdtoolkit.ahead import build_ahead
from kdtoolkit.progress import LastCallback, listed, with_progress
from kdtoolkit.steps.skipping import stop_skipping


def prepared(distiller, given):
    """The arguments of `fit`, checked, and with what sources and callbacks need.

    Args:
        distiller: the `Distiller`.
        given: dict of the arguments by name.

    Raises:
        ValueError: see `placement.check`, `checks.before_fit` and the callbacks.
    """
    callbacks = given["callbacks"]
    stop_skipping(distiller)
    placement.check(distiller, {**given, "callbacks": listed(callbacks)})
    x = checks.before_fit(distiller, given["x"], listed(callbacks))
    placement.check_length(distiller, given)
    build_ahead(distiller, x, given["y"])
    given = {**given, "x": x, "callbacks": listed(callbacks)}
    for callback in listed(callbacks):
        if isinstance(callback, LastCallback):
            given = callback.prepare(distiller, given)
    return {**given, "callbacks": with_progress(callbacks)}
