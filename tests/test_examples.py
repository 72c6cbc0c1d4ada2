"""The examples run, in miniature, and end in what they promise."""

import importlib.util
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"

pytestmark = [pytest.mark.tensorflow, pytest.mark.export]


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quickstart_ends_in_a_table_a_picture_and_four_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    load("quickstart").main(["--seeds", "1", "--steps", "24", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for row in ("large network", "small, alone", "small, distilled on all", "full int8 file"):
        assert row in printed
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000
    files = sorted(path.name for path in tmp_path.glob("*.tflite"))
    modes = ("dynamic-int8", "float16", "float32", "full-int8")
    assert files == [f"student-0-{mode}.tflite" for mode in modes]
