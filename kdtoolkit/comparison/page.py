"""The comparison as one page of HTML that needs nothing else."""

import math
from html import escape

from kdtoolkit.comparison.columns import columns, points, shown
from kdtoolkit.comparison.picture import picture
from kdtoolkit.comparison.style import CSS, SCRIPT

# Of many classes those that changed most are shown.
_CLASSES = 20
# Their interval goes below the number.
_SPREADS = ("test_accuracy", "latency_ms", "latency_2_threads_ms")
_TITLES = {"bytes": "Quality and size", "latency_ms": "Quality and time"}
_LATENCY = (
    "one invocation of the LiteRT interpreter, inputs in place; median of the rounds, fastest of "
    "all runs. The numbers hold for this machine"
)
# Nothing may be loaded from anywhere, whatever a name holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def page(table, title):
    """Return the page.

    Args:
        table: A `ComparisonTable`.
        title: Its head.

    Returns:
        HTML as text. All names in it are escaped.
    """
    parts = [_summary(table), _results(table), _pictures(table), _changes(table), _setting(table)]
    return _PAGE.format(
        policy=_POLICY,
        title=escape(title),
        css=CSS,
        script=SCRIPT,
        body="\n".join(part for part in parts if part),
    )


def _summary(table):
    rows = table.rows
    count = f"{len(rows)} candidate{'s' if len(rows) > 1 else ''}"
    examples = f"{rows[0]['examples']:,} examples, {len(table.classes)} classes"
    labels = "" if table.class_counts else " There were no labels, so there is no accuracy."
    return (
        f'<p class="soft">{count} on the same {examples}. Agreement and changes are measured '
        f"against <b>{escape(table.reference)}</b>.{labels}</p>"
    )


def _results(table):
    used = columns(table.rows)
    head = "".join(
        f'<th scope="col" data-key="{one.key}" data-kind="{_kind(one)}" '
        f'title="{escape(one.hint)}"><button>{escape(one.title)}</button></th>'
        for one in used
    )
    lines = "\n".join(
        "<tr>" + "".join(_cell(one, row) for one in used) + "</tr>" for row in table.rows
    )
    return (
        '<h2>Results</h2>\n<div class="scroll"><table class="results">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>\n"
        '<p class="soft">A click on a head sorts; a wide table scrolls sideways.</p>\n'
        "<details><summary>What the columns mean</summary>\n"
        f"{_list((one.title, one.hint) for one in used)}</details>"
    )


def _kind(column):
    return "text" if column.key == "model" else "number"


def _cell(column, row):
    value = row[column.key]
    value = "" if value is None else "Infinity" if value == math.inf else value
    start = '<th scope="row"' if column.key == "model" else "<td"
    tip = f' title="{escape(_details(row))}"' if column.key == "model" else ""
    end = "</th>" if column.key == "model" else "</td>"
    text = escape(shown(column, row))
    if column.key in _SPREADS:
        text, _, spread = text.partition(" (")
        text += f"<small>({spread}</small>" if spread else ""
    return f'{start}{tip} data-value="{escape(str(value))}">{text}{end}'


def _details(row):
    batch = row["batch_size"]
    more = f"; {batch} examples per invocation" if batch and batch > 1 else ""
    return f"{row['source']}. Costs measured on {row['measured']}{more}."


def _pictures(table):
    y = "test_accuracy" if table.class_counts else "agreement"
    figures = []
    for x, title in _TITLES.items():
        rows = [row for row in table.rows if row[x] is not None]
        if rows:
            caption = f"<figcaption><b>{title}</b></figcaption>"
            figures.append(f"<figure>{caption}\n{picture(rows, x, y)}\n</figure>")
    if not figures:
        return ""
    interval = " Upright lines are 95 % intervals." if table.class_counts else ""
    return (
        f'<h2>Fronts</h2>\n<div class="pictures">{"".join(figures)}</div>\n'
        '<p class="soft">The dashed line joins the Pareto front: no other candidate is at least as '
        f"good for less.{interval}</p>"
    )


def _changes(table):
    others = [row for row in table.rows if row["model"] != table.reference]
    if not table.class_counts or not others:
        return ""
    order = [k for k, count in enumerate(table.class_counts) if count]
    order.sort(key=lambda k: -max(abs(row["class_changes"][k]) for row in others))
    kept, left = order[:_CLASSES], len(order) - _CLASSES
    kept.sort(key=lambda k: min(row["class_changes"][k] for row in others))
    largest = max((abs(row["class_changes"][k]) for row in others for k in kept), default=0) or 1
    head = "".join(f'<th scope="col">{escape(row["model"])}</th>' for row in others)
    lines = "\n".join(
        f'<tr><th scope="row">{escape(table.classes[k])}</th><td>{table.class_counts[k]}</td>'
        + "".join(_heat(row["class_changes"][k], largest) for row in others)
        + "</tr>"
        for k in kept
    )
    more = f" The {left} classes that changed least are not shown." if left > 0 else ""
    return (
        f'<h2>Changes class by class</h2>\n<p class="soft">Accuracy minus that of '
        f"{escape(table.reference)}, in percentage points. Of few examples a change says little."
        f'{more}</p>\n<div class="scroll"><table class="changes"><thead><tr><th scope="col">Class'
        f'</th><th scope="col">Examples</th>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>'
        "</table></div>"
    )


def _heat(change, largest):
    kind = "gain" if change > 0 else "loss" if change < 0 else "same"
    part = 0.6 * abs(change) / largest
    return f'<td class="{kind}" style="--part:{part:.2f}">{points(change)}</td>'


def _setting(table):
    setting = table.setting
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    lines = [
        ("Date", setting["date"]),
        ("Processor", f"{setting['processor']}, {setting['cores']} cores, {setting['system']}"),
        ("Software", f"Python {setting['python']}, backend {setting['backend']}; {versions}"),
        ("Reference", f"{table.reference}: {setting['reference']}"),
        ("Calibration", f"ECE in {setting['bins']} bins of equal width"),
    ]
    if "runs_per_round" in setting:
        runs = f"{setting['rounds']} rounds in turns, {setting['runs_per_round']} runs each"
        lines += [("Latency", f"{runs}; {_LATENCY}"), ("Memory", setting["memory"])]
    lines += [(row["model"], _details(row)) for row in table.rows]
    return f"<h2>What was measured on what</h2>\n{_list(lines)}"


def _list(pairs):
    items = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
    return f"<dl>\n{items}\n</dl>"
