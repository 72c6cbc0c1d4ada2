"""What `test_processes` runs in each of two processes, and how it starts them.

As a script: `processes.py launch FOLDER` starts both on loopback, `processes.py work FOLDER RANK
COUNT PORT PORT` is one of them. Imports of Keras wait until the backend is set up.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

#: Seconds after which a pair of processes that waits for itself is stopped.
LIMIT = 240
COUNT = 2
ROOT = pathlib.Path(__file__).parent.parent
# A name space of its own holds no network but loopback, on which nobody else can listen.
ALONE = ["unshare", "--map-root-user", "--net"]
LOOPBACK = ["ip", "link", "set", "lo", "up"]


# Starting them --------------------------------------------------------------------------------


def can_be_alone():
    """Whether this machine lets a process have a network of its own."""
    with contextlib.suppress(OSError):
        return subprocess.run([*ALONE, *LOOPBACK], capture_output=True).returncode == 0
    return False


def launch(folder):
    """Start both processes, and stop both when one fails or their time is over."""
    if "alone" in sys.argv:
        subprocess.run(LOOPBACK, check=True)
    ports = [str(port) for port in free_ports(COUNT)]
    workers = []
    for rank in range(COUNT):
        output = open(pathlib.Path(folder) / f"{rank}.log", "w")  # noqa: SIM115
        command = [sys.executable, __file__, "work", folder, str(rank), *ports]
        workers.append(subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT))
    try:
        codes = [worker.wait(LIMIT) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    sys.exit(any(codes))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# What each of them does -----------------------------------------------------------------------


def work(folder, rank, *ports):
    rank, folder = int(rank), pathlib.Path(folder)
    on_jax = os.environ["KERAS_BACKEND"] == "jax"
    scope = _join_jax(rank, ports[0]) if on_jax else _join_tensorflow(rank, ports)
    import numpy as np

    import kdtoolkit as kd

    for name in CASES:
        distiller, weights, logs = train(name, scope, shard=(rank, COUNT) if on_jax else (0, 1))
        np.savez(folder / f"{name}_{rank}.npz", *weights)
        (folder / f"{name}_{rank}.json").write_text(json.dumps(logs))
    if kd.is_chief(distiller):
        distiller.student.save(folder / "student.keras")
    shard = (rank, COUNT) if on_jax else (0, 1)
    whole = train("offline", scope, shard, [kd.callbacks.Resume(folder / "whole")])[1]
    np.savez(folder / f"whole_{rank}.npz", *whole)
    np.savez(folder / f"resumed_{rank}.npz", *resumed(scope, folder / "run", rank, shard))
    (folder / f"refused_{rank}.json").write_text(json.dumps(refused(scope)))


def _join_jax(rank, port):
    import keras

    keras.distribution.initialize(f"127.0.0.1:{port}", COUNT, rank)
    return keras.distribution.DataParallel(auto_shard_dataset=False).scope


def _join_tensorflow(rank, ports):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy().scope


def offline(teacher):
    import kdtoolkit as kd
    from tests.support import dense

    return kd.Distiller(student=dense(4, 0, norm=False, l2=1e-3), teacher=teacher)


def mutual(teacher=None):
    import kdtoolkit as kd
    from tests.support import dense

    students = [dense(units, units, norm=False) for units in (4, 5)]
    return kd.MutualDistiller(students=students, updates="alternating")


def remembering(teacher=None, source="PredictionMemory"):
    import kdtoolkit as kd
    from tests.support import dense

    source = getattr(kd.sources, source)()
    return kd.SelfDistiller(student=dense(4, 0, norm=False), source=source)


CASES = {"offline": offline, "mutual": mutual, "remembering": remembering}


def made(name, scope, **kwargs):
    """A compiled distiller whose teacher was made where nothing trains."""
    import keras

    from tests.support import crossentropy, dense

    teacher = dense(8, 1, norm=False)
    with scope():
        distiller = CASES[name](teacher, **kwargs)
        distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    return distiller


def train(name, scope, shard=(0, 1), more=()):
    """`(distiller, its arrays, its logs)` after three epochs in another order each."""
    import keras

    import kdtoolkit as kd
    from tests.support import arrays

    distiller, memory = made(name, scope), name == "remembering"
    callbacks = [*([kd.callbacks.PeriodicTeacher()] if memory else []), *more]
    with scope() if keras.backend.backend() == "jax" else contextlib.nullcontext():
        history = distiller.fit(
            pipeline(shard, memory), epochs=3, verbose=0, shuffle=False, callbacks=callbacks
        )
    found = arrays(distiller.student if memory else distiller)
    if memory:
        found.append(keras.ops.convert_to_numpy(distiller.source.table))
    return distiller, found, history.history


def resumed(scope, folder, rank, shard):
    """The arrays of the run "offline", stopped in its second epoch and taken up by new objects."""
    import keras

    import kdtoolkit as kd

    def stop(batch, logs):
        if list(folder.glob(f"process-{rank}-of-{COUNT}/epoch-00001-batch-*")):
            raise InterruptedError

    stopping = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with contextlib.suppress(InterruptedError):
        train("offline", scope, shard, [stopping, kd.callbacks.Resume(folder, every_batches=1)])
    if rank == 1:
        # As if it had been killed before it wrote its newest.
        (folder / f"process-1-of-{COUNT}" / "epoch-00001-batch-000001.npz").unlink()
    return train("offline", scope, shard, [kd.callbacks.Resume(folder, every_batches=1)])[1]


def pipeline(shard=(0, 1), example_ids=True):
    import kdtoolkit as kd
    from tests.support import data

    x, y = data(16)
    return kd.data.ArrayPipeline(x, y, batch_size=8, seed=1, example_ids=example_ids, shard=shard)


def refused(scope):
    """What several processes can't do: the messages."""
    import keras

    import kdtoolkit as kd
    from tests.support import data

    def message(call):
        try:
            call()
        except (ValueError, NotImplementedError) as error:
            return str(error)

    if keras.backend.backend() == "tensorflow":
        last = made("remembering", scope, source="LastPredictions")
        return {"last": message(lambda: last.fit(pipeline(), verbose=0, shuffle=False))}
    plain, memory = made("offline", scope), made("remembering", scope)
    every_epoch = [kd.callbacks.PeriodicTeacher()]
    with scope():
        found = {
            "predict": message(lambda: plain.predict(data(16)[0])),
            "whole": message(lambda: plain.fit(pipeline(), verbose=0)),
            "ids": message(lambda: memory.fit(*data(16), callbacks=every_epoch)),
        }
        keras.distribution.distribution().auto_shard_dataset = True
        found["arrays"] = message(lambda: plain.fit(*data(16), verbose=0))
    return {**found, "alone": message(lambda: plain.fit(*data(16), verbose=0))}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    {"launch": launch, "work": work}[sys.argv[1]](*[a for a in sys.argv[2:] if a != "alone"])
