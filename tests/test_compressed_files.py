"""What training saw is what the file computes, and what was asked of weights is in the file."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from kdtoolkit.comparison.counting import multiplications

pytestmark = [pytest.mark.tensorflow, pytest.mark.export]


@pytest.fixture(scope="module")
def digits():
    return kd.data.load_digits(seed=0)


def train(network, data, epochs, rate=2e-3):
    network.compile(
        keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    network.fit(data.x_train, data.y_train, batch_size=32, epochs=epochs, verbose=0)
    return network


@pytest.fixture(scope="module")
def trained(digits):
    """A student of the digits that knows them: few logits are near a tie."""
    keras.utils.set_random_seed(0)
    return train(kd.models.resnet(8, (8, 8, 1), 10, width=8, seed=0), digits, 20)


def size(row):
    return int(np.prod(row.shape))


def agreement(network, path, x):
    """Share of equal classes, and the largest difference in steps of the file's output."""
    file = kd.export.LiteRTModel(path)
    keras_outputs, outputs = network.predict(x, verbose=0), file.predict(x)
    levels = np.unique(np.concatenate([outputs.ravel(), [0.0]]))
    step = np.diff(levels).min()
    return (keras_outputs.argmax(-1) == outputs.argmax(-1)).mean(), np.abs(
        keras_outputs - outputs
    ).max() / step


@pytest.mark.parametrize("weights", [8, 4])
def test_the_int8_file_and_the_network_that_was_trained_for_it_agree(
    weights, digits, trained, tmp_path
):
    aware = kd.compress.quantize_aware(trained, digits.x_train, weights=weights)
    train(aware, digits, 2)
    report = kd.export.litert(
        aware, tmp_path / "q.tflite", quantize="int8", io="int8", check_data=digits.x_val
    )
    assert report.full_integer
    same, steps = agreement(aware, tmp_path / "q.tflite", digits.x_test)
    assert same >= 0.995
    assert steps <= 5
    # The arithmetic is that of integers, and not of floats that happen to agree.
    assert set(report.ops) == {"ADD", "CONV_2D", "FULLY_CONNECTED", "MEAN"}
    dtype = "int4" if weights == 4 else "int8"
    kernels = [row for row in kd.export.inspect(tmp_path / "q.tflite").weights if size(row) > 80]
    assert kernels and {row.dtype for row in kernels} == {dtype}


def test_zeros_and_shared_values_are_in_the_file_and_make_it_compress(digits, trained, tmp_path):
    pruned = train(kd.compress.prune(trained, 0.75), digits, 1)
    shared = train(kd.compress.cluster(pruned, 8), digits, 1)
    aware = train(kd.compress.quantize_aware(shared, digits.x_train), digits, 1)
    sizes = {}
    for name, network, mode in [
        ("float", trained, None),
        ("pruned", pruned, None),
        ("shared", shared, None),
        ("aware", aware, "int8"),
    ]:
        path = tmp_path / f"{name}.tflite"
        report = kd.export.litert(network, path, quantize=mode, check_data=digits.x_val)
        sizes[name] = (report.bytes, report.gzip_bytes)
        wanted = {row["size"]: row for row in kd.compress.summary(network)}
        found = {size(row): row for row in kd.export.inspect(path).weights}
        assert wanted.keys() <= found.keys()
        for count, asked in wanted.items() if name != "float" else ():
            # Rounding may make more zeros, never fewer.
            zeros, there = asked["sparsity"] * count, found[count].zeros * count
            assert there == pytest.approx(zeros) if mode is None else there > zeros - 0.5
            assert name == "pruned" or found[count].distinct <= 8
    assert sizes["shared"][1] < sizes["pruned"][1] < 0.6 * sizes["float"][1]
    assert sizes["aware"][1] < sizes["shared"][1]


def test_fewer_filters_are_a_smaller_file_with_less_to_compute(digits, trained, tmp_path):
    smaller = kd.compress.prune_filters(trained, 0.5)
    reports = [
        kd.export.litert(network, tmp_path / f"{index}.tflite", check_data=digits.x_val)
        for index, network in enumerate((trained, smaller))
    ]
    assert reports[1].bytes < 0.45 * reports[0].bytes
    assert reports[1].ops == reports[0].ops
    macs = [multiplications(tmp_path / f"{index}.tflite") for index in (0, 1)]
    assert macs[1] < 0.3 * macs[0]


def dense_of_all_kinds():
    inputs = keras.Input((8, 8, 1))
    h = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    h = layers.ReLU(6.0)(layers.BatchNormalization()(h))
    h = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(h)
    h = layers.ReLU()(layers.BatchNormalization()(h))
    h = layers.Conv2D(16, 1, activation="relu")(h)
    h = layers.MaxPooling2D()(layers.Dropout(0.1)(h))
    h = layers.Conv2DTranspose(8, 2, activation="relu")(h)
    h = layers.Concatenate()([h, layers.Conv2D(8, 2, padding="same")(h)])
    h = layers.Dense(16, activation="tanh")(layers.Flatten()(layers.AveragePooling2D(2)(h)))
    return keras.Model(inputs, layers.Dense(10)(h))


def test_convolutions_of_all_kinds_become_integers(digits, tmp_path):
    network = train(dense_of_all_kinds(), digits, 6)
    aware = train(kd.compress.quantize_aware(network, digits.x_train), digits, 1)
    report = kd.export.litert(
        aware, tmp_path / "q.tflite", quantize="int8", io="int8", check_data=digits.x_val
    )
    assert report.full_integer
    # A concatenation brings its parts to one scale; nothing else is converted.
    assert "DEQUANTIZE" not in report.ops and report.ops.get("QUANTIZE", 0) <= 2
    same, steps = agreement(aware, tmp_path / "q.tflite", digits.x_test)
    assert same >= 0.98
    assert steps <= 8


def test_a_transformer_becomes_integers_with_representative_data(digits, tmp_path):
    network = kd.models.vit((8, 8, 1), 10, width=16, depth=1, heads=2, patch_size=2, seed=0)
    train(network, digits, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        aware = kd.compress.quantize_aware(network, digits.x_train)
    train(aware, digits, 1)
    path = tmp_path / "q.tflite"
    report = kd.export.litert(
        aware, path, quantize="int8", representative_data=digits.x_train, check_data=digits.x_val
    )
    assert report.agreement > 0.9
    assert report.tensor_bytes["int8"] > 0.5 * aware.count_params()


def test_recurrent_weights_are_rounded_and_the_file_keeps_them(digits, tmp_path):
    inputs = keras.Input((8, 8, 1))
    h = layers.LSTM(12, dropout=0.1)(layers.Reshape((8, 8))(inputs))
    network = train(keras.Model(inputs, layers.Dense(10)(h)), digits, 2)
    rounded = train(kd.compress.quantize_aware(network, activations=None), digits, 1)
    plain = kd.compress.strip(rounded)
    report = kd.export.litert(
        plain, tmp_path / "q.tflite", quantize="dynamic", check_data=digits.x_val
    )
    assert report.agreement > 0.98
