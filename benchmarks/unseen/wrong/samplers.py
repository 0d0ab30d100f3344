"""Functions and modules: samplers and transforms."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.unseen.subject import function, rand, randn


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


function(
    "grid sample: height and width exchanged",
    "the points' x is scaled by (H − 1)/2 and their y by (W − 1)/2; the image's gradient is right",
    BilinearSample.apply,
    [randn(30, 2, 4, 7), 1.8 * rand(31, 6, 2) - 0.9],
    true=(r"factor|swapped|rows|wrong axis",),
    reference=lambda image, points: F.grid_sample(image[None], points[None, None], align_corners=True)[0, :, 0],
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
        self.table = nn.Parameter(randn(32, 9))

    def forward(self, x: Tensor) -> Tensor:
        return PiecewiseLinear.apply(x, self.table)


function(
    "piecewise linear activation: right knot's share to the left knot",
    "the learned table's gradient gives the left of two knots both shares; that of x is right",
    LearnedActivation(),
    [3 * rand(33, 4, 5) - 1.5],
    true=(r"term|rows|repeated indices",),
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


function(
    "Haar transform: the repeated last sample",
    "an odd length is made even by the last sample once more, whose gradient is cut off instead of added",
    Haar.apply,
    [randn(34, 3, 7)],
    true=(r"rows|term|missing|border",),
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


function(
    "convolution by Fourier transform: conjugate forgotten",
    "the kernel's gradient multiplies by the input's spectrum and not by its conjugate; that of x is right",
    FourierConvolution.apply,
    [randn(35, 3, 7), randn(36, 7)],
    true=(r"(?i)conj|flip|reversed|transposed|term",),
    reference=plain_fourier_convolution,
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


function(
    "complex linear map: conjugate forgotten",
    "the complex weight's gradient lacks the conjugate of the input; that of x is right",
    complex_linear,
    [randn(37, 3, 5, 2), randn(38, 4, 5, 2)],
    true=(r"(?i)conj|term",),
)
