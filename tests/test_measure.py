"""Several networks exported and measured as files."""

import os
import sys

import keras
import numpy as np
import pytest

from kdtoolkit import evaluation, export, models

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

MODULE = sys.modules["kdtoolkit.export.measure"]  # the function has the same name
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.integers(3, size=12)


def network(units=4, seed=0):
    return models.mlp((4,), 3, units=(units,), seed=seed)


def without_weights():
    inputs = keras.Input((4,), name="x")
    return keras.Model(inputs, keras.layers.ReLU(name="y")(inputs))


@pytest.fixture(scope="module")
def timings():
    """What `latency` was asked for while `measured` was made, and what it found."""
    return []


@pytest.fixture(scope="module")
def measured(tmp_path_factory, timings):
    """Rows of two networks, where the files are, and the networks."""
    folder = tmp_path_factory.mktemp("measured")
    networks = {"small": network(), "v1.5, wide": network(64, seed=1)}

    def latency(path, **options):
        found = export.latency(path, **options)
        timings.append((path.stem, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "latency", latency)
        rows = export.measure(networks, folder, X, Y, num_threads=2, runs=3, quantize="dynamic")
    return rows, folder, networks


def test_each_row_says_what_its_file_is(measured):
    rows, folder, networks = measured
    assert sorted(os.listdir(folder)) == ["small.tflite", "v1.5, wide.tflite"]
    assert [row["model"] for row in rows] == list(networks)
    for row, model in zip(rows, networks.values(), strict=True):
        path = folder / f"{row['model']}.tflite"
        assert row["path"] == str(path)
        assert row["bytes"] == path.stat().st_size
        assert row["gzip_bytes"] == export.inspect(path).gzip_bytes
        assert row["parameters"] == model.count_params()
        said = export.LiteRTModel(path).predict(X).argmax(axis=-1)
        assert row["test_accuracy"] == np.mean(said == Y)
        assert 0 < row["latency_min_ms"] <= row["latency_ms"] <= row["latency_p95_ms"]
        assert row["num_threads"] == 2
        assert "int8" in export.inspect(path).tensor_bytes, "as the option says"
    assert rows[0]["bytes"] < rows[1]["bytes"]


def test_rows_go_to_a_csv_file_and_come_back(measured, tmp_path):
    # A name that looks like a number stays a name.
    rows = [{**row, "model": str(number)} for number, row in enumerate(measured[0])]
    evaluation.write_csv(rows, tmp_path / "rows.csv")
    assert evaluation.read_csv(tmp_path / "rows.csv") == rows


def test_files_are_timed_in_turns_of_which_a_slow_one_does_not_count(measured, timings):
    rows, _, networks = measured
    assert [name for name, _ in timings] == [*networks] * 5
    assert {(found.runs, found.num_threads) for _, found in timings} == {(3, 2)}
    for row in rows:
        rounds = [found for name, found in timings if name == row["model"]]
        # The third of five in order of size.
        assert row["latency_ms"] == sorted(found.median_ms for found in rounds)[2]
        assert row["latency_p95_ms"] == sorted(found.p95_ms for found in rounds)[2]
        assert row["latency_min_ms"] == min(found.min_ms for found in rounds)


def test_where_one_export_fails_no_file_is_written_and_none_replaced(tmp_path):
    before = tmp_path / "good.tflite"
    before.write_text("as before")
    networks = {"good": network(), "bad": without_weights()}
    with pytest.raises(ValueError, match="found no weights") as failure:
        export.measure(networks, tmp_path, X, Y % 3, overwrite=True, quantize="dynamic")
    assert failure.value.__notes__ == ["This was the export of network 'bad'."]
    assert os.listdir(tmp_path) == ["good.tflite"]
    assert before.read_text() == "as before"


def test_existing_files_are_replaced_only_on_demand(tmp_path):
    (tmp_path / "b.tflite").write_text("as before")
    networks = {"a": network(), "b": network()}
    with pytest.raises(FileExistsError, match=r"b\.tflite'\] exist already.*overwrite=True"):
        export.measure(networks, tmp_path, X, Y)
    assert os.listdir(tmp_path) == ["b.tflite"]
    (row,) = export.measure({"b": network()}, tmp_path, X, Y, runs=1, overwrite=True)
    assert (tmp_path / "b.tflite").stat().st_size == row["bytes"] > 500


def two_outputs():
    return models.attach_exits(models.mlp((4,), 3, units=(4, 4)), ["stage1"])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"networks": {}}, ValueError, "one or more networks by name. Received: none"),
        ({"networks": {"a/b": None}}, ValueError, "names of files.*Received: 'a/b'"),
        ({"networks": {".a": None}}, ValueError, r"Received: '\.a'"),
        ({"networks": {"a\n": None}}, ValueError, r"Received: 'a\\n'"),
        ({"networks": {1: None}}, ValueError, "Received: 1"),
        ({"networks": {"a": "a.tflite"}}, TypeError, "must be a keras.Model. Received: str"),
        ({"networks": {"a": two_outputs}}, ValueError, "one output.*exit1.*single_output"),
        ({"directory": "missing"}, FileNotFoundError, "missing' does not exist"),
        ({"y": Y[1:]}, ValueError, r"x of shape \(12, 4\), y of shape \(11,\)"),
        ({"y": np.eye(3)[Y]}, ValueError, r"y of shape \(12, 3\) .*argmax"),
        ({"y": Y / 1.0}, ValueError, "dtype float64"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, r"x of shape \(0, 4\)"),
        ({"x": X[:, 1:]}, ValueError, r"Expected: \(examples, 4\). Received: \(1, 3\)"),
        ({"y": Y + 1}, ValueError, "must be from 0 to 2, the classes of network 'a'.*1 to 3"),
        ({"runs": 0}, ValueError, "`runs` must be at least 1. Received: runs=0"),
        ({"num_threads": 0}, ValueError, "`num_threads` must be a positive integer"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_export(
    tmp_path, monkeypatch, change, error, message
):
    monkeypatch.setattr(MODULE, "litert", None)
    arguments = {"networks": {"a": network}, "directory": "", "x": X, "y": Y} | change
    networks = {k: v() if callable(v) else v for k, v in arguments.pop("networks").items()}
    arguments["directory"] = tmp_path / arguments["directory"]
    with pytest.raises(error, match=message):
        export.measure(networks, **arguments)
    assert not os.listdir(tmp_path)
