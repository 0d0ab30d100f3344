"""Wrong autograd functions, modules and operators: samplers, transforms, equilibria, recursions, costs."""

import itertools
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.unseen.subject import Subject
from benchmarks.unseen.wrong_functions import add_to, rand, randn

SUBJECTS: list[Subject] = []

add = partial(add_to, SUBJECTS)


# Samplers, transforms


class BilinearSample(Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, points: Tensor) -> Tensor:
        h, w = image.shape[1:]
        px, py = (points[:, 0] + 1) * (w - 1) / 2, (points[:, 1] + 1) * (h - 1) / 2
        j, i = px.floor().long().clamp(0, w - 2), py.floor().long().clamp(0, h - 2)
        fx, fy = px - j, py - i
        ctx.save_for_backward(image, i, j, fx, fy)
        top = image[:, i, j] * (1 - fx) + image[:, i, j + 1] * fx
        bottom = image[:, i + 1, j] * (1 - fx) + image[:, i + 1, j + 1] * fx
        return top * (1 - fy) + bottom * fy

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        image, i, j, fx, fy = ctx.saved_tensors
        h, w = image.shape[1:]
        a, b, c, d = image[:, i, j], image[:, i, j + 1], image[:, i + 1, j], image[:, i + 1, j + 1]
        d_image = torch.zeros_like(image).flatten(1)
        for di, dj, share in (
            (0, 0, (1 - fx) * (1 - fy)),
            (0, 1, fx * (1 - fy)),
            (1, 0, (1 - fx) * fy),
            (1, 1, fx * fy),
        ):
            d_image.index_add_(1, (i + di) * w + j + dj, dy * share)
        across = (dy * ((b - a) * (1 - fy) + (d - c) * fy)).sum(0) * (h - 1) / 2
        down = (dy * ((c - a) * (1 - fx) + (d - b) * fx)).sum(0) * (w - 1) / 2
        return d_image.reshape(image.shape), torch.stack([across, down], 1)


add(
    "grid sample: height and width exchanged",
    "the points' x is scaled by (H − 1)/2 and their y by (W − 1)/2; the image's gradient is right",
    BilinearSample.apply,
    [randn(2, 4, 7, seed=30), 1.8 * rand(6, 2, seed=31) - 0.9],
    r"factor|swapped|rows|wrong axis",
    lambda image, points: F.grid_sample(image[None], points[None, None], align_corners=True)[0, :, 0],
)


class PiecewiseLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        place = ((x + 2) / 0.5).clamp(0, len(table) - 1)
        i = place.floor().long().clamp(0, len(table) - 2)
        ctx.save_for_backward(x, i, place - i, table)
        return table[i] + (place - i) * (table[i + 1] - table[i])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, i, f, table = ctx.saved_tensors
        left, right = dy * (1 - f), dy * f
        d_table = torch.zeros_like(table).index_add(0, i.flatten(), (left + right).flatten())
        return dy * (table[i + 1] - table[i]) / 0.5 * (x.abs() < 2), d_table


class LearnedActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(randn(9, seed=32))

    def forward(self, x: Tensor) -> Tensor:
        return PiecewiseLinear.apply(x, self.table)


add(
    "piecewise linear activation: right knot's share to the left knot",
    "the learned table's gradient gives the left of two knots both shares; that of x is right",
    LearnedActivation(),
    [3 * rand(4, 5, seed=33) - 1.5],
    r"term|rows|repeated indices",
)


class Haar(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.length = x.shape[-1]
        if x.shape[-1] % 2:
            x = torch.cat([x, x[..., -1:]], -1)
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.cat([even + odd, even - odd], -1) / math.sqrt(2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        low, high = dy.chunk(2, -1)
        return (torch.stack([low + high, low - high], -1).flatten(-2) / math.sqrt(2))[..., : ctx.length]


add(
    "Haar transform: the repeated last sample",
    "an odd length is made even by the last sample once more, whose gradient is cut off instead of added",
    Haar.apply,
    [randn(3, 7, seed=34)],
    r"rows|term|missing|border",
)


class FourierConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(kernel), n=x.shape[-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, kernel = ctx.saved_tensors
        spectrum, n = torch.fft.rfft(dy), dy.shape[-1]
        dx = torch.fft.irfft(spectrum * torch.fft.rfft(kernel).conj(), n=n)
        return dx, torch.fft.irfft((spectrum * torch.fft.rfft(x)).sum(0), n=n)


def plain_fourier_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    return torch.stack([(x * kernel.flip(0).roll(t + 1)).sum(-1) for t in range(x.shape[-1])], -1)


add(
    "convolution by Fourier transform: conjugate forgotten",
    "the kernel's gradient multiplies by the input's spectrum and not by its conjugate; that of x is right",
    FourierConvolution.apply,
    [randn(3, 7, seed=35), randn(7, seed=36)],
    r"(?i)conj|flip|reversed|transposed|term",
    plain_fourier_convolution,
)


class ComplexLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.mT

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return dy @ w.conj(), dy.mT @ x


def complex_linear(x: Tensor, w: Tensor) -> Tensor:
    """Of real and imaginary parts side by side in the last axis."""
    y = ComplexLinear.apply(torch.complex(x[..., 0], x[..., 1]), torch.complex(w[..., 0], w[..., 1]))
    return torch.stack([y.real, y.imag], -1)


add(
    "complex linear map: conjugate forgotten",
    "the complex weight's gradient lacks the conjugate of the input; that of x is right",
    complex_linear,
    [randn(3, 5, 2, seed=37), randn(4, 5, 2, seed=38)],
    r"(?i)conj|term",
)


# Equilibria, recursions, sparse matrices, losses


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
        self.weight = nn.Parameter(0.25 * randn(4, 4, seed=41) / math.sqrt(2))
        self.inject = nn.Parameter(randn(4, 5, seed=42))

    def forward(self, x: Tensor) -> Tensor:
        return Equilibrium.apply(x @ self.inject.mT, self.weight)


add(
    "equilibrium layer: Jacobian not transposed",
    "the adjoint solves (I − J) λ = dz, where it is (I − Jᵀ) λ = dz",
    EquilibriumLayer(),
    [randn(3, 5, seed=43)],
    r"transposed|term",
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


add(
    "conditional random field: transitions transposed",
    "the expected number of transitions from i to j is returned at [j, i]",
    LogPartition.apply,
    [randn(4, 3, seed=44), randn(3, 3, seed=45)],
    r"transposed",
    plain_log_partition,
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


add(
    "sparse times dense: rows for columns",
    "the values of the square sparse matrix get the gradient of its transposed places; that of the dense one is right",
    SparseTimesDense.apply,
    [randn(6, seed=46), randn(5, 3, seed=47), torch.tensor([0, 0, 1, 3, 4, 4]), torch.tensor([1, 4, 2, 0, 3, 1])],
    r"swapped|transposed|rows",
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


add(
    "bias of 450 rows added up in bfloat16",
    "in bfloat16 the bias's gradient is summed row by row in bfloat16 and sticks where a summand is lost; else right",
    SoftplusCost.apply,
    [randn(450, 3, seed=48).bfloat16(), randn(3, seed=49).abs().bfloat16()],
    r"(?i)dtype|precision|accumul|bfloat16",
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


add(
    "cross-entropy: kept probabilities overwritten",
    "backward subtracts 1 in the probabilities that it keeps, so a second backward of the same graph subtracts 2",
    CrossEntropy.apply,
    [randn(5, 4, seed=50), torch.tensor([0, 3, 1, 1, 2])],
    r"(?i)in place|stale|second|overwrit",
    F.cross_entropy,
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


add(
    "triplet cost: positive and negative exchanged",
    "the positive example gets the negative one's gradient and the other way round",
    SoftTriplet.apply,
    [randn(4, 5, seed=51), randn(4, 5, seed=52), randn(4, 5, seed=53)],
    r"swapped",
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
        self.temperature = nn.Parameter(0.5 + rand(seed=54))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return TemperedSoftmax.apply(x @ y.mT, self.temperature)


add(
    "softmax: learned temperature gets None",
    "the temperature is a parameter, and backward returns None for it as for a number",
    Similarity(),
    [randn(3, 5, seed=55), randn(4, 5, seed=56)],
    r"(?i)missing|none",
)


# Custom operators


@torch.library.custom_op("unseen_v::soft_threshold", mutates_args=())
def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    return x.sign() * (x.abs() - threshold).clamp(min=0)


def soft_threshold_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def soft_threshold_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, threshold = ctx.saved_tensors
    kept = x.abs() > threshold
    return dy * kept, (dy * kept * x.sign()).sum(0)


soft_threshold.register_autograd(soft_threshold_backward, setup_context=soft_threshold_context)

add(
    "soft threshold: sign of the threshold",
    "the threshold's gradient is −Σ sign(x) dy over what is kept; here it is without the minus",
    soft_threshold,
    [2 * randn(4, 5, seed=57), 0.1 + 0.5 * rand(5, seed=58)],
    r"sign",
)


@torch.library.custom_op("unseen_v::deformed", mutates_args=())
def deformed(x: Tensor, offset: Tensor) -> Tensor:
    last = x.shape[1] - 1
    place = (torch.arange(last + 1, dtype=x.dtype) + offset).clamp(0, last)
    left = place.floor().long().clamp(max=last - 1)
    return x[:, left] + (place - left) * (x[:, left + 1] - x[:, left])


def deformed_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def deformed_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, offset = ctx.saved_tensors
    last = x.shape[1] - 1
    place = (torch.arange(last + 1, dtype=x.dtype) + offset).clamp(0, last)
    left = place.floor().long().clamp(max=last - 1)
    dx = torch.zeros_like(x).index_add(1, left, dy * (1 - place + left)).index_add(1, left + 1, dy * (place - left))
    return dx, (dy * (x[:, left + 1] - x[:, left])).sum(0)


deformed.register_autograd(deformed_backward, setup_context=deformed_context)


def plain_deformed(x: Tensor, offset: Tensor) -> Tensor:
    steps = torch.arange(x.shape[1], dtype=x.dtype)
    place = torch.minimum((steps + offset).clamp(min=0), steps[-1])
    return x @ (1 - (place - steps[:, None]).abs()).clamp(min=0)


add(
    "deformable sampler: offsets beyond the border",
    "an offset that points out of the signal is clamped in forward and gets the slope of the border in backward, not 0",
    deformed,
    [randn(3, 7, seed=59), 0.6 + 2.3 * torch.tensor([-1, 0.3, -0.9, 0.5, 0.2, 0.7, -0.4], dtype=torch.float64)],
    r"mask ignored|rows|term|zero|derivative forgotten",
    plain_deformed,
)
