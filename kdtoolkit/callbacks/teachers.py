"""When the past selves of a student start to teach."""

from kdtoolkit import scalars
from kdtoolkit.callbacks.monitor import Monitor
from kdtoolkit.callbacks.rewind import BestWeights
from kdtoolkit.distiller import Distiller
from kdtoolkit.progress import LastCallback, TeacherPolicy


class _EpochTeacher(TeacherPolicy):
    """What both policies share: a source forgets at the start of an epoch what wasn't taken."""

    def on_train_begin(self, logs=None):
        self._waiting()

    def on_epoch_begin(self, epoch, logs=None):
        for source in self._waiting():
            source.begin_epoch()

    def _waiting(self):
        """The sources that wait for `commit`."""
        model = self.model
        sources = model.sources if isinstance(model, Distiller) else {}
        waiting = [source for source in sources.values() if source.commits]
        if not waiting:
            raise ValueError(
                f"{type(self).__name__} tells a source when to take over what it saw. Expected a "
                "`kd.Distiller` with a source that waits for it, such as "
                "`teacher=kd.sources.PredictionMemory()`. Received: "
                f"{type(model).__name__} with the sources {sorted(sources)}"
            )
        return waiting


class BestTeacher(Monitor, _EpochTeacher):
    """The student's best epoch so far teaches.

    At the end of an epoch, each source that waits (`PredictionMemory`, `Snapshot`) takes over what
    it saw in this epoch, if the monitored value is strictly better than at its last commit.
    Otherwise it forgets it.

    The best value is in the source and is saved with the distiller, so that a loaded distiller
    goes on where it was. `source.reset()` forgets it. The logs get `teacher_updated`, 1.0 in epochs
    in which a source took over, else 0.0.

    Args:
        monitor: str, key of the logs. Defaults to `"val_accuracy"`.
        mode: `"min"`, `"max"`, or `"auto"` (default): the smaller the better if the name ends in
            "loss" or "error", else the larger.

    Raises:
        ValueError: another mode; at the start of `fit`, if the model isn't a distiller with such
            a source; at the end of an epoch, if the logs don't have the monitored value.

    Example:
        >>> import kdtoolkit as kd
        >>> best = kd.callbacks.BestTeacher("val_loss")

    Source: Takagi and Hattori, "Reducing Training Time for Distillation of DNN by Self
    Distillation" (81st National Convention of IPSJ, 2019, 4U-02), algorithm 1, lines 9 to 11.
    """

    def __init__(self, monitor="val_accuracy", mode="auto"):
        super().__init__(monitor, mode)

    def on_epoch_end(self, epoch, logs=None):
        score = self.score_of(logs)
        improved = [s for s in self._waiting() if self.better(score, s.score)]
        for source in improved:
            source.commit(score)
        logs["teacher_updated"] = float(bool(improved))


class PeriodicTeacher(_EpochTeacher):
    """The student of some epochs ago teaches, whatever its score.

    Each source that waits takes over what it saw in epoch n, 2n, 3n, ... (counted from 1). Between
    them it forgets, so that only one epoch teaches. The logs get `teacher_updated`, 1.0 or 0.0.

    Args:
        epochs: int >= 1, n. 1 (default): the epoch before teaches, as in PS-KD. The length of a
            cycle of the learning rate: the end of the last cycle teaches, as in snapshot
            distillation.

    Raises:
        ValueError: `epochs` below 1; at the start of `fit`, if the model isn't a distiller with
            such a source.

    Example:
        >>> import kdtoolkit as kd
        >>> previous_epoch = kd.callbacks.PeriodicTeacher()

    Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets"
    (ICCV 2021), https://arxiv.org/abs/2006.12000; Yang et al., "Snapshot Distillation" (CVPR 2019),
    https://arxiv.org/abs/1812.00123.
    """

    def __init__(self, epochs=1):
        super().__init__()
        self.epochs = scalars.whole(epochs, "epochs", type(self).__name__)

    def on_epoch_end(self, epoch, logs=None):
        due = (epoch + 1) % self.epochs == 0
        for source in self._waiting() if due else []:
            source.commit()
        logs["teacher_updated"] = float(due)


def with_best_teacher(callbacks, monitor="val_accuracy"):
    """`callbacks` with a `BestTeacher` that agrees with the callback that keeps the best weights.

    Args:
        callbacks: list of callbacks.
        monitor: what to monitor if no `BestWeights` is among them.

    Returns:
        A new list. `BestTeacher` comes after what may add the monitored value to the logs, and
        before a callback that must be the last.
    """
    for index, callback in enumerate(callbacks):
        if isinstance(callback, BestWeights):
            teacher = BestTeacher(callback.monitor, callback.mode)
            return [*callbacks[:index], teacher, *callbacks[index:]]
    last = len(callbacks) - sum(isinstance(c, LastCallback) for c in callbacks[-1:])
    return [*callbacks[:last], BestTeacher(monitor), *callbacks[last:]]
