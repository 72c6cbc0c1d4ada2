"""What holds for every public class, generated from the table in `public_classes.py`."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import keras
import pytest

import kdtoolkit as kd
from kdtoolkit.registry import PUBLIC_CLASSES
from tests.public_classes import PUBLIC

ROOT = pathlib.Path(kd.__file__).parent
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "kdtoolkit."))


@pytest.mark.core
def test_every_public_class_is_in_the_table():
    missing = {name for name, cls in PUBLIC_CLASSES.items() if cls.__module__.startswith("kdtool")}
    assert missing == set(PUBLIC)


@pytest.mark.core
@pytest.mark.parametrize("name", PUBLIC)
def test_the_config_makes_the_same_object_again(name):
    first = PUBLIC[name].make()
    config = keras.saving.serialize_keras_object(first)
    second = keras.saving.deserialize_keras_object(config)
    assert type(second) is type(first)
    assert second.get_config() == first.get_config()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_class_says_what_it_does(name):
    assert len(inspect.getdoc(PUBLIC_CLASSES[name]) or "") > 40


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_the_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testmod(importlib.import_module(module), optionflags=options)
    assert results.failed == 0


# Who may import whom: a module may import those above its own line.
ORDER = [
    {"version", "registry", "steps", "saving", "files", "locks", "settings", "optional"},
    {"scalars", "taps"},
    {"functional", "schedules", "inner"},
    {"losses", "logits", "logs", "outputs", "progress", "sources"},
    {"gates"},
    {"transfer"},
    {"wiring", "wirings", "checks", "compiling", "placement"},
    {"graph", "ensemble", "ahead", "views", "dropout", "cache"},
    {"fitting"},
    {"distiller"},
    {"callbacks"},
    {"self_distillation", "mutual"},
    {"generations"},
]
# These take plain models and arrays.
APART = {"compress", "data", "evaluation", "export", "models", "tfmot"}
# These put the others together for a person: a table and a page, a command line.
TOP = {"cli", "comparison"}
MAY_IMPORT_A_BACKEND = {"steps", "export", "data", "tfmot"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "kdtoolkit":
                yield from (f"kdtoolkit.{alias.name}" for alias in node.names)


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    level = next((i for i, names in enumerate(ORDER) if part in names), None)
    assert level is not None or part in APART | TOP, f"{part} has no place in the order"
    for name in imports_of(path):
        assert not name.startswith("keras.src"), name
        if name.split(".")[0] in {"tensorflow", "jax", "torch"}:
            assert part in MAY_IMPORT_A_BACKEND, name
        if not name.startswith("kdtoolkit."):
            continue
        other = name.split(".")[1]
        if part in TOP:
            continue
        if part in APART:
            assert other in {part, "registry", "version", "files", "optional", "taps", "inner"}, (
                name
            )
        elif other in APART:
            # Generations train on data sets; the rest knows how ids, rows and epochs travel, and
            # how arrays become a pipeline.
            names = ("keys", "joining", "epochs", "pipeline")
            travel = tuple(f"kdtoolkit.data.{name}" for name in names)
            assert name.startswith("kdtoolkit.data" if part == "generations" else travel), name
        else:
            found = next(i for i, names in enumerate(ORDER) if other in names)
            assert found < level or other == part, name


def test_importing_is_quiet_and_light():
    code = (
        "import keras, sys; before = set(sys.modules); import kdtoolkit;"
        "heavy = {'tensorflow_datasets', 'sklearn', 'scipy', 'matplotlib', 'ai_edge_litert',"
        "'ai_edge_quantizer'} & (set(sys.modules) - before); sys.exit(str(heavy) if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 370
