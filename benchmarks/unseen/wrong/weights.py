"""Functions and modules: weights made from weights, positions, normalization."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.unseen.subject import function, rand, randn

# Weights that are made from weights


class StandardizedWeight(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        r = torch.rsqrt(w.var(1, keepdim=True) + 1e-5)
        standard = (w - w.mean(1, keepdim=True)) * r
        ctx.save_for_backward(standard, r)
        return standard

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        standard, r = ctx.saved_tensors
        return r * (g - g.mean(1, keepdim=True) - standard * (g * standard).mean(1, keepdim=True))


class StandardizedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(12, 3, 5))
        self.gain = nn.Parameter(rand(13, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x @ StandardizedWeight.apply(self.weight).mT)


function(
    "weight standardization: n for n − 1",
    "the variance is over n − 1 and its part of the weight's gradient over n",
    StandardizedLinear(),
    [randn(14, 4, 5)],
    true=(r"term|factor",),
)


class SpectralWeight(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = u @ w @ v
        ctx.save_for_backward(w / sigma, u, v, sigma)
        return w / sigma

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        normalized, u, v, sigma = ctx.saved_tensors
        return (g - (g * normalized).sum() * torch.outer(v, u)) / sigma, None, None


class SpectralLinear(nn.Module):
    u: Tensor
    v: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(15, 4, 4))
        v = randn(16, 4)
        for _ in range(3):
            u = F.normalize(self.weight.detach() @ v, dim=0)
            v = F.normalize(self.weight.detach().mT @ u, dim=0)
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def forward(self, x: Tensor) -> Tensor:
        return x @ SpectralWeight.apply(self.weight, self.u, self.v).mT


function(
    "spectral norm: v uᵀ for u vᵀ",
    "the derivative of σ = uᵀ W v, which the square weight is divided by, is transposed",
    SpectralLinear(),
    [randn(17, 3, 4)],
    true=(r"transposed|term",),
)


class Cayley(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        eye = torch.eye(len(w), dtype=w.dtype)
        skew = w - w.mT
        q = torch.linalg.solve(eye + skew, eye - skew)
        ctx.save_for_backward(eye + skew, q + eye)
        return q

    @staticmethod
    def backward(ctx: Any, dq: Tensor) -> Any:
        divisor, factor = ctx.saved_tensors
        return -torch.linalg.solve(divisor.mT, dq) @ factor.mT


class OrthogonalLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * randn(18, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ Cayley.apply(self.weight)


function(
    "Cayley map: skew part forgotten",
    "the weight gets the gradient g of W − Wᵀ and not g − gᵀ; the input's is right",
    OrthogonalLinear(),
    [randn(19, 3, 4)],
    true=(r"term|transposed",),
)


class LogDeterminant(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return torch.linalg.slogdet(a).logabsdet

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return dy * torch.linalg.inv(a.float()).mT.to(a.dtype)


function(
    "log-determinant: inverse in single precision",
    "in float64 the inverse is computed in float32, whose error the condition of the matrix, about 10⁴, enlarges",
    LogDeterminant.apply,
    [randn(20, 5, 4) @ randn(60, 4, 5) + 3e-2 * randn(61, 5, 5)],
    true=(r"(?i)dtype|precision|float32",),
    reference=lambda a: torch.log(torch.det(a).abs()),
)


class LayerScaleFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(x, gamma)
        return gamma * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, gamma = ctx.saved_tensors
        return dy * gamma, (dy * x).mean((0, 1))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(randn(21, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x + LayerScaleFunction.apply(torch.tanh(x), self.gamma)


function(
    "layer scale: mean over batch and tokens",
    "γ's gradient is the mean, not the sum, over the 2·3 places where it is used",
    LayerScale(),
    [randn(22, 2, 3, 5)],
    true=(r"factor: .*1/6|mean",),
)


# Positions, normalization


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def angles(x: Tensor, base: float) -> Tensor:
    steps, width = x.shape[-2], x.shape[-1] // 2
    frequency = base ** -(torch.arange(width, dtype=x.dtype) / width)
    return torch.arange(steps, dtype=x.dtype)[:, None] * frequency


class Rotary(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        angle = angles(x, 50.0)
        ctx.save_for_backward(angle.cos(), angle.sin())
        return rotate(x, *ctx.to_save)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return rotate(dy, *ctx.saved_tensors)


def plain_rotary(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    turned = torch.complex(a, b) * torch.exp(1j * angles(x, 50.0))
    return torch.cat([turned.real, turned.imag], -1)


function(
    "rotary embedding: rotated on, not back",
    "backward rotates by +θ; the transpose of a rotation is the rotation by −θ",
    Rotary.apply,
    [randn(23, 2, 5, 6)],
    true=(r"sign|transposed|term",),
    reference=plain_rotary,
)


class LengthRotary(Function):
    table: tuple[Tensor, Tensor]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        angle = angles(x, 20.0 * max(4, x.shape[-2]))
        LengthRotary.table = angle.cos(), angle.sin()
        return rotate(x, *LengthRotary.table)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        cos, sin = LengthRotary.table
        return rotate(dy, cos[: dy.shape[-2]], -sin[: dy.shape[-2]])


function(
    "rotary embedding: table of the last length",
    "the table, whose base depends on the length, is the last forward's: wrong if one of another length came between",
    LengthRotary.apply,
    [randn(24, 2, 5, 6)],
    true=(r"(?i)stale|raised",),
)


class RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        r = torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        ctx.save_for_backward(x * r, weight, r)
        return x * r * weight

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        if not ctx.needs_input_grad[0]:
            return None, None
        normal, weight, r = ctx.saved_tensors
        g = dy * weight
        return r * (g - normal * (g * normal).mean(-1, keepdim=True)), (dy * normal).sum(0)


function(
    "RMS norm: nothing to do without dx",
    "when x needs no gradient, as in a network's first layer, the weight gets none either",
    RMSNorm.apply,
    [randn(25, 3, 7), randn(26, 7)],
    true=(r"(?i)missing|none",),
    reference=lambda x, weight: F.rms_norm(x, (7,), weight, 1e-6),
)


class GroupNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        grouped = x.reshape(len(x), 2, -1)
        r = torch.rsqrt(grouped.var(-1, correction=0, keepdim=True) + 1e-5)
        normal = ((grouped - grouped.mean(-1, keepdim=True)) * r).reshape(x.shape)
        ctx.save_for_backward(normal, weight, r)
        return normal * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        normal, weight, r = ctx.saved_tensors
        g = dy * weight[:, None, None]
        channels_last = dy.is_contiguous(memory_format=torch.channels_last) and not dy.is_contiguous()
        groups = 1 if channels_last else 2
        mean = g.reshape(len(g), groups, -1).mean(-1).repeat_interleave(2 // groups, 1)
        along = (g * normal).reshape(len(g), groups, -1).mean(-1).repeat_interleave(2 // groups, 1)
        n, g = normal.reshape(len(g), 2, -1), g.reshape(len(g), 2, -1)
        dx = r * (g - mean[..., None] - n * along[..., None])
        return dx.reshape(dy.shape), (dy * normal).sum((0, 2, 3)), dy.sum((0, 2, 3))


function(
    "group norm: channels last in one group",
    "the path for a cotangent in channels-last memory takes the two means over all channels, not over each group's",
    GroupNorm.apply,
    [randn(27, 2, 4, 3, 5), randn(28, 4), randn(29, 4)],
    true=(r"(?i)strided|channels.last|layout",),
    reference=lambda x, weight, bias: F.group_norm(x, 2, weight, bias, 1e-5),
)
