"""Functions and modules: equilibria, recursions, sparse matrices, losses."""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.unseen.subject import function, rand, randn


class Equilibrium(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(80):
            z = torch.tanh(z @ w.mT + x)
        ctx.save_for_backward(z, w)
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        z, w = ctx.saved_tensors
        slope = 1 - z * z
        jacobian = slope[:, :, None] * w
        adjoint = torch.linalg.solve(torch.eye(len(w), dtype=w.dtype) - jacobian, dz[:, :, None])[:, :, 0]
        return adjoint * slope, (adjoint * slope).mT @ z


class EquilibriumLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.25 * randn(41, 4, 4) / math.sqrt(2))
        self.inject = nn.Parameter(randn(42, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return Equilibrium.apply(x @ self.inject.mT, self.weight)


function(
    "equilibrium layer: Jacobian not transposed",
    "the adjoint solves (I − J) λ = dz, where it is (I − Jᵀ) λ = dz",
    EquilibriumLayer(),
    [randn(43, 3, 5)],
    true=(r"transposed|term",),
)


class LogPartition(Function):
    @staticmethod
    def forward(ctx: Any, emissions: Tensor, transitions: Tensor) -> Tensor:
        alpha = [emissions[0]]
        for e in emissions[1:]:
            alpha.append(torch.logsumexp(alpha[-1][:, None] + transitions, 0) + e)
        z = torch.logsumexp(alpha[-1], 0)
        ctx.save_for_backward(emissions, transitions, torch.stack(alpha), z)
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        emissions, transitions, alpha, z = ctx.saved_tensors
        beta = torch.zeros_like(emissions)
        pairs = torch.zeros_like(transitions)
        for t in reversed(range(len(emissions) - 1)):
            ahead = transitions + emissions[t + 1] + beta[t + 1]  # of each state, the next in the columns
            pairs += torch.exp(alpha[t][:, None] + ahead - z).mT
            beta[t] = torch.logsumexp(ahead, 1)
        return dz * torch.exp(alpha + beta - z), dz * pairs


def plain_log_partition(emissions: Tensor, transitions: Tensor) -> Tensor:
    steps, states = emissions.shape
    scores = [
        sum((emissions[t, s] for t, s in enumerate(path)), torch.zeros((), dtype=emissions.dtype))
        + sum(transitions[a, b] for a, b in itertools.pairwise(path))
        for path in itertools.product(range(states), repeat=steps)
    ]
    return torch.logsumexp(torch.stack(scores), 0)


function(
    "conditional random field: transitions transposed",
    "the expected number of transitions from i to j is returned at [j, i]",
    LogPartition.apply,
    [randn(44, 4, 3), randn(45, 3, 3)],
    true=(r"transposed",),
    reference=plain_log_partition,
)


class SparseTimesDense(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(values, dense, rows, columns)
        return torch.zeros_like(dense).index_add(0, rows, values[:, None] * dense[columns])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        values, dense, rows, columns = ctx.saved_tensors
        d_values = (dy[columns] * dense[rows]).sum(1)
        return d_values, torch.zeros_like(dense).index_add(0, columns, values[:, None] * dy[rows]), None, None


function(
    "sparse times dense: rows for columns",
    "the values of the square sparse matrix get the gradient of its transposed places; that of the dense one is right",
    SparseTimesDense.apply,
    [randn(46, 6), randn(47, 5, 3), torch.tensor([0, 0, 1, 3, 4, 4]), torch.tensor([1, 4, 2, 0, 3, 1])],
    true=(r"swapped|transposed|rows",),
)


class SoftplusCost(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return F.softplus((x + bias).float()).sum().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, bias = ctx.saved_tensors
        slopes = dy * torch.sigmoid(x + bias)
        d_bias = torch.zeros_like(bias)
        for row in slopes:
            d_bias += row
        return slopes, d_bias


function(
    "bias of 450 rows added up in bfloat16",
    "in bfloat16 the bias's gradient is summed row by row in bfloat16 and sticks where a summand is lost; else right",
    SoftplusCost.apply,
    [randn(48, 450, 3).bfloat16(), randn(49, 3).abs().bfloat16()],
    true=(r"(?i)dtype|precision|accumul|bfloat16",),
)


class CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.probabilities = logits.softmax(1)
        ctx.target = target
        return -ctx.probabilities[torch.arange(len(target)), target].log().mean()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        gradient = ctx.probabilities
        gradient[torch.arange(len(gradient)), ctx.target] -= 1
        return dy * gradient / len(gradient), None


function(
    "cross-entropy: kept probabilities overwritten",
    "backward subtracts 1 in the probabilities that it keeps, so a second backward of the same graph subtracts 2",
    CrossEntropy.apply,
    [randn(50, 5, 4), torch.tensor([0, 3, 1, 1, 2])],
    true=(r"(?i)in place|stale|second|overwrit",),
    reference=F.cross_entropy,
)


class SoftTriplet(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        ctx.save_for_backward(anchor, positive, negative)
        return F.softplus(((anchor - positive) ** 2).sum(1) - ((anchor - negative) ** 2).sum(1))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        anchor, positive, negative = ctx.saved_tensors
        gap = ((anchor - positive) ** 2).sum(1) - ((anchor - negative) ** 2).sum(1)
        g = (2 * dy * torch.sigmoid(gap))[:, None]
        return g * (negative - positive), g * (anchor - negative), g * (positive - anchor)


function(
    "triplet cost: positive and negative exchanged",
    "the positive example gets the negative one's gradient and the other way round",
    SoftTriplet.apply,
    [randn(51, 4, 5), randn(52, 4, 5), randn(53, 4, 5)],
    true=(r"swapped",),
)


class TemperedSoftmax(Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: Tensor) -> Tensor:
        p = (scores / temperature).softmax(-1)
        ctx.save_for_backward(p, temperature)
        return p

    @staticmethod
    def backward(ctx: Any, dp: Tensor) -> Any:
        p, temperature = ctx.saved_tensors
        return p * (dp - (dp * p).sum(-1, keepdim=True)) / temperature, None


class Similarity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(0.5 + rand(54))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return TemperedSoftmax.apply(x @ y.mT, self.temperature)


function(
    "softmax: learned temperature gets None",
    "the temperature is a parameter, and backward returns None for it as for a number",
    Similarity(),
    [randn(55, 3, 5), randn(56, 4, 5)],
    true=(r"(?i)missing|none",),
)
