"""The training recipe of DeiT, of Keras's own layers: for `experiments/mutual.py --recipe deit`.

RandAugment, random erasing, mixup or CutMix with equal chances, label smoothing, AdamW with a
cosine after a linear warm-up. DeiT also repeats each image three times in a batch and keeps an
average of the weights, which are left out. Source: Touvron et al., 2021, arXiv:2012.12877, table 9.
"""

import keras
import numpy as np

#: Mean and standard deviation of ImageNet's pixels, by colour, in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SMOOTHING = 0.1


def learning_rate(batch):
    """DeiT's rule: 5e-4 for a batch of 512, in proportion."""
    return 5e-4 * batch / 512


def optimizer(rate, weight_decay, steps, warmup_steps):
    """AdamW whose rate rises in a line from 1e-6 and falls in a cosine to 1e-5."""
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-6,
        max(1, steps - warmup_steps),
        alpha=min(1.0, 1e-5 / rate),
        warmup_target=rate,
        warmup_steps=warmup_steps,
    )
    return keras.optimizers.AdamW(schedule, weight_decay=weight_decay)


def spared(adamw):
    """The optimizer, with weight decay on kernels alone, as in DeiT's code."""
    adamw.exclude_from_weight_decay(
        var_names=["bias", "gamma", "beta", "token", "position"],
    )
    return adamw


def images(dataset, size, classes, batch, seed):
    """Training batches of normalised images and soft labels.

    Args:
        dataset: `tf.data.Dataset` of (image of any size in 0 to 255, class number).
        size: side of the images to return.
        classes: number of classes.
        batch, seed: size of a batch; what the augmentation is drawn from.
    """
    import tensorflow as tf

    layers = keras.layers
    single = [layers.Resizing(size, size), layers.RandomFlip("horizontal", seed=seed)]
    single += [
        layers.RandAugment(value_range=(0, 255), num_ops=2, factor=0.9, seed=seed + 1),
        layers.RandomErasing(factor=0.25, value_range=(0, 255), seed=seed + 2),
    ]
    mix = layers.MixUp(alpha=0.8, seed=seed + 3)
    cut = layers.CutMix(factor=1.0, seed=seed + 4)

    def prepared(x, y):
        x = tf.cast(x, "float32")
        for layer in single:
            x = layer(x, training=True)
        both = {"images": x, "labels": tf.one_hot(y, classes)}
        both = tf.cond(
            tf.random.uniform((), seed=seed) < 0.5,
            lambda: mix(both, training=True),
            lambda: cut(both, training=True),
        )
        return normalised(both["images"]), both["labels"]

    # Crops come before the batch: images of a folder have different sizes.
    dataset = dataset.map(lambda x, y: (_random_crop(x, size), y), tf.data.AUTOTUNE)
    dataset = dataset.batch(batch, drop_remainder=True).map(prepared, tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _random_crop(image, size):
    """A random part of 8 to 100 % of the image, as a square of this side."""
    import tensorflow as tf

    begin, part, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image), tf.zeros((1, 0, 4)), area_range=(0.08, 1.0), min_object_covered=0.0
    )
    return tf.image.resize(tf.slice(image, begin, part), (size, size), "bicubic")


def normalised(x):
    """Images from 0 to 255 as the network sees them."""
    return (x / 255.0 - np.array(MEAN, "float32")) / np.array(STD, "float32")


def centred(image, size):
    """The middle of an image, as in evaluation: the short side at 8/7 of `size`, then a crop."""
    import tensorflow as tf

    image = tf.cast(image, "float32")
    sides = tf.cast(tf.shape(image)[:2], "float32")
    scaled = tf.cast(tf.round(sides * (size * 8 / 7) / tf.reduce_min(sides)), "int32")
    image = tf.image.resize(image, scaled, "bicubic")
    return normalised(tf.image.resize_with_crop_or_pad(image, size, size))
