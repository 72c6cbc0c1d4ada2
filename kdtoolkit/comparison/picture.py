"""Accuracy against a cost, drawn as SVG for the page: it follows its colours and its width."""

import math
from dataclasses import dataclass
from html import escape

from kdtoolkit.comparison.columns import percent, size, time
from kdtoolkit.evaluation import pareto_front

WIDTH, HEIGHT = 420, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 44
_LETTER, _LINE = 7.2, 14
_LONGEST = 22
# From this ratio on, an axis without logarithm would press the small ones together.
_WIDE = 8


@dataclass(frozen=True)
class Axis:
    """A scale from values to places in the picture.

    Attributes:
        low, high: Values at its ends.
        start, end: Places of its ends.
        logarithmic: Whether equal ratios have equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value):
        """Return where a value lies."""
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self):
        """Return round values between the ends."""
        return _log_ticks(self) if self.logarithmic else _ticks(self.low, self.high)

    def _scaled(self, value):
        return math.log(value) if self.logarithmic else value


def picture(rows, x, y):
    """Draw a point for each row, its 95 % interval, and a line through the Pareto front.

    Args:
        rows: List of dicts with `model`, both keys, and for accuracy the ends of the interval.
        x: Key of the cost: `"bytes"` or `"latency_ms"`.
        y: `"test_accuracy"` or `"agreement"`.

    Returns:
        An SVG element as text.
    """
    best = pareto_front([{**row, "test_accuracy": row[y]} for row in rows], x)
    best = {row["model"] for row in best}
    across, up = _across([row[x] for row in rows]), _up(rows, y)
    spots = {row["model"]: (across.place(row[x]), up.place(row[y])) for row in rows}
    front = sorted(spots[name] for name in best)
    line = " ".join(f"{left:.1f},{top:.1f}" for left, top in front)
    marks = [_mark(row, spots[row["model"]], up, y, row["model"] in best) for row in rows]
    form, what = {"bytes": (size, "File size"), "latency_ms": (_ms, "Latency, 1 thread, median")}[x]
    side = "Accuracy" if y == "test_accuracy" else "Agreement"
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{side} against {what.lower()}">',
            *_grid(across, up, form),
            f'<text class="axis" x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 6}">{what}'
            f"{', logarithmic' if across.logarithmic else ''}</text>",
            f'<polyline class="front" points="{line}"/>',
            *marks,
            *_names(spots, best),
            "</svg>",
        ]
    )


def _ms(value):
    return f"{value:g} ms" if value >= 0.1 else f"{1000 * value:g} µs"


def _across(values):
    low, high = min(values), max(values)
    logarithmic = high > _WIDE * low
    if logarithmic:
        edge = (high / low) ** 0.08
        low, high = low / edge, high * edge
    else:
        # Nearly equal costs shall look nearly equal.
        span = max(high - low, 0.2 * high)
        low, high = max(0.0, low - 0.25 * span), high + 0.12 * span
    return Axis(low, high, _LEFT, WIDTH - _RIGHT, logarithmic)


def _up(rows, y):
    ends = [y] if y == "agreement" else [y, "accuracy_low", "accuracy_high"]
    values = [row[end] for row in rows for end in ends]
    low, high = min(values), max(values)
    edge = max(0.06 * (high - low), 0.005)
    return Axis(low - edge, high + edge, HEIGHT - _BOTTOM, _TOP)


def _ticks(low, high):
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 7)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _log_ticks(axis):
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{f}e{d}") for d in decades for f in factors]
        ticks = [tick for tick in ticks if axis.low <= tick <= axis.high]
        if len(ticks) <= 6:
            break
    return ticks


def _grid(across, up, form):
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for tick in up.ticks():
        top = up.place(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{top:.1f}" y2="{top:.1f}"/>'
        label = f"{100 * tick:.4g} %"
        yield f'<text class="up" x="{_LEFT - 6}" y="{top + 4:.1f}">{label}</text>'
    for tick in across.ticks():
        left = across.place(tick)
        yield f'<line class="grid" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{bottom}"/>'
        label = form(tick).replace(".0 ", " ").replace(".00 ", " ")
        yield f'<text class="across" x="{left:.1f}" y="{bottom + 16}">{label}</text>'


def _mark(row, spot, up, y, best):
    left, top = spot
    kind = "best" if best else "rest"
    interval = ""
    if y == "test_accuracy":
        low, high = up.place(row["accuracy_low"]), up.place(row["accuracy_high"])
        interval = f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    cost = f"{size(row['bytes'])}"
    if row["latency_ms"] is not None:
        cost += f", {time(row['latency_ms'])}"
    note = escape(f"{row['model']}: {percent(row[y])}, {cost}")
    return (
        f'<g class="{kind}">{interval}<circle cx="{left:.1f}" cy="{top:.1f}" r="4.5"/>'
        f"<title>{note}</title></g>"
    )


def _names(spots, best):
    """Names beside the points, moved up or down where something is; then a line leads there."""
    # Boxes (left, right, middle, half height); names keep away from all points.
    taken = [(left - 5, left + 5, top, 3) for left, top in spots.values()]
    for name, (left, top) in sorted(spots.items(), key=lambda item: item[1][1]):
        short = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
        width = _LETTER * len(short)
        right = left + 10 + width <= WIDTH or left < width
        start = left + 10 if right else left - 10 - width
        middle = _free(taken, start, width, top)
        taken.append((start, start + width, middle, _LINE / 2))
        side, kind = 10 if right else -10, "best" if name in best else "rest"
        if abs(middle - top) > _LINE / 2:
            yield (
                f'<line class="lead" x1="{left:.1f}" y1="{top:.1f}" x2="{left + 0.9 * side:.1f}" '
                f'y2="{middle:.1f}"/>'
            )
        kind += "" if right else " up"
        place = f'x="{left + side:.1f}" y="{middle + 4:.1f}"'
        yield f'<text class="{kind}" {place}>{escape(short)}</text>'


def _free(taken, start, width, top):
    """The height nearest to `top` at which nothing stands yet."""
    for step in range(HEIGHT):
        for height in (top + step, top - step):
            inside = _TOP <= height <= HEIGHT - _BOTTOM - 4
            over = any(
                start < right and left < start + width and abs(height - other) < half + _LINE / 2
                for left, right, other, half in taken
            )
            if inside and not over:
                return height
    return top
