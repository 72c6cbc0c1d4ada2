"""Loss landscapes as figures. Each function returns its figure, and writes it if told where."""

import numpy as np

from kdtoolkit.evaluation.extras import require
from kdtoolkit.evaluation.files import written
from kdtoolkit.evaluation.landscape import curves_of, mean_and_sd

_MARKERS = "os^Dvp"
_NOISE = {
    False: "Noise σ (raw)",
    True: "Noise σ (share of each tensor's root mean square)",
}
_LOSS = {False: "Loss", True: "log10 of the loss"}


def plot_noise_curves(rows, path=None, *, title=None, log=False, overwrite=False):
    """Draws the loss against the size of the noise: one line per network.

    Lines are means over the draws, bands one standard deviation to each side. Raw and relative
    scales get a panel each, side by side. Values that aren't finite are left out.

    Args:
        rows: iterable of rows of `noise_curve`, of several calls if you like.
        path: a file to write, or None. Its ending, such as `.png` or `.pdf`, is the format.
        title: str or None.
        log: bool. True makes the axis of the loss logarithmic.
        overwrite: bool. True replaces an existing file. Defaults to False.

    Returns:
        A `matplotlib.figure.Figure`. It belongs to no window; Jupyter shows it.

    Raises:
        FileExistsError: if the file exists and `overwrite` is False.
        ValueError: as `noise_summary`, or for a `path` without a known ending.
        ImportError: without matplotlib.

    Example:

    ```python
    rows = kdtoolkit.evaluation.noise_curve(models, x, y)
    rows += kdtoolkit.evaluation.noise_curve(models, x, y, relative=True)
    kdtoolkit.evaluation.plot_noise_curves(rows, "noise.png")
    ```
    """
    table = curves_of(rows)
    kinds = sorted({relative for _, relative in table})
    figure = _figure(title, width=5.5 * len(kinds))
    panels = dict(zip(kinds, np.atleast_1d(figure.subplots(1, len(kinds))), strict=True))
    for index, name in enumerate(dict.fromkeys(name for name, _ in table)):
        for relative in kinds:
            if (name, relative) in table:
                _draw_band(panels[relative], table[name, relative], name, index)
    for relative, axes in panels.items():
        _label(axes, _NOISE[relative], "Loss, mean ± sd over draws")
        axes.set_yscale("log" if log else "linear")
        axes.legend()
    return written(figure, path, overwrite)


def plot_line(rows, path=None, *, title=None, log=False, overwrite=False):
    """Draws the loss along a line: one curve per network.

    Args:
        rows: iterable of rows of `landscape_line` or `interpolation`, of several calls if you like.
        path, title, log, overwrite: as in `plot_noise_curves`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: without rows, or for a `path` without a known ending.
        FileExistsError, ImportError: as `plot_noise_curves`.

    Example:

    ```python
    rows = kdtoolkit.evaluation.interpolation(first, second, x, y)
    kdtoolkit.evaluation.plot_line(rows, "between.png", log=True)
    ```
    """
    rows = _some(rows)
    figure = _figure(title)
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["model"] for row in rows):
        points = sorted((row["alpha"], row["loss"]) for row in rows if row["model"] == name)
        alphas, losses = np.array(points).T
        axes.plot(alphas, _finite(losses), label=str(name))
    _label(axes, "Position α", "Loss")
    axes.set_yscale("log" if log else "linear")
    axes.legend()
    return written(figure, path, overwrite)


def plot_contours(rows, path=None, *, title=None, log=False, levels=15, overwrite=False):
    """Draws the loss over a plane as contour lines; a cross marks the network.

    Args:
        rows: iterable of rows of one `landscape_surface`.
        path, title, overwrite: as in `plot_noise_curves`.
        log: bool. True spaces the lines equally in log10 of the loss, which then labels them.
        levels: about how many lines, int, or a list of their values.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: without rows, for rows that are no grid of one network, or for a `path` without
            a known ending.
        FileExistsError, ImportError: as `plot_noise_curves`.

    Example:

    ```python
    rows = kdtoolkit.evaluation.landscape_surface(model, x, y, points=(15, 15))
    kdtoolkit.evaluation.plot_contours(rows, "contours.png", log=True)
    ```
    """
    alphas, betas, losses = _grid(rows, log)
    figure = _figure(title, width=5.0)
    axes = figure.add_subplot()
    axes.clabel(axes.contour(alphas, betas, losses, levels), fontsize=7)
    axes.plot(0, 0, "k+")
    axes.set_aspect("equal")
    axes.set_title(_LOSS[log], fontsize="medium")
    _label(axes, "Position α", "Position β")
    return written(figure, path, overwrite)


def plot_surface(rows, path=None, *, title=None, log=False, overwrite=False):
    """Draws the loss over a plane as a surface in three dimensions.

    Args:
        rows, path, title, overwrite: as in `plot_contours`.
        log: bool. True draws log10 of the loss.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError, FileExistsError, ImportError: as `plot_contours`.

    Example:

    ```python
    kdtoolkit.evaluation.plot_surface(rows, "surface.png", log=True)
    ```
    """
    alphas, betas, losses = _grid(rows, log)
    figure = _figure(title)
    axes = figure.add_subplot(projection="3d")
    axes.plot_surface(*np.meshgrid(alphas, betas), losses, cmap="viridis")
    axes.locator_params(nbins=5)
    _label(axes, "Position α", "Position β")
    axes.set_zlabel(_LOSS[log])
    return written(figure, path, overwrite)


def _draw_band(axes, curves, name, index):
    mean, sd = np.array([mean_and_sd(column) for column in _finite(curves["loss"]).T]).T
    style = {"color": f"C{index}", "marker": _MARKERS[index % len(_MARKERS)], "markersize": 4}
    axes.plot(curves["scale"], mean, label=str(name), **style)
    low, high = mean - np.nan_to_num(sd), mean + np.nan_to_num(sd)
    axes.fill_between(curves["scale"], low, high, color=f"C{index}", alpha=0.2, linewidth=0)


def _grid(rows, log):
    """Rows of a surface as arrays: alphas `(a,)`, betas `(b,)`, losses `(b, a)`."""
    rows = _some(rows)
    losses = {(row["beta"], row["alpha"]): row["loss"] for row in rows}
    alphas, betas = (sorted({row[key] for row in rows}) for key in ("alpha", "beta"))
    models = {row["model"] for row in rows}
    if len(models) > 1 or not len(rows) == len(losses) == len(alphas) * len(betas):
        raise ValueError(
            "The rows must be those of one surface of one network. Received: "
            f"{len(rows)} rows with {len(alphas)} x {len(betas)} positions of {sorted(models)}"
        )
    losses = _finite(np.array([[losses[beta, alpha] for alpha in alphas] for beta in betas]))
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            losses = _finite(np.log10(losses))
    return np.array(alphas), np.array(betas), losses


def _some(rows):
    rows = list(rows)
    if not rows:
        raise ValueError("There must be rows to draw. Received: none")
    return rows


def _finite(values):
    """The values with NaN, a gap in a line, in place of infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def _figure(title, width=6.0):
    # Without pyplot there is no global state, no window and nothing to close.
    figure = require("matplotlib.figure").Figure(figsize=(width, 4.2), layout="constrained")
    if title is not None:
        figure.suptitle(title)
    return figure


def _label(axes, x, y):
    axes.set_xlabel(x)
    axes.set_ylabel(y)
