"""Algorithm 1 of Takagi and Hattori (2019) once more, in float64 NumPy, without the package.

One hidden layer of tanh units, softmax outputs, SGD with momentum, examples in a fixed order.
"""

import numpy as np

from tests.reference import one_hot, softmax


class Network:
    """Weights are a list `[W1, b1, W2, b2]`."""

    def __init__(self, weights):
        self.weights = [np.asarray(w, "float64").copy() for w in weights]

    def logits(self, x):
        w1, b1, w2, b2 = self.weights
        return np.tanh(x @ w1 + b1) @ w2 + b2

    def accuracy(self, x, y):
        return np.mean(np.argmax(self.logits(x), axis=-1) == y)

    def gradients(self, x, target):
        """Of the mean cross-entropy against `target`, whose rows may sum to any mass."""
        w1, b1, w2, _ = self.weights
        hidden = np.tanh(x @ w1 + b1)
        mass = target.sum(axis=-1, keepdims=True)
        delta = (mass * softmax(self.logits(x)) - target) / len(x)
        below = (delta @ w2.T) * (1 - hidden**2)
        return [x.T @ below, below.sum(0), hidden.T @ delta, delta.sum(0)]


def train(network, data, validation, *, epochs, batch, rate, momentum, patience, previous=None):
    """Returns what each epoch left: targets, accuracy, improved, rewound, weights, rate."""
    x, y = data
    labels = one_hot(y, network.logits(x).shape[-1])
    stored, best, best_weights = labels.copy(), -np.inf, None
    velocity = [np.zeros_like(w) for w in network.weights]
    wait, record = 0, []
    for _ in range(epochs):
        seen = np.zeros_like(labels)
        for start in range(0, len(x), batch):
            rows = slice(start, start + batch)
            seen[rows] = softmax(network.logits(x[rows]))
            target = 0.5 * labels[rows] + 0.5 * stored[rows]
            if previous is not None:
                target = target + softmax(previous.logits(x[rows]))
            for i, gradient in enumerate(network.gradients(x[rows], target)):
                velocity[i] = momentum * velocity[i] - rate * gradient
                network.weights[i] = network.weights[i] + velocity[i]
        accuracy = network.accuracy(*validation)
        improved = accuracy > best
        if improved:
            best, stored, wait = accuracy, seen, 0
            best_weights = [w.copy() for w in network.weights]
        else:
            wait += 1
        rewound = wait == patience
        if rewound:
            network.weights = [w.copy() for w in best_weights]
            velocity = [np.zeros_like(v) for v in velocity]
            rate, wait = max(0.1 * rate, 1e-3), 0
        weights = [w.copy() for w in network.weights]
        record.append(
            {
                "stored": stored.copy(),
                "accuracy": accuracy,
                "improved": improved,
                "rewound": rewound,
                "weights": weights,
                "rate": rate,
            }
        )
    return record
