"""How the loss rises when noise is added to trained weights."""

import math
from collections.abc import Iterable

import keras
import numpy as np

from kdtoolkit.evaluation import weights
from kdtoolkit.evaluation.measuring import measuring


def noise_curve(
    models,
    x,
    y,
    *,
    loss=None,
    scales=(0.0, 0.01, 0.02, 0.05, 0.1, 0.2),
    draws=5,
    relative=False,
    include="kernels",
    output=None,
    batch_size=256,
    seed=0,
    progress=True,
):
    """Measures loss and accuracy of networks while Gaussian noise is added to their weights.

    For a weight tensor w, a scale s and a draw of standard normal numbers e:

        relative=False:  w' = w + s * e
        relative=True:   w' = w + s * sqrt(mean(w ** 2)) * e

    The draws depend on `seed`, the number of the draw and the place of the tensor among the
    trainable weights, and on nothing else. So networks of one architecture get the same draws, and
    all scales of a draw go along one line from the trained weights. Moving statistics stay, and the
    networks run in inference mode. Their weights are put back to the bit, also after an error.

    Raw scales measure the size of the weights as well: a network with weights twice as large is hit
    half as hard, though normalisation layers may make it the same function. Show both kinds.

    Source: Zhang et al., 2018, arXiv:1706.00384, who compare the training loss of networks
    under noise on their weights. The relative scale and which weights are moved are our choices.

    Args:
        models: dict of names and built networks, one network, or a list of networks with
            different names.
        x: array `(examples, ...)`, or a dict or tuple of such arrays: the *training* inputs, or a
            fixed part of them.
        y: array of labels, as the loss reads them.
        loss: Keras loss, its name, or a function `(y, prediction)`, giving a mean over the batch
            or one value per example. Defaults to sparse cross-entropy from logits.
        scales: numbers >= 0, one or more above 0. 0 is added where it is missing.
        draws: int >= 1.
        relative: bool. Defaults to False, the raw scale.
        include: which trainable weights are moved. "kernels" (default): those with two axes or
            more, without biases, normalisation, tokens, position embeddings and embedding tables,
            which are told by their names. "trainable": all. Or a function `variable -> bool`.
        output: key of the output to measure, for networks that return a dict or a list.
        batch_size: int >= 1. It decides time and memory, not the result.
        seed: int >= 0.
        progress: bool. True shows a bar in a terminal or notebook, if rich is installed.

    Returns:
        A list of rows for `noise_summary`, `loss_rise`, `plot_noise_curves` and `write_csv`: dicts
        of `model`, `scale`, `relative`, `draw`, `loss` (the mean over the examples, possibly
        infinite or NaN) and `accuracy` (from 0 to 1; NaN where `y` are no class labels).

    Raises:
        ValueError: for arguments outside these ranges, `x` and `y` of different length, two
            networks of one name, a network without such weights, or an unknown `output`.

    Example:
        >>> import keras, numpy as np
        >>> from kdtoolkit import evaluation
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="out")])
        >>> x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
        >>> rows = evaluation.noise_curve({"net": model}, x, y, loss="mse", scales=[0.1], draws=3)
        >>> len(rows), rows[1]["scale"]
        (6, 0.1)
    """
    named, scales = _named(models), _checked_scales(scales)
    if draws < 1 or seed < 0:
        raise ValueError(
            f"`draws` must be 1 or more, `seed` 0 or more. Received: {draws=}, {seed=}"
        )
    chosen = {name: weights.chosen(model, include) for name, model in named.items()}
    points = len(named) * (1 + draws * (len(scales) - 1))
    rows = []
    with measuring(points, "Noise curves", progress) as probe:
        for name, model in named.items():
            measure = probe(model, x, y, loss, output, batch_size)
            curve = _curve(measure, chosen[name], scales, draws, bool(relative), seed)
            rows += [{"model": name, **row} for row in curve]
    return rows


def noise_summary(rows):
    """Means and standard deviations over the draws of `noise_curve`.

    Args:
        rows: iterable of rows of `noise_curve`, of several calls if you like.

    Returns:
        A list of dicts, one per model, kind of scale and scale: `model`, `relative`, `scale`,
        `draws`, `loss_mean`, `loss_sd`, `accuracy_mean`, `accuracy_sd`. Deviations have `draws - 1`
        in the denominator, and are NaN for one draw or where a value isn't finite.

    Raises:
        ValueError: without rows, or for draws that haven't the same scales.

    Example:

    ```python
    kdtoolkit.evaluation.write_csv(kdtoolkit.evaluation.noise_summary(rows), "noise.csv")
    ```
    """
    lines = []
    for (model, relative), curves in curves_of(rows).items():
        for index, scale in enumerate(curves["scale"].tolist()):
            line = {"model": model, "relative": relative, "scale": scale}
            line["draws"] = len(curves["loss"])
            for value in ("loss", "accuracy"):
                mean, sd = mean_and_sd(curves[value][:, index])
                line |= {f"{value}_mean": mean, f"{value}_sd": sd}
            lines.append(line)
    return lines


def loss_rise(rows):
    """One number per network: how much the loss rises under noise, on average over the scales.

    For the loss L(s) of a draw at the scales from 0 to S:

        rise = 1 / S * integral from 0 to S of (L(s) - L(0)) ds

    with straight lines between the scales (the trapezoid rule), then the mean over the draws. It is
    in the unit of the loss, nats for cross-entropy. The smaller it is, the flatter the loss around
    the weights. It compares networks only over the same scales, and the largest of them weigh most.

    Args:
        rows: as in `noise_summary`.

    Returns:
        A list of dicts, one per model and kind of scale: `model`, `relative`, `draws`, `loss`
        (without noise), `rise_mean` and `rise_sd` over the draws.

    Raises:
        ValueError: as `noise_summary`.

    Example:
        >>> from kdtoolkit import evaluation
        >>> point = {"model": "a", "relative": False, "draw": 0, "accuracy": 0.5}
        >>> losses = {0.0: 1.0, 0.1: 1.0, 0.2: 2.0}
        >>> rows = [{**point, "scale": scale, "loss": loss} for scale, loss in losses.items()]
        >>> round(evaluation.loss_rise(rows)[0]["rise_mean"], 4)
        0.25
    """
    lines = []
    for (model, relative), curves in curves_of(rows).items():
        scales, losses = curves["scale"], curves["loss"]
        with np.errstate(invalid="ignore"):
            rises = losses - losses[:, :1]
            # The trapezoid rule; NumPy's has two names.
            areas = (rises[:, 1:] + rises[:, :-1]) / 2 * np.diff(scales)
            mean, sd = mean_and_sd(areas.sum(axis=1) / scales[-1])
        line = {"model": model, "relative": relative, "draws": len(losses)}
        lines.append({**line, "loss": float(losses[0, 0]), "rise_mean": mean, "rise_sd": sd})
    return lines


def curves_of(rows):
    """Rows as arrays: `{(model, relative): {"scale": (scales,), "loss": (draws, scales), ...}}`."""
    table = {}
    for row in rows:
        curve = table.setdefault((row["model"], row["relative"]), {})
        points = curve.setdefault(row["draw"], {})
        if row["scale"] in points:
            raise ValueError(f"A draw must have one row per scale. Received a second one: {row}")
        points[row["scale"]] = (row["loss"], row["accuracy"])
    if not table:
        raise ValueError("There must be rows of `noise_curve`. Received: none")
    return {key: _as_arrays(key, draws) for key, draws in table.items()}


def mean_and_sd(values):
    """Mean and standard deviation of an array as floats; infinite values make the latter NaN."""
    with np.errstate(invalid="ignore"):
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return float(np.mean(values)), sd


def _curve(measure, chosen, scales, draws, relative, seed):
    """Rows of one network. Every draw begins with the loss at scale 0, measured once."""
    rows = []
    with weights.kept([variable for _, variable in chosen]) as values:
        trained = measure()
        for draw in range(draws):
            steps = [
                (_rms(value) if relative else 1) * weights.normal(seed, draw, index, value.shape)
                for (index, _), value in zip(chosen, values, strict=True)
            ]
            for scale in scales:
                result = trained
                if scale:
                    moved = weights.moved(values, steps, scale)
                    weights.assign([variable for _, variable in chosen], moved)
                    result = measure()
                point = {"scale": scale, "relative": relative, "draw": draw}
                rows.append({**point, "loss": result[0], "accuracy": result[1]})
    return rows


def _rms(value):
    return np.float32(np.sqrt(np.mean(np.square(value.astype("float64")))))


def _named(models):
    """Networks by name."""
    if isinstance(models, dict):
        named = dict(models)
    else:
        models = models if isinstance(models, list | tuple) else [models]
        named = {getattr(model, "name", f"{model!r}"): model for model in models}
        if len(named) < len(models):
            raise ValueError(
                "Networks must have different names. Received: "
                f"{[model.name for model in models]}. Use a dict, such as {{'peer 1': first}}"
            )
    wrong = [model for model in named.values() if not isinstance(model, keras.Model)]
    if wrong:
        raise TypeError(f"`models` must be keras.Models. Received: {wrong[0]!r}")
    if not named:
        raise ValueError("There must be one network or more. Received: none")
    return named


def _checked_scales(scales):
    if not isinstance(scales, Iterable) or isinstance(scales, str | bytes):
        raise TypeError(f"`scales` must be a list of numbers. Received: scales={scales!r}")
    scales = [float(scale) for scale in scales]
    if not all(0 <= scale < math.inf for scale in scales) or not any(scales):
        raise ValueError(
            "`scales` must be finite numbers of 0 or more, one of them above 0. "
            f"Received: scales={scales}"
        )
    return sorted({0.0, *scales})


def _as_arrays(key, draws):
    scales = [sorted(points) for points in draws.values()]
    if any(found != scales[0] for found in scales) or scales[0][0] != 0 or len(scales[0]) < 2:
        raise ValueError(
            f"All draws of {key} must have the same scales: 0 and others. Received: {scales}"
        )
    losses, accuracies = np.array(
        [[points[scale] for scale in scales[0]] for points in draws.values()], "float64"
    ).transpose(2, 0, 1)
    return {"scale": np.array(scales[0]), "loss": losses, "accuracy": accuracies}
