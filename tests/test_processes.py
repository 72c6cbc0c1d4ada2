"""Two processes train like one: MultiWorkerMirroredStrategy, and JAX with keras.distribution.

TensorFlow's server and JAX's coordinator take connections from any network, so both processes run
where there is no other network than loopback, if the machine allows that.
"""

import contextlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests import processes
from tests.support import largest_difference

pytestmark = pytest.mark.core
ON_JAX = keras.backend.backend() == "jax"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What both processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, processes.__file__, "launch", str(folder)]
    if processes.can_be_alone():
        command = [*processes.ALONE, *command, "alone"]
    else:
        try:
            processes.free_ports(1)
        except OSError as error:
            pytest.skip(f"no loopback: {error}")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": ""}
    run = subprocess.run(
        command, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=280
    )
    logs = [path.read_text()[-3000:] for path in sorted(folder.glob("*.log"))]
    assert run.returncode == 0, "\n".join([run.stderr, *logs])
    return folder


def saved(folder, name, rank):
    with np.load(folder / f"{name}_{rank}.npz") as file:
        return [file[key] for key in file.files]


@pytest.mark.parametrize("name", processes.CASES)
def test_two_processes_train_like_one(name, folder):
    _, weights, logs = processes.train(name, contextlib.nullcontext)
    two = [saved(folder, name, rank) for rank in range(processes.COUNT)]
    for first, second in zip(*two, strict=True):
        assert first.tobytes() == second.tobytes()
    assert largest_difference(weights, two[0]) < 1e-6
    for rank in range(processes.COUNT):
        found = json.loads((folder / f"{name}_{rank}.json").read_text())
        assert found.keys() == logs.keys()
        for key in logs:
            np.testing.assert_allclose(found[key], logs[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_processes_go_on_together_from_the_newest_checkpoint_that_all_have(folder):
    for rank in range(processes.COUNT):
        pairs = zip(saved(folder, "resumed", rank), saved(folder, "whole", rank), strict=True)
        assert all(first.tobytes() == second.tobytes() for first, second in pairs)


def test_the_chief_saves_what_any_process_loads(folder):
    student = keras.saving.load_model(folder / "student.keras")
    # Of the last case the student's weights come first.
    last = saved(folder, list(processes.CASES)[-1], rank=1)
    assert largest_difference(student.get_weights(), last[: len(student.weights)]) == 0


EXPECTED = {
    "last": "can't follow examples from replica to replica",
    "predict": "no process can fetch what the others predicted",
    "whole": "a ArrayPipeline without a shard",
    "ids": "needs ids that name an example in all processes",
    "arrays": "each feeds its own part of every batch.*Received: a ndarray",
    "alone": "2 processes would each train alone",
}


def test_what_several_processes_cannot_do_is_refused(folder):
    for rank in range(processes.COUNT):
        found = json.loads((folder / f"refused_{rank}.json").read_text())
        assert list(found) == (list(EXPECTED)[1:] if ON_JAX else ["last"])
        for name, message in found.items():
            with pytest.raises(ValueError, match=EXPECTED[name]):
                raise ValueError(message)
