"""What `kd.callbacks.Resume` costs: time of an epoch with it over that without, and its files.

    export TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1  # less noise beside other work
    python benchmarks/resume_cost.py --rounds 5 --out benchmarks/results

Two cases: a small perceptron on the digits with a teacher, and ResNet-20 with ResNet-32 on 32x32
random images. Each trains without Resume, with a checkpoint after each epoch, and with one after
every ten batches as well. All run in turn in one process, in another order each round, on the same
batches and into a fresh folder; the table gives medians over the rounds, ratios to the epochs
without in the same round. The time of a save goes until its last byte is on the disk.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import interrupted_runs
import keras
import numpy as np

import kdtoolkit as kd
from kdtoolkit import evaluation

#: Arguments of Resume by the name in the table; None trains without.
VARIANTS = {"without": None, "each_epoch": {}, "every_10_batches": {"every_batches": 10}}


class TimedResume(kd.callbacks.Resume):
    """Resume, with the seconds of each save."""

    def __init__(self, directory, **settings):
        super().__init__(directory, **settings)
        self.seconds = []

    def _save(self, position):
        begin = time.perf_counter()
        super()._save(position)
        self.seconds.append(time.perf_counter() - begin)


class FitTime(keras.callbacks.Callback):
    """Seconds from the begin of the first epoch to the end of the last, all saves included."""

    begin = seconds = None

    def on_epoch_begin(self, epoch, logs=None):
        self.begin = self.begin or time.perf_counter()

    def on_train_end(self, logs=None):
        self.seconds = time.perf_counter() - self.begin


def digits():
    distiller, _ = interrupted_runs.offline()
    data = interrupted_runs.small_digits()
    return distiller, (data.x_train, data.y_train), 16, 8


def residual():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(320, 32, 32, 3)).astype("float32")
    student, teacher = (kd.models.resnet(d, x.shape[1:], 10, seed=d) for d in (20, 32))
    edge = kd.Transfer(kd.losses.SoftTargets(4.0))
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=[edge])
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), interrupted_runs.label_loss())
    return distiller, (x, generator.integers(10, size=len(x))), 16, 1


#: What makes a distiller, its data, the size of a batch and the number of epochs of a round.
CASES = {"digits, dense": digits, "ResNet-32 to ResNet-20": residual}


def trained(distiller, arrays, batch, epochs, settings):
    """Seconds of an epoch, seconds of each save, and the bytes of the newest file."""
    train = kd.data.ArrayPipeline(*arrays, batch_size=batch, seed=0)
    watch = FitTime()
    with tempfile.TemporaryDirectory() as folder:
        # Either tells the pipeline the epoch.
        last = TimedResume(folder, **settings) if settings is not None else None
        callbacks = [watch, last or kd.data.FollowEpochs(train)]
        distiller.fit(train, shuffle=False, epochs=epochs, callbacks=callbacks, verbose=0)
        sizes = [path.stat().st_size for path in sorted(pathlib.Path(folder).glob("*.npz"))]
    return watch.seconds / epochs, last.seconds if last else [], sizes[-1] if sizes else 0


def measure(case, rounds):
    """`{variant: (epoch, saves, bytes)}` of each round."""
    made, found = CASES[case](), []
    for index in range(-1, rounds):
        names = list(VARIANTS)[:: 1 if index % 2 else -1]
        results = {name: trained(*made, VARIANTS[name]) for name in names}
        # The first round traces.
        if index >= 0:
            found.append(results)
        print(f"{case}, round {index + 1} of {rounds}", flush=True)
    return found


def summarise(case, rounds):
    row = {"case": case}
    without = [results["without"][0] for results in rounds]
    row["epoch_s_without"] = round(statistics.median(without), 3)
    for name in list(VARIANTS)[1:]:
        pairs = zip(rounds, without, strict=True)
        ratios = [results[name][0] / alone for results, alone in pairs]
        saves = [seconds for results in rounds for seconds in results[name][1]]
        row[f"{name}_ratio"] = round(statistics.median(ratios), 3)
        row[f"{name}_ratio_min"] = round(min(ratios), 3)
        row[f"{name}_ratio_max"] = round(max(ratios), 3)
        row[f"{name}_ms_per_save"] = round(1000 * statistics.median(saves), 1)
    row["file_mb"] = round(rounds[-1]["each_epoch"][2] / 1e6, 3)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="folder for resume_cost.csv")
    args = parser.parse_args()
    table = [summarise(case, measure(case, args.rounds)) for case in args.cases]
    for row in table:
        print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv(table, args.out / "resume_cost.csv", overwrite=True)


if __name__ == "__main__":
    main()
