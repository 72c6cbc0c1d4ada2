"""Files that a disk or a copy broke: a clear error or what was written, and nothing overwritten."""

import ast
import dataclasses
import json
import os
import pathlib
import shutil
import zipfile

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit import files
from kdtoolkit.cli import main
from kdtoolkit.cli.data import load
from kdtoolkit.comparison.candidates import load_model
from kdtoolkit.generations.records import GenerationFolder
from tests import broken
from tests.support import CLASSES, FEATURES, dense

PACKAGE = pathlib.Path(kd.__file__).parent


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", broken.KINDS)
def test_a_broken_file_is_refused_by_name_or_read_as_it_was(name, tmp_path):
    counts, failures = broken.run(broken.KINDS[name], tmp_path, 60, seed=7)
    assert not failures and sum(counts.values()) == 72
    assert counts["refused"] > 30


# Generations ------------------------------------------------------------------------------------


def data():
    random = np.random.default_rng(0)
    parts = {}
    for part in ("train", "val", "test"):
        parts[f"x_{part}"] = random.normal(size=(16, FEATURES)).astype("float32")
        parts[f"y_{part}"] = random.integers(CLASSES, size=16)
    return kd.data.Dataset(
        **parts, num_classes=CLASSES, input_shape=(FEATURES,), name="noise",
        mean=np.zeros(1, "float32"), std=np.ones(1, "float32"),
    )  # fmt: skip


def train(directory, generations):
    recipe = kd.Recipe(lambda: keras.optimizers.SGD(0.1), epochs=1, batch_size=16)
    return kd.train_generations(
        lambda seed: kd.models.mlp((FEATURES,), CLASSES, units=(4,), seed=seed),
        data(), recipe=recipe, generations=generations, directory=directory, checkpoint_every=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    train(directory, 1)
    return directory


@pytest.mark.parametrize("name", ["settings.json", "record.json", "network.keras"])
def test_a_run_with_a_broken_file_goes_no_further_and_changes_nothing(name, finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    (path,) = directory.rglob(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    before = contents(directory)
    with pytest.raises(ValueError, match=f"(?s){name}.*is damaged.*Nothing was changed"):
        train(directory, 2)
    assert contents(directory) == before


def test_files_without_a_checksum_stay_readable(tmp_path):
    directory = broken.a_run(tmp_path)
    for path in directory.rglob("*.json"):
        content = json.loads(path.read_text())
        del content["crc32"]
        path.write_text(json.dumps(content))
    assert kd.load_generations(directory) == [broken.RECORD]
    broken.check_settings(directory, broken.SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"network": "../../elsewhere.keras"},
        {"network": "/etc/passwd"},
        {"generation": 2},
        {"epochs": True},
        {"seed": "3"},
        {"val_accuracy": 1.5},
        {"val_accuracy": None},
        {"seconds": float("nan")},
        {"steps": -1},
        {"method": None},
        {"more": 1},
    ],
)
def test_records_that_training_never_writes_are_refused(change, tmp_path):
    directory = broken.a_run(tmp_path)
    path = GenerationFolder(directory, 1).path / "record.json"
    files.write_json(path, {**dataclasses.asdict(broken.RECORD), **change})
    for read in (kd.load_generations, lambda folder: kd.load_network(folder, 1)):
        with pytest.raises(ValueError, match="record.json is damaged: Expected .*Received: "):
            read(directory)


# Archives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "C:\\outside"])
def test_parts_that_lead_out_of_an_archive_are_refused_and_not_written(name, tmp_path):
    path = tmp_path / "inner" / "model.keras"
    path.parent.mkdir()
    dense(4).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(ValueError, match="model.keras.*is damaged.*a part with the name"):
        load_model(path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["model.keras"]


def test_models_are_loaded_in_safe_mode(tmp_path, capsys):
    """A lambda in a file is code of whoever wrote it."""
    inputs = keras.Input((FEATURES,))
    unsafe = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs))
    path = tmp_path / "unsafe.keras"
    unsafe.save(path)
    with pytest.raises(ValueError, match="unsafe.keras.*could not be loaded"):
        load_model(path)
    assert main(["export", str(path)]) == 2
    assert "could not be loaded" in capsys.readouterr().err
    directory = broken.a_run(tmp_path)
    unsafe.save(GenerationFolder(directory, 1).network)
    with pytest.raises(ValueError, match="[Ll]ambda"):
        kd.load_network(directory, 1)


def test_pickles_in_data_are_refused(tmp_path):
    array = np.array([{"any": "object"}], dtype=object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=f"{name}.*could not be read"):
            load(tmp_path / name)


# Links ------------------------------------------------------------------------------------------


def test_what_is_written_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    link = tmp_path / "run" / "record.json"
    link.parent.mkdir()
    link.symlink_to(outside)
    files.write_json(link, {"a": 1})
    assert outside.read_text() == "mine" and not link.is_symlink()


def test_a_checkpoint_that_is_a_link_is_not_emptied(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("kept")
    folder = GenerationFolder(broken.a_run(tmp_path), 1)
    folder.checkpoint.symlink_to(outside, target_is_directory=True)
    folder.clean()
    assert (outside / "mine").read_text() == "kept"


@pytest.mark.parametrize("name", ["settings.json", "generation-1/record.json"])
def test_a_link_to_nowhere_is_no_reason_to_start_again(name, finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    (directory / name).unlink()
    (directory / name).symlink_to(tmp_path / "lost.json")
    before = contents(directory)
    with pytest.raises((ValueError, OSError), match=os.path.basename(name)):
        train(directory, 2)
    assert contents(directory) == before and not (tmp_path / "lost.json").exists()


# The source -------------------------------------------------------------------------------------

FORBIDDEN = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_nothing_that_is_read_is_run(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not FORBIDDEN & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load")
            assert given.get("safe_mode") in (None, "True")
            if called in ("np.load", "numpy.load"):
                assert given.get("allow_pickle") == "False"
            assert "enable_unsafe_deserialization" not in called


# LiteRT -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    return broken.exported(tmp_path_factory.mktemp("int8"), "int8")


def negative_scale(graph):
    graph.tensors[graph.operators[1].outputs[0]].quantization.scale[0] *= -1


def no_bias(graph):
    graph.operators[1].inputs = graph.operators[1].inputs[:2]


def huge_input(graph):
    graph.tensors[graph.inputs[0]].shape[1] += 2**23


def strange_tensor(graph):
    graph.operators[0].inputs[0] = 999


def short_constant(graph):
    graph.tensors[graph.operators[1].inputs[1]].shape[0] += 1


@pytest.mark.export
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "change", [negative_scale, no_bias, huge_input, strange_tensor, short_constant]
)
def test_files_on_which_litert_would_crash_or_hang_are_refused(change, int8, tmp_path):
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(int8))
    (graph,) = model.subgraphs
    change(graph)
    path = tmp_path / "broken.tflite"
    flatbuffer_utils.write_model(model, str(path))
    for read in (kd.export.LiteRTModel, kd.export.latency):
        with pytest.raises(ValueError, match="broken.tflite"):
            read(path)


@pytest.mark.export
@pytest.mark.tensorflow
def test_flipped_files_neither_end_nor_hang_the_process(int8):
    counts, failures = broken.run_litert(int8, 50, seed=3)
    assert not failures and sum(counts.values()) == 60
    assert counts["refused"] > 20
