"""The data sets of `experiments/mutual.py`, and what is trained on them with which optimizer."""

import dataclasses
from typing import Any

import deit_recipe
import keras
import losses
import numpy as np

import kdtoolkit as kd

#: How many training images the loss under noise is measured on.
SAMPLE = 512


@dataclasses.dataclass
class Data:
    """Training batches, and parts to measure on: arrays `(x, y)` or batches of them.

    Attributes:
        train: what `fit` takes; `steps` batches are an epoch.
        val, test: parts.
        sample: `(x, y)`, some training images without augmentation.
        soft: whether labels of training are distributions.
    """

    options: Any
    train: Any
    steps: int
    val: Any
    test: Any
    sample: tuple
    classes: int
    callbacks: list
    soft: bool = False

    @property
    def input_shape(self):
        return self.sample[0].shape[1:]

    @property
    def steps_per_epoch(self):
        # A PyDataset knows its length.
        return self.steps if self.soft else None

    def label_loss(self):
        if not self.soft:
            return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=deit_recipe.SMOOTHING
        )

    def optimizer(self):
        options, warmup = self.options, self.options.warmup * self.steps
        steps = options.epochs * self.steps
        made = deit_recipe.optimizer(
            options.learning_rate, options.weight_decay, steps, min(warmup, steps // 2)
        )
        return deit_recipe.spared(made) if self.options.recipe == "deit" else made

    def logits(self, model, part):
        """What a network says about a part, and None where there is no such part."""
        part = getattr(self, part)
        if part is None:
            return None
        x = part[0] if isinstance(part, tuple) else part.map(lambda x, y: x)
        return model.predict(x, batch_size=500, verbose=0)

    def accuracy(self, logits, part):
        """Share of right answers of the mean of the networks' probabilities."""
        part = getattr(self, part)
        if part is None:
            return None
        labels = part[1] if isinstance(part, tuple) else np.concatenate([y for _, y in part])
        mean = np.mean([keras.ops.softmax(z) for z in logits], axis=0)
        return float(np.mean(np.argmax(mean, axis=-1) == labels))


def load(options, seed):
    """The `Data` of a preset."""
    if options.data == "imagenet":
        return _imagenet(options, seed)
    data = losses.load(options, seed, options.max_train)
    if options.recipe == "deit":
        return _with_recipe(options, data, seed)
    shift = {"flip": options.data != "digits", "shift": max(1, options.size // 8)}
    batches = kd.data.ArrayPipeline(
        data.x_train,
        data.y_train,
        batch_size=options.batch,
        augment=kd.data.FlipShift(**shift),
        seed=seed,
        drop_remainder=True,
    )
    follow = [kd.data.FollowEpochs(batches)]
    return Data(train=batches, steps=len(batches), callbacks=follow, **_parts(options, data))


def _parts(options, data):
    return {
        "options": options,
        "val": (data.x_val, data.y_val),
        "test": (data.x_test, data.y_test),
        "sample": (data.x_train[:SAMPLE], data.y_train[:SAMPLE]),
        "classes": data.num_classes,
    }


def _with_recipe(options, data, seed):
    """Arrays under DeiT's recipe; the networks see other colours than without it."""
    import tensorflow as tf

    low, high = data.x_train.min(), data.x_train.max()
    x = {p: 255 * (getattr(data, p) - low) / (high - low) for p in ("x_train", "x_val", "x_test")}
    data = dataclasses.replace(data, **{p: deit_recipe.normalised(v) for p, v in x.items()})
    train = tf.data.Dataset.from_tensor_slices((x["x_train"], data.y_train))
    train = train.shuffle(len(data.y_train), seed=seed).repeat()
    steps = len(data.y_train) // options.batch
    train = deit_recipe.images(train, options.size, data.num_classes, options.batch, seed)
    return Data(train=train, steps=steps, callbacks=[], soft=True, **_parts(options, data))


def _imagenet(options, seed):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    read = {"as_supervised": True, "shuffle_files": False}
    part = "train" if options.max_train is None else f"train[:{options.max_train}]"
    (train, plain), info = tfds.load("imagenet2012", split=[part, part], with_info=True, **read)
    steps = info.splits[part].num_examples // options.batch
    classes = info.features["label"].num_classes
    train = train.shuffle(10_000, seed=seed).repeat()

    def seen(x, y):
        return deit_recipe.centred(x, options.size), y

    test = tfds.load("imagenet2012", split="validation", **read)
    sample = next(iter(plain.map(seen).batch(SAMPLE)))
    return Data(
        options=options,
        train=deit_recipe.images(train, options.size, classes, options.batch, seed),
        steps=steps,
        val=None,
        test=test.map(seen, tf.data.AUTOTUNE).batch(250),
        sample=tuple(part.numpy() for part in sample),
        classes=classes,
        callbacks=[],
        soft=True,
    )
