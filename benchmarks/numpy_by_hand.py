"""The same step in NumPy, for the comparison: sigmoids, the quadratic cost, gradient descent, in float32.

Plain NumPy as one writes it for a network of one kind: no layers, no names, nothing but the four equations.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[Any]  # float32; NumPy's stubs lose track of it


class Network:
    """`weights` (n, n before) and `biases` (n,) of each layer; the pictures are bytes, as everywhere here."""

    def __init__(self, weights: list[Matrix], biases: list[Matrix], x: NDArray[np.uint8], y: NDArray[np.int64]) -> None:
        self.weights, self.biases, self.x, self.y = weights, biases, x, y

    def advance(self, batches: NDArray[np.int64], lr: float) -> None:
        """One step for each row of `batches`, indices of examples."""
        for indices in batches:
            self.step(indices, lr)

    def step(self, indices: NDArray[np.int64], lr: float) -> None:
        a = [self.x[indices].astype(np.float32)]
        a[0] *= np.float32(1 / 255)
        for W, b in zip(self.weights, self.biases, strict=True):
            a.append(sigmoid(a[-1] @ W.T + b))
        d_output = a[-1].copy()
        d_output[np.arange(len(indices)), self.y[indices]] -= 1
        d_output /= len(indices)
        delta = d_output * a[-1] * (1 - a[-1])  # BP1
        for l in range(len(self.weights) - 1, -1, -1):
            db, dW = delta.sum(axis=0), delta.T @ a[l]  # BP3, BP4
            if l:
                delta = (delta @ self.weights[l]) * a[l] * (1 - a[l])  # BP2
            self.weights[l] -= np.float32(lr) * dW
            self.biases[l] -= np.float32(lr) * db


def sigmoid(z: Matrix) -> Matrix:
    return 1 / (1 + np.exp(-z))
