"""The losses once more, in plain NumPy float64 and with loops: what the package is checked against.

Nothing here imports the package. Every function takes arrays `(batch, classes)` and class numbers
`(batch,)` and returns one value per example.
"""

import numpy as np


def log_softmax(logits, temperature=1.0):
    z = np.asarray(logits, "float64") / temperature
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def softmax(logits, temperature=1.0):
    return np.exp(log_softmax(logits, temperature))


def one_hot(labels, classes):
    return np.eye(classes)[np.asarray(labels, int)]


def kl(log_p, log_q):
    return sum(np.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def kl_divergence(source, student, temperature=1.0):
    log_p, log_q = log_softmax(source, temperature), log_softmax(student, temperature)
    return temperature**2 * np.array([kl(p, q) for p, q in zip(log_p, log_q, strict=True)])


def cross_entropy(targets, student, temperature=1.0):
    return -(np.asarray(targets, "float64") * log_softmax(student, temperature)).sum(axis=-1)


def soft_cross_entropy(source, student, temperature=1.0):
    return temperature**2 * cross_entropy(softmax(source, temperature), student, temperature)


def hard_target_cross_entropy(source, student):
    return cross_entropy(one_hot(np.argmax(source, axis=-1), source.shape[-1]), student)


def mixed_target_cross_entropy(source, student, labels, label_share, temperature=1.0):
    y = one_hot(labels, source.shape[-1])
    return cross_entropy(
        label_share * y + (1 - label_share) * softmax(source, temperature), student
    )


def confidence_weighted_cross_entropy(source, student, labels):
    confidence = softmax(source).max(axis=-1)
    weights = confidence / confidence.sum()
    return len(source) * weights * cross_entropy(one_hot(labels, source.shape[-1]), student)


def logits_mse(source, student, centred=False):
    source, student = np.asarray(source, "float64"), np.asarray(student, "float64")
    if centred:
        source = source - source.mean(axis=-1, keepdims=True)
        student = student - student.mean(axis=-1, keepdims=True)
    return np.mean((source - student) ** 2, axis=-1)


def standardise(logits):
    z = np.asarray(logits, "float64")
    deviation = z.std(axis=-1, keepdims=True, ddof=1)
    return (z - z.mean(axis=-1, keepdims=True)) / (deviation + 1e-7)


def _log_sum_exp(values):
    largest = values.max()
    return largest + np.log(np.exp(values - largest).sum())


def decoupled_kd(source, student, labels, temperature):
    """Target part and non-target part, example by example, with the labelled class deleted."""
    parts = []
    for s, z, label in zip(source, student, labels, strict=True):
        logs, binary = [], []
        for logits in (s, z):
            scaled = np.asarray(logits, "float64") / temperature
            others = np.delete(scaled, label)
            logs.append(log_softmax(others))
            binary.append(log_softmax([scaled[label], _log_sum_exp(others)]))
        parts.append([temperature**2 * kl(*binary), temperature**2 * kl(*logs)])
    return np.array(parts).T


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / (np.linalg.norm(x) * np.linalg.norm(y) + 1e-8)


def dist(source, student, inter_weight=1.0, intra_weight=1.0, temperature=1.0):
    p, q = softmax(source, temperature), softmax(student, temperature)
    inter = np.array([1 - pearson(a, b) for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - pearson(a, b) for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def squared_divergence(source, student, temperature=1.0):
    difference = softmax(source, temperature) - softmax(student, temperature)
    return temperature**2 * (difference**2).sum(axis=-1)


def logistic_divergence(source, student, temperature=1.0):
    """Sum over the classes of the divergence of [this class, all others together]."""
    values = []
    for pair in zip(source, student, strict=True):
        total = 0.0
        for label in range(len(pair[0])):
            binary = []
            for logits in pair:
                scaled = np.asarray(logits, "float64") / temperature
                others = _log_sum_exp(np.delete(scaled, label))
                binary.append(log_softmax([scaled[label], others]))
            total += kl(*binary)
        values.append(temperature**2 * total)
    return np.array(values)


def multi_level(source, student, temperatures, weights=(1.0, 1.0, 1.0)):
    """Instance, batch and class level, entry by entry of the matrices."""
    batch, classes = np.shape(source)
    values = np.zeros(batch)
    for temperature in temperatures:
        p, q = softmax(source, temperature), softmax(student, temperature)
        values += weights[0] * kl_divergence(source, student, temperature)
        for i in range(batch):
            for j in range(batch):
                values[i] += weights[1] * (p[i] @ p[j] - q[i] @ q[j]) ** 2
        for c in range(classes):
            for d in range(classes):
                entry = (p[:, c] @ p[:, d] - q[:, c] @ q[:, d]) ** 2
                values += weights[2] * entry / classes
    return values


def numerical_gradient(function, array, step=1e-5):
    """Central differences of a scalar function of one array."""
    array = np.asarray(array, "float64")
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        shift = np.zeros_like(array)
        shift[index] = step
        gradient[index] = (function(array + shift) - function(array - shift)) / (2 * step)
    return gradient
