"""What all loss landscapes measure with: a probe, and a bar that says how far it is."""

import contextlib
import functools

from kdtoolkit.evaluation.extras import require


@contextlib.contextmanager
def measuring(points, title, progress):
    """Gives `Probe`, whose measurements move a bar; without rich or a terminal, no bar.

    Args:
        points: int, the number of measurements to come.
        title: str, what the bar says.
        progress: bool, whether to show one.

    Yields:
        `Probe` without its argument `advance`.
    """
    # The probe needs Keras, which the rest of this package does without.
    from kdtoolkit.evaluation.probe import Probe

    with _bar(points, title, progress) as advance:
        yield functools.partial(Probe, advance=advance)


@contextlib.contextmanager
def _bar(points, title, progress):
    try:
        rich = require("rich.progress") if progress else None
    except ImportError:
        rich = None
    if rich is None:
        yield lambda: None
        return
    console = require("rich.console").Console(stderr=True)
    shown = console.is_terminal or console.is_jupyter
    with rich.Progress(console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(title, total=points)
        yield lambda: bar.advance(task)
