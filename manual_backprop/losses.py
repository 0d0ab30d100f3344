"""Costs and their gradients.

Every cost is a sum over the targets of a batch divided by `count`:

    C = (1/count) Σ_targets C_target            dC/doutput has the shape of the output

`count` defaults to the number of targets here, which makes C the mean; under gradient accumulation or over several
processes it is the global number. An image has one target, its class; a text of T characters has T, and as many rows
of output. The mean enters here and nowhere else. `backward` is given dC, the gradient of whatever comes after the cost:
1 when C is the end of the chain.

The output has a row for each target, (B, n): activations a for `Quadratic` and `SquaredError`, logits z for the
cross-entropies, whose sigmoid or softmax is a part of the cost. The target y holds class indices (B,) of type int64,
read as one-hot rows Y, or Y itself (B, n). Labels outside 0..n−1 have no one-hot row: validate them at the door.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Cache = tuple[Any, ...]  # what a cost's backward needs


class Loss(Protocol):
    """What every cost has."""

    @property
    def formula(self) -> str:
        """C of one example, for readers."""
        ...

    @property
    def from_logits(self) -> bool:
        """Whether the output must be logits (identity as the output layer's activation)."""
        ...

    def forward(self, output: Tensor, y: Tensor, count: int | Tensor | None = None) -> tuple[Tensor, Cache]:
        """C, a 0-d tensor, and the cache."""
        ...

    def backward(self, dC: Tensor | float, cache: Cache) -> Tensor:
        """∂C/∂output, times dC."""
        ...


def one_hot(y: Tensor, output: Tensor) -> Tensor:
    """Y (B, n) for class indices y (B,); a y of the output's shape is Y already.

    Raises ValueError for any other shape: nothing is broadcast.
    """
    if y.shape == output.shape:
        return y
    return torch.zeros_like(output).scatter_(1, places(y, output), 1)


def minus_targets(output: Tensor, y: Tensor) -> Tensor:
    """output − Y; for class indices without making Y: 1 less at each row's class."""
    if y.shape == output.shape:
        return output - y
    ones = places(y, output)
    return output.scatter_add(1, ones, output.new_full(ones.shape, -1))


def places(y: Tensor, output: Tensor) -> Tensor:
    """Class indices y (B,) as (B, 1): the columns of the ones in Y."""
    if y.shape != output.shape[:1]:
        raise ValueError(
            f"targets of shape {tuple(y.shape)} do not fit outputs of shape {tuple(output.shape)}: "
            f"give {tuple(output.shape[:1])} class indices or {tuple(output.shape)} values"
        )
    return y.unsqueeze(1)


@dataclass(frozen=True)
class Quadratic:
    """C = (1/count) Σ ½‖a − y‖²; the cost of Nielsen's chapter 1.

    ∇ₐC = (a − y) / count
    """

    formula = "C = ½ Σ (a − y)²"
    from_logits = False

    def forward(self, a: Tensor, y: Tensor, count: int | Tensor | None = None) -> tuple[Tensor, Cache]:
        count = len(a) if count is None else count
        difference = minus_targets(a, y)
        return (difference * difference).sum() / (2 * count), (difference, count)

    def backward(self, dC: Tensor | float, cache: Cache) -> Tensor:
        difference, count = cache
        return difference * (dC / count)


@dataclass(frozen=True)
class SquaredError:
    """C = (1/count) Σ ‖a − y‖²; the cost of 3Blue1Brown's lessons, twice the quadratic one.

    ∇ₐC = 2 (a − y) / count
    """

    formula = "C = Σ (a − y)²"
    from_logits = False

    def forward(self, a: Tensor, y: Tensor, count: int | Tensor | None = None) -> tuple[Tensor, Cache]:
        count = len(a) if count is None else count
        difference = minus_targets(a, y)
        return (difference * difference).sum() / count, (difference, count)

    def backward(self, dC: Tensor | float, cache: Cache) -> Tensor:
        difference, count = cache
        return difference * (2 * dC / count)


@dataclass(frozen=True)
class SigmoidCrossEntropy:
    """C = (1/count) Σ_examples Σ_j −[Y_j ln a_j + (1 − Y_j) ln(1 − a_j)] with a = σ(z); Nielsen's chapter 3.

    From the logits this is Σ_j ln(1 + eᶻ) − Y_j z_j, which no logit overflows, and σ′ cancels in its gradient:

    ∇_zC = (σ(z) − Y) / count
    """

    formula = "C = −Σ [y ln a + (1 − y) ln(1 − a)], a = σ(z)"
    from_logits = True

    def forward(self, z: Tensor, y: Tensor, count: int | Tensor | None = None) -> tuple[Tensor, Cache]:
        count = len(z) if count is None else count
        Y = one_hot(y, z)
        return (torch.logaddexp(torch.zeros_like(z), z) - Y * z).sum() / count, (z, Y, count)

    def backward(self, dC: Tensor | float, cache: Cache) -> Tensor:
        z, Y, count = cache
        return (torch.sigmoid(z) - Y) * (dC / count)


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """C = (1/count) Σ_examples −Σ_j Y_j ln p_j with p = softmax(z), p_j = e^{z_j} / Σ_k e^{z_k}.

    `label_smoothing` ε in [0, 1) moves the target towards the uniform one: Y ← (1 − ε) Y + ε/n (Szegedy et al. 2016).
    `log_softmax` subtracts the row's maximum first, which changes no p and lets nothing overflow. The rows of Y must
    sum to 1:

    ∇_zC = (p − Y) / count
    """

    label_smoothing: float = 0.0

    formula = "C = −Σ y ln a, a = softmax(z)"
    from_logits = True

    def forward(self, z: Tensor, y: Tensor, count: int | Tensor | None = None) -> tuple[Tensor, Cache]:
        count = len(z) if count is None else count
        Y = one_hot(y, z)
        if self.label_smoothing:
            Y = (1 - self.label_smoothing) * Y + self.label_smoothing / z.shape[1]
        log_p = torch.log_softmax(z, dim=1)  # z − max z − ln Σ exp(z − max z)
        return -(Y * log_p).sum() / count, (log_p, Y, count)

    def backward(self, dC: Tensor | float, cache: Cache) -> Tensor:
        log_p, Y, count = cache
        return (log_p.exp() - Y) * (dC / count)


LOSSES: dict[str, Callable[[], Loss]] = {
    "quadratic": Quadratic,
    "squared-error": SquaredError,
    "sigmoid-cross-entropy": SigmoidCrossEntropy,
    "softmax-cross-entropy": SoftmaxCrossEntropy,
}
