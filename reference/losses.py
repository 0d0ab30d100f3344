"""The costs of manual_backprop/losses.py, as `torch.nn.functional` has them.

Each is a function of output (B, n), class indices y (B,) and count: the sum over the targets divided by `count`.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, int], Tensor]


def rows(y: Tensor, output: Tensor) -> Tensor:
    return F.one_hot(y, output.shape[1]).to(output.dtype)


def quadratic(a: Tensor, y: Tensor, count: int) -> Tensor:
    return F.mse_loss(a, rows(y, a), reduction="sum") / (2 * count)


def squared_error(a: Tensor, y: Tensor, count: int) -> Tensor:
    return F.mse_loss(a, rows(y, a), reduction="sum") / count


def sigmoid_cross_entropy(z: Tensor, y: Tensor, count: int) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, rows(y, z), reduction="sum") / count


def softmax_cross_entropy(z: Tensor, y: Tensor, count: int, label_smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(z, y, reduction="sum", label_smoothing=label_smoothing) / count


LOSSES: dict[str, Callable[..., Tensor]] = {
    "quadratic": quadratic,
    "squared-error": squared_error,
    "sigmoid-cross-entropy": sigmoid_cross_entropy,
    "softmax-cross-entropy": softmax_cross_entropy,
}
