"""TensorFlow and JAX train the same weights, and what JAX trained exports under TensorFlow."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from tests.support import conv, crossentropy, fit, images, largest_difference

pytestmark = [pytest.mark.tensorflow, pytest.mark.export]

SCRIPT = """
import sys
import keras
from tests.support import fit, images
assert keras.backend.backend() == "jax"
distiller = keras.models.load_model(sys.argv[1])
fit(distiller, *images(40), epochs=3, shuffle=False)
distiller.student.save(sys.argv[2])
"""


def run_on_jax(*arguments):
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import kdtoolkit" + SCRIPT
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, check=True)


def test_jax_trains_the_weights_that_tensorflow_trains_and_they_export(tmp_path):
    pytest.importorskip("jax")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("starts from TensorFlow")
    edges = [
        kd.Transfer(kd.losses.SoftTargets(), weight=0.9),
        kd.Transfer(kd.losses.DIST(), weight=0.5),
        kd.Transfer(kd.losses.DecoupledKD(), weight=0.1),
    ]
    distiller = kd.Distiller(student=conv(4, 0), teacher=conv(8, 1), transfers=edges)
    distiller.compile(keras.optimizers.Adam(1e-2), crossentropy())
    distiller.save(tmp_path / "start.keras")
    start = distiller.student.get_weights()
    run_on_jax(tmp_path / "start.keras", tmp_path / "student.keras")
    fit(distiller, *images(40), epochs=3, shuffle=False)
    trained_on_jax = keras.models.load_model(tmp_path / "student.keras")
    ours, theirs = distiller.student.get_weights(), trained_on_jax.get_weights()
    assert largest_difference(start, ours) > 0.01
    assert largest_difference(ours, theirs) < 1e-5
    report = kd.export.litert(trained_on_jax, tmp_path / "student.tflite", check_data=images(8)[0])
    assert report.max_difference < 1e-4
    file = kd.export.LiteRTModel(tmp_path / "student.tflite")
    expected = keras.ops.convert_to_numpy(trained_on_jax(images(8)[0]))
    np.testing.assert_allclose(file.predict(images(8)[0]), expected, atol=1e-4)
