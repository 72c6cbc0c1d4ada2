"""The command line: what it prints, writes, refuses and returns."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.cli import commands, main
from kdtoolkit.cli.data import load

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

ROOT = pathlib.Path(kd.__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with two models, one of them with a layer of kdtoolkit, a file and data."""
    folder = tmp_path_factory.mktemp("files")
    small, other = (kd.models.mlp((6,), 3, units=(4,), seed=seed) for seed in (0, 1))
    small.save(folder / "small.keras")
    kd.Ensemble([small, other]).save(folder / "both.keras")
    kd.export.litert(small, folder / "small.tflite")
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((30, 6)).astype("float32"), generator.integers(0, 3, 30)
    np.savez(folder / "data.npz", x=x, y=y, images=x, digits=y)
    np.save(folder / "x.npy", x)
    return folder


@pytest.fixture
def at(files, tmp_path, monkeypatch):
    """An empty folder to run in, beside the files."""
    for path in files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys, code, *arguments):
    """Run a command that fails with one line; return the line."""
    assert main([*arguments]) == code
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("kdtoolkit: ") and error.count("\n") == 1
    return error


# Export


def test_export_writes_a_file_and_prints_the_report(at, capsys):
    at.joinpath("names.txt").write_text("zero\none\ntwo\n")
    options = ("--quantize", "int8", "--io", "int8", "--data", "data.npz", "--labels", "names.txt")
    assert main(["export", "small.keras", "out.tflite", *options, "--json"]) == 0
    out, error = capsys.readouterr()
    report = json.loads(out)
    assert error == "" and report["full_integer"] and report["inputs"][0]["dtype"] == "int8"
    assert kd.export.inspect("out.tflite").metadata["labels"] == ["zero", "one", "two"]


def test_export_replaces_a_file_only_when_told(at, capsys):
    before = at.joinpath("small.tflite").read_bytes()
    assert "--overwrite" in fails(capsys, 2, "export", "small.keras")
    assert at.joinpath("small.tflite").read_bytes() == before
    assert main(["export", "small.keras", "--quantize", "float16", "--overwrite"]) == 0
    assert "small.tflite: float16" in capsys.readouterr().out
    assert at.joinpath("small.tflite").read_bytes() != before


def test_an_export_that_fails_its_check_returns_1(at, capsys, monkeypatch):
    def litert(*args, **options):
        raise kd.export.ExportMismatchError("The file\ndisagrees")

    monkeypatch.setattr(commands, "litert", litert)
    line = fails(capsys, 1, "export", "small.keras", "out.tflite")
    assert line == "kdtoolkit: The file disagrees\n"


def test_export_names_what_is_wrong(at, capsys):
    unsafe = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)])
    unsafe.save("unsafe.keras")
    at.joinpath("no.keras").write_text("no model")
    for arguments, message in (
        (["none.keras"], "no file 'none.keras'"),
        (["small.tflite"], "must be a .keras file"),
        (["no.keras"], "could not be loaded"),
        (["unsafe.keras"], "could not be loaded"),
        (["small.keras", "a.tflite", "--quantize", "int8"], "representative_data"),
        (["small.keras", "a.tflite", "--quantize", "int7"], "int7"),
        (["small.keras", "a.tflite", "--data", "none.npz"], "no data file"),
        (["small.keras", "a.tflite", "--labels", "none.txt"], "--labels"),
    ):
        assert message in fails(capsys, 2, "export", *arguments)
    assert not at.joinpath("a.tflite").exists()


# Compare


def test_compare_prints_json_and_writes_page_and_rows(at, capsys):
    command = ["compare", "both.keras", "file=small.tflite", "--data", "data.npz", "--json"]
    at.joinpath("names.txt").write_text("zero\none\ntwo\n")
    files = ["--html", "page.html", "--csv", "rows.csv", "--labels", "names.txt"]
    assert main([*command, *files, "--runs", "1"]) == 0
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert error == "" and [row["model"] for row in found["rows"]] == ["both", "file"]
    assert found["classes"] == ["zero", "one", "two"]
    assert all(row["latency_ms"] > 0 and row["memory_bytes"] > 0 for row in found["rows"])
    assert "<table" in at.joinpath("page.html").read_text()
    assert len(at.joinpath("rows.csv").read_text().splitlines()) == 3
    assert "'page.html' exists already" in fails(capsys, 2, *command, *files)


def test_compare_prints_a_table(at, capsys):
    options = ["--x", "images", "--y", "digits", "--teacher", "both.keras", "--no-latency"]
    assert main(["compare", "small.tflite", "--data", "data.npz", *options]) == 0
    out = capsys.readouterr().out
    assert "Accuracy" in out and "against teacher" in out and "1 thread" not in out
    assert main(["compare", "small.tflite", "--data", "x.npy", "--no-latency"]) == 0
    assert "Accuracy" not in capsys.readouterr().out


def test_compare_names_what_is_wrong(at, capsys):
    at.joinpath("bad.tflite").write_bytes(b"nothing")
    for arguments, message in (
        (["none.tflite", "--data", "data.npz"], "Candidate 'none': there is no file"),
        (["bad.tflite", "--data", "data.npz"], "Candidate 'bad'"),
        (["a=small.tflite", "a=bad.tflite", "--data", "data.npz"], "the name 'a'"),
        (["small.tflite", "--data", "data.npz", "--html", "no/page.html"], "'no' does not exist"),
        (["small.tflite", "--data", "data.npz", "--runs", "0"], "`runs`"),
    ):
        assert message in fails(capsys, 2, "compare", *arguments)


def test_candidates_are_named_after_their_files_where_that_is_enough(at):
    at.joinpath("a=b.tflite").write_bytes(b"")
    found = commands._candidates(["x/m.keras", "y/m.keras", "one=z=1.tflite", "a=b.tflite"])
    assert found == {
        "x/m.keras": "x/m.keras",
        "y/m.keras": "y/m.keras",
        "one": "z=1.tflite",
        "a=b": "a=b.tflite",
    }


# Data


def test_data_files_give_examples_and_labels(at):
    x, y = load("data.npz")
    assert x.shape == (30, 6) and y.shape == (30,)
    assert load("x.npy")[1] is None
    np.savez("two.npz", left=x, right=x, y=y)
    inputs, labels = load("two.npz")
    assert sorted(inputs) == ["left", "right"] and len(labels) == 30


def test_data_files_that_cannot_be_read_are_refused(at):
    np.savez("objects.npz", x=np.array([{}], dtype=object))
    at.joinpath("cut.npz").write_bytes(at.joinpath("data.npz").read_bytes()[:300])
    at.joinpath("x.csv").write_text("1,2")
    for arguments, message in (
        (("objects.npz",), "could not be read.*pickle"),
        (("cut.npz",), "could not be read"),
        (("x.csv",), "must end in .npz or .npy"),
        (("data.npz", "z"), r"no array 'z'. It has: \['digits'"),
        (("x.npy", "x"), "leave out --x"),
    ):
        with pytest.raises(ValueError, match=message):
            load(*arguments)


# The rest


def test_inspect_says_what_is_inside(at, capsys):
    assert main(["inspect", "small.tflite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "inputs: inputs, [1, 6], float32" in lines
    assert "ops: FULLY_CONNECTED 2" in lines
    assert "no file" in fails(capsys, 2, "inspect", "none.tflite")
    assert "not a complete" in fails(capsys, 2, "inspect", "data.npz")


def test_debug_shows_where_an_error_comes_from(at):
    with pytest.raises(FileNotFoundError):
        main(["inspect", "none.tflite", "--debug"])


@pytest.mark.parametrize("command", [[], ["export"], ["compare"], ["inspect"]])
def test_help_has_examples_and_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "example" in out and "exit codes:" in out


def test_wrong_options_return_2(capsys):
    for arguments in ([], ["inspect"], ["compare", "a.tflite"], ["export", "m.keras", "--nothing"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2


def test_the_console_command_is_quiet_and_sets_the_backend(at):
    hidden = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [sys.executable, "-m", "kdtoolkit_command", "inspect", "small.tflite", "--json"],
        capture_output=True, text=True, check=True, env={**env, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert json.loads(done.stdout)["ops"] == {"FULLY_CONNECTED": 2}
    assert done.stderr == ""
