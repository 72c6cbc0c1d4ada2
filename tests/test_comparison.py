"""Comparing candidates: the numbers, the forms of the result, what is refused."""

import csv
import gzip
import json

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.comparison import candidates as candidates_module
from kdtoolkit.comparison import costs
from kdtoolkit.comparison.counting import multiplications, stored_weights
from kdtoolkit.comparison.examples import examples_of
from kdtoolkit.comparison.scores import log_probabilities, wilson

layers = keras.layers
CLASSES = 4


def files(test):
    """A test that writes and runs files."""
    return pytest.mark.export(pytest.mark.tensorflow(test))


def network(seed, units=CLASSES, softmax=False, width=8):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(width, activation="relu", bias_initializer="ones")(inputs)
    # The converter would drop biases of zero.
    head = layers.Dense(units, "softmax" if softmax else None, bias_initializer="ones", name="y")
    outputs = head(hidden)
    return keras.Model(inputs, outputs, name=f"network{seed}")


def examples(count=60):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((count, 6)).astype("float32")
    # Class 3 has no example.
    return x, generator.integers(0, CLASSES - 1, count)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two networks; the second also as a .keras file and as an int8 file."""
    folder = tmp_path_factory.mktemp("made")
    first, second = network(1, width=300), network(2)
    second.save(folder / "second.keras")
    kd.export.litert(second, folder / "second.tflite")
    x, _ = examples()
    kd.export.litert(second, folder / "int8.tflite", quantize="int8", representative_data=x)
    return {
        "first": first,
        "second": second,
        "saved": folder / "second.keras",
        "file": folder / "second.tflite",
        "int8": str(folder / "int8.tflite"),
    }


@pytest.fixture(scope="module")
def table(made):
    return kd.compare({k: v for k, v in made.items() if k != "saved"}, *examples(), runs=1)


@pytest.fixture(scope="module")
def plain(made):
    """One candidate without time and memory, as an example of what is refused or empty."""
    return lambda *args, **options: kd.compare(
        {"file": made["file"]}, *args, **{"latency": False, **options}
    )


# The numbers


@pytest.mark.core
def test_wilsons_interval_has_the_published_ends():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=5e-5)
    assert wilson(10, 10)[1] == pytest.approx(1)


@files
def test_quality_is_that_of_the_definitions(made, table):
    x, y = examples()
    logits = {k: np.asarray(made[k](x), "float64") for k in ("first", "second")}
    chances = np.exp(logits["second"]) / np.exp(logits["second"]).sum(1, keepdims=True)
    right = logits["second"].argmax(1) == y
    row = table.rows[1]
    assert row["test_accuracy"] == right.mean()
    assert row["accuracy_low"] < right.mean() < row["accuracy_high"]
    assert row["nll"] == pytest.approx(-np.log(chances[np.arange(60), y]).mean(), rel=1e-6)
    ece, confidence = 0, chances.max(1)
    for low in np.arange(15) / 15:
        own = (confidence > low) & (confidence <= low + 1 / 15)
        ece += abs(right[own].sum() - confidence[own].sum()) / 60
    assert row["ece"] == pytest.approx(ece, rel=1e-6)
    answers = {k: v.argmax(1) for k, v in logits.items()}
    assert row["agreement"] == np.mean(answers["first"] == answers["second"]) < 1
    changes = [np.mean(right[y == k]) - np.mean(answers["first"][y == k] == k) for k in range(3)]
    assert row["class_changes"] == [*map(pytest.approx, changes), None]
    assert row["worst_change"] == pytest.approx(min(changes))
    assert row["worst_class"] == str(np.argmin(changes))
    assert row["worst_classes"][0]["examples"] == np.sum(y == np.argmin(changes))


@files
def test_the_same_network_in_three_forms_gives_the_same_row(made):
    names = ("second", "saved", "file")
    found = kd.compare({k: made[k] for k in names}, *examples(), latency=False).rows
    for row in found[1:]:
        assert row["agreement"] == 1 and row["worst_class"] is None
        for key in ("test_accuracy", "class_changes", "macs", "bytes", "sparsity"):
            assert row[key] == found[0][key], key
        assert row["nll"] == pytest.approx(found[0]["nll"], abs=1e-5)
    assert [row["measured"] == "the file" for row in found] == [False, False, True]


@files
def test_costs_are_those_of_the_file(made, table):
    content = made["file"].read_bytes()
    row = table.rows[2]
    assert row["bytes"] == len(content)
    assert row["gzip_bytes"] == len(gzip.compress(content, mtime=0))
    assert row["parameters"] == made["second"].count_params() == 6 * 8 + 8 + 8 * 4 + 4
    assert row["macs"] == 6 * 8 + 8 * 4
    assert table.rows[3]["full_integer"] and not row["full_integer"]
    for one in table.rows:
        for start in ("latency", "latency_2_threads"):
            assert 0 < one[f"{start}_min_ms"] <= one[f"{start}_ms"] <= one[f"{start}_p95_ms"]
        assert one["memory_bytes"] > 0


@files
def test_multiplications_are_counted_layer_by_layer(tmp_path):
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, padding="same", strides=2)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2DTranspose(3, 2, strides=2)(x)
    model = keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))
    path = tmp_path / "m.tflite"
    kd.export.litert(model, path, batch_size=2)
    convolution, depthwise, transposed = 16 * 4 * 9 * 2, 16 * 4 * 9, 16 * 4 * 2 * 2 * 3
    assert multiplications(path) == convolution + depthwise + transposed + 8 * 8 * 3 * 5
    folded = sum(w.size for layer in model.layers for w in map(np.asarray, layer.get_weights()))
    assert stored_weights(path) <= folded - 4 * 4


@files
def test_loops_have_no_number_of_multiplications(tmp_path):
    model = keras.Sequential([keras.Input((5, 2)), layers.SimpleRNN(3)])
    kd.export.litert(model, tmp_path / "m.tflite")
    assert multiplications(tmp_path / "m.tflite") is None


@files
def test_memory_grows_with_the_weights(tmp_path, made):
    large = keras.Sequential([keras.Input((1000,)), layers.Dense(2000)])
    kd.export.litert(large, tmp_path / "large.tflite")
    gap = costs.memory("a", tmp_path / "large.tflite") - costs.memory("b", made["file"])
    assert gap > 7_000_000


@pytest.mark.core
def test_files_are_timed_in_turns(monkeypatch):
    asked = []

    def latency(path, *, num_threads, runs):
        asked.append((path, num_threads))
        value = len(asked)
        return kd.export.Latency(value, value - 0.5, value + 1, runs, num_threads)

    monkeypatch.setattr(costs.export, "latency", latency)
    found = costs.times({"a": "A", "b": "B"}, (1, 2), runs=3)
    assert asked == [("A", 1), ("B", 1), ("A", 2), ("B", 2)] * costs.ROUNDS
    assert found["a"]["latency_ms"] == np.median([1, 5, 9, 13, 17])
    assert found["b"]["latency_2_threads_min_ms"] == 3.5
    assert found["b"]["latency_2_threads_p95_ms"] == 13


@pytest.mark.core
def test_probabilities_are_recognised_and_put_right():
    chances = np.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])
    logs, are_logits = log_probabilities(chances + 1 / 256, "auto")
    assert not are_logits
    np.testing.assert_allclose(np.exp(logs).sum(1), 1)
    logs, are_logits = log_probabilities(np.log(chances) + 5, "auto")
    assert are_logits
    np.testing.assert_allclose(np.exp(logs), chances)
    assert log_probabilities(chances, True)[1]
    with pytest.raises(ValueError, match="values from -1"):
        log_probabilities(chances - 1.1, False)


@files
def test_a_softmax_and_its_logits_are_the_same_candidate():
    logits, soft = network(3), network(3, softmax=True)
    x, y = examples()
    (row,) = kd.compare({"soft": soft}, x, y, teacher=logits, latency=False).rows
    assert not row["from_logits"] and row["agreement"] == 1
    expected = kd.evaluation.calibration(np.asarray(logits(x)), y)
    assert row["nll"] == pytest.approx(expected["nll"], abs=1e-5)


# The reference


@files
def test_a_teacher_is_the_reference_and_gets_no_row(made):
    one, teacher = {"int8": made["int8"]}, made["file"]
    found = kd.compare(one, *examples(), teacher=teacher, latency=False)
    named = kd.compare({**one, "t": teacher}, *examples(), teacher="t", latency=False)
    apart = kd.compare(one, *examples(), teacher=made["first"], latency=False)
    assert [row["model"] for row in found.rows] == ["int8"]
    assert found.reference == "teacher" and named.reference == "t"
    assert found.rows[0]["agreement"] == named.rows[0]["agreement"] > apart.rows[0]["agreement"]
    assert named.rows[1]["agreement"] == 1


# Data


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, number):
        rows = slice(20 * number, 20 * number + 20)
        return self.x[rows], self.y[rows]


@pytest.mark.core
@pytest.mark.parametrize("kind", ["arrays", "one-hot", "column", "sequence", "generator", "dict"])
def test_examples_come_in_many_forms(kind):
    x, y = examples()
    forms = {
        "arrays": (x, y),
        "one-hot": (x, np.eye(CLASSES)[y]),
        "column": (x, y[:, None]),
        "sequence": (Batches(x, y), None),
        "generator": ((batch for batch in [(x[:50], y[:50]), (x[50:], y[50:])]), None),
        "dict": ({"x": x}, y),
    }
    found, labels = examples_of(*forms[kind])
    np.testing.assert_array_equal(found["x"] if kind == "dict" else found, x)
    np.testing.assert_array_equal(labels, y)


@files
def test_a_shuffled_data_set_is_read_once(made, plain):
    import tensorflow as tf

    x, y = examples()
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(60).batch(7)
    assert plain(data).rows[0]["test_accuracy"] == plain(x, y).rows[0]["test_accuracy"]
    with pytest.raises(ValueError, match="without an end"):
        plain(data.repeat())


@files
def test_without_labels_there_is_agreement_only(made, tmp_path):
    found = kd.compare({k: made[k] for k in ("first", "file")}, examples()[0], latency=False)
    assert found.rows[1]["test_accuracy"] is None and found.rows[1]["agreement"] < 1
    assert "Accuracy" not in str(found) and "Agreement" in str(found)
    found.write_html(tmp_path / "page.html")
    assert "There were no labels" in (tmp_path / "page.html").read_text()
    with pytest.raises(ValueError, match="needs labels"):
        found.figures()


@files
def test_a_model_of_one_batch_size_and_a_dict_for_its_only_input():
    model = keras.Sequential([keras.Input((6,), batch_size=7), layers.Dense(CLASSES)])
    x, y = examples()
    (row,) = kd.compare({"a": model}, {"pixels": x}, y, latency=False).rows
    assert row["batch_size"] == 7 and row["macs"] == 6 * CLASSES


@files
def test_one_of_several_outputs_is_chosen_by_name(tmp_path):
    inputs = keras.Input((6,), name="x")
    early, late = layers.Dense(CLASSES)(inputs), layers.Dense(CLASSES)(inputs)
    model = keras.Model(inputs, {"early": early, "late": late})
    kd.export.litert(model, tmp_path / "m.tflite")
    both = {"file": tmp_path / "m.tflite"}
    x, y = examples()
    (row,) = kd.compare(both, x, y, teacher=model, output="early", latency=False).rows
    right = np.asarray(model(x)["early"]).argmax(1) == y
    assert row["test_accuracy"] == right.mean() and row["agreement"] == 1
    with pytest.raises(ValueError, match=r"Candidate 'file'.*\['early', 'late'\].*None"):
        kd.compare(both, x, y, latency=False)


@pytest.mark.core
def test_other_backends_measure_quality_only(monkeypatch):
    monkeypatch.setattr("kdtoolkit.comparison.run.keras.backend.backend", lambda: "jax")
    (row,) = kd.compare({"a": network(1)}, *examples()).rows
    assert row["test_accuracy"] is not None and row["parameters"] == 92
    assert row["bytes"] is row["latency_ms"] is row["memory_bytes"] is None
    assert "the backend jax can make none" in row["measured"]


# What is refused


@files
def test_bad_input_is_named(made, plain, tmp_path):
    x, y = examples()
    (tmp_path / "cut.tflite").write_bytes(made["file"].read_bytes()[:500])
    (tmp_path / "text.keras").write_text("no model")
    broken = network(5)
    broken.set_weights([w * np.nan for w in broken.get_weights()])
    cases = [
        ({}, (x, y), "1 or more"),
        ({"": made["file"]}, (x, y), "must be text"),
        ({"a": 3}, (x, y), "Candidate 'a' must be a keras.Model.*int"),
        ({"a": "m.onnx"}, (x, y), "Candidate 'a'.*ends in .tflite or .keras"),
        ({"a": tmp_path / "none.keras"}, (x, y), "Candidate 'a': there is no file"),
        ({"a": tmp_path / "text.keras"}, (x, y), "Candidate 'a'.*could not be loaded"),
        ({"a": tmp_path / "cut.tflite"}, (x, y), "Candidate 'a'.*500 bytes"),
        ({"ok": made["file"], "bad": broken}, (x, y), "Candidate 'bad'.*NaN.*60 of 60"),
        ({"a": made["file"], "b": network(1, 5)}, (x, y), "{'a': 4, 'b': 5} classes"),
        ({"a": made["file"]}, (x[:, :5], y), "Candidate 'a'.*wrong shape"),
        ({"a": made["file"]}, (x, y[:-1]), "60 and 59"),
        ({"a": made["file"]}, (x, y + 3), "from 0 to 3.*3 to 5"),
        ({"a": made["file"]}, (x, y / 2), "float64 of shape"),
        ({"a": made["file"]}, (x[:0], y[:0]), "1 or more examples"),
        ({"a": made["file"]}, ("data.npz", y), "str"),
    ]
    for candidates, data, message in cases:
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
            kd.compare(candidates, *data, latency=False)
    for options in ({"runs": 0}, {"from_logits": "maybe"}, {"class_names": ["a"]}):
        with pytest.raises(ValueError, match=next(iter(options))):
            plain(x, y, **options)


@files
def test_a_model_that_cannot_be_converted_is_named(monkeypatch):
    def litert(*args, **options):
        raise ValueError("no kernels")

    monkeypatch.setattr(candidates_module, "litert", litert)
    with pytest.raises(ValueError, match="Candidate 'a'.*float32 .tflite.*no kernels"):
        kd.compare({"a": network(1)}, *examples())


@files
def test_a_process_that_fails_is_named(tmp_path):
    (tmp_path / "bad.tflite").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="Candidate 'bad'.*memory.*the process ended with 1"):
        costs.memory("bad", tmp_path / "bad.tflite")


# The forms of the result


@files
def test_the_table_can_be_stored_and_printed(table, tmp_path):
    import rich.console

    stored = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert [row["model"] for row in stored["rows"]] == ["first", "second", "file", "int8"]
    assert stored["class_counts"][3] == 0 and stored["setting"]["versions"]["keras"]
    assert {"processor", "cores", "date", "memory", "rounds"} <= stored["setting"].keys()
    table.write_csv(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["nll"]) == table.rows[1]["nll"] and len(rows) == 4
    with pytest.raises(FileExistsError):
        table.write_csv(tmp_path / "t.csv")
    console = rich.console.Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))
    console.print(table.table())
    printed = console.export_text()
    console.file.close()
    for text in (str(table), printed):
        assert "Accuracy" in text and "2 threads" in text and "int8" in text
    figures = table.figures()
    assert set(figures) == {"bytes", "latency_ms"}


@files
def test_infinite_numbers_are_stored_as_nothing(plain, monkeypatch):
    certain = np.eye(CLASSES)[np.full(60, 3)]
    monkeypatch.setattr(candidates_module.Candidate, "outputs", lambda *args: certain)
    found = plain(*examples())
    assert found.rows[0]["nll"] == np.inf and found.to_dict()["rows"][0]["nll"] is None
    assert "inf" in str(found)


@files
def test_a_page_is_written_whole_or_not_at_all(table, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        table.write_html(path)
    monkeypatch.setattr("kdtoolkit.comparison.table.page", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        table.write_html(path, overwrite=True)
    assert path.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["page.html"]
