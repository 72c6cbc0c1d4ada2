"""What each command does with its options. What it has to say goes to stdout."""

import json
from pathlib import Path

from kdtoolkit.cli.data import load
from kdtoolkit.comparison import compare as compare_candidates
from kdtoolkit.comparison.candidates import load_model
from kdtoolkit.export import inspect as inspect_file
from kdtoolkit.export import litert
from kdtoolkit.export.verify import finite

_NO_MODES = (None, "none", "float32")
_FROM_LOGITS = {"auto": "auto", "yes": True, "no": False}


def export(options):
    """Export a model; print the report."""
    model = _keras_file(options.model)
    out = Path(options.out) if options.out else model.with_suffix(".tflite")
    if out.exists() and not options.overwrite:
        raise FileExistsError(f"'{out}' exists already. Pass --overwrite to replace it.")
    x = load(options.data, options.x)[0] if options.data else None
    labels = _lines(options.labels)
    report = litert(
        load_model(model),
        out,
        quantize=None if options.quantize in _NO_MODES else options.quantize,
        representative_data=x,
        io=options.io,
        batch_size=options.batch_size,
        overwrite=options.overwrite,
        **({} if labels is None else {"metadata": {"labels": labels}}),
    )
    _say(options, report.to_dict(), report)


def compare(options):
    """Compare candidates; print the table, write what is asked for."""
    wanted = [path for path in (options.html, options.csv) if path]
    _check_targets(wanted, options.overwrite)
    x, y = load(options.data, options.x, options.y)
    table = compare_candidates(
        _candidates(options.candidates),
        x,
        y,
        teacher=options.teacher,
        output=options.output,
        from_logits=_FROM_LOGITS[options.from_logits],
        class_names=_lines(options.labels),
        latency=not options.no_latency,
        runs=options.runs,
    )
    if options.html:
        table.write_html(options.html, options.overwrite)
    if options.csv:
        table.write_csv(options.csv, options.overwrite)
    _say(options, table.to_dict(), table)


def inspect(options):
    """Print what is in a file."""
    path = Path(options.file)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file '{path}'. Check the path.")
    found = finite(inspect_file(path).to_dict())
    _say(options, found, "\n".join(_report_lines(found)))


def _say(options, found, text):
    print(json.dumps(found, indent=2, allow_nan=False) if options.json else text)


def _report_lines(found):
    """A line per attribute, a line per entry of those that are lists or dicts."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield f"{key}: " + (", ".join(f"{k} {v}" for k, v in value.items()) or "none")
        elif isinstance(value, list):
            yield from (f"{key}: " + ", ".join(map(_text, _values(entry))) for entry in value)
        else:
            yield f"{key}: {_text(value)}"


def _values(entry):
    return entry.values() if isinstance(entry, dict) else [entry]


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _keras_file(path):
    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"MODEL must be a .keras file that model.save wrote. Received: '{path}'.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file '{path}'. Check the path.")
    return path


def _candidates(arguments):
    """Return `{name: path}`: names as given, else the file without ending where that is enough."""
    given = [("", one) if Path(one).exists() or "=" not in one else one.split("=", 1)
             for one in arguments]  # fmt: skip
    stems = [name or Path(path).stem for name, path in given]
    found = {}
    for (name, path), stem in zip(given, stems, strict=True):
        name = name or (stem if stems.count(stem) == 1 else path)
        if name in found:
            raise ValueError(
                f"Two candidates have the name '{name}'. Name them: A=one.tflite B=two.tflite."
            )
        found[name] = path
    return found


def _check_targets(paths, overwrite):
    """Refuse before any slow step what could not be written after it."""
    for path in map(Path, paths):
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"The directory '{path.parent}' does not exist. Create it first."
            )
        if path.exists() and not overwrite:
            raise FileExistsError(f"'{path}' exists already. Pass --overwrite to replace it.")


def _lines(path):
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file '{path}'. Check the path of --labels.")
    # An empty line at the end, which some editors leave, is no name.
    return Path(path).read_text(encoding="utf-8").rstrip().splitlines()
