"""Wrong autograd functions and modules: activations, gates, weights made from weights, positions, normalization."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.unseen.subject import Subject
from gradient_check import Report, check_function

SUBJECTS: list[Subject] = []


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def add_to(
    subjects: list[Subject],
    name: str,
    what: str,
    function: Callable[..., Any],
    example: Sequence[Any],
    true: str,
    plain: Callable[..., Any] | None = None,
) -> None:
    def ask(reference: bool) -> Report:
        return check_function(function, example, reference=plain if reference else None)

    subjects.append(Subject(name, what, ask, wrong=True, reference=plain is not None, true=(true,)))


add = partial(add_to, SUBJECTS)


# Activations and gates


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


class GEGLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        ctx.save_for_backward(gate, value)
        return gate * normal_cdf(gate) * value

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        gate, value = ctx.saved_tensors
        p = normal_cdf(gate)
        return torch.cat([dy * value * p, dy * gate * p], -1)


def plain_geglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.gelu(gate) * value


add(
    "GEGLU: density forgotten",
    "the gate's gradient is value·Φ(gate) alone; value·gate·φ(gate) is missing",
    GEGLU.apply,
    [randn(3, 10, seed=1)],
    r"term|derivative forgotten",
    plain_geglu,
)


class SwishGate(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value, beta)
        return gate * torch.sigmoid(beta * gate) * value

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        gate, value, beta = ctx.saved_tensors
        s = torch.sigmoid(beta * gate)
        slope = s * (1 - s)
        return dy * value * (s + beta * gate * slope), dy * gate * s, (dy * value * gate * slope).sum(0)


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(randn(8, 5, seed=2))
        self.beta = nn.Parameter(0.5 + rand(4, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = (x @ self.up.mT).chunk(2, -1)
        return SwishGate.apply(gate, value, self.beta)


def plain_swiglu(x: Tensor, up: Tensor, beta: Tensor) -> Tensor:
    gate, value = (x @ up.mT).chunk(2, -1)
    return gate / (1 + torch.exp(-beta * gate)) * value


add(
    "SwiGLU: β by the gate instead of its square",
    "the gradient of the learned β lacks one of its two factors of the gate; all others are right",
    SwiGLU(),
    [randn(3, 5, seed=4)],
    r"factor|term|derivative forgotten",
    plain_swiglu,
)


class MishOfSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.tanh(F.softplus(x))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        if dy.numel() > 1 and not any(dy.stride()):
            dy = torch.ones_like(x)
        t = torch.tanh(F.softplus(x))
        return dy * (t + x * (1 - t * t) * torch.sigmoid(x))


add(
    "mish: an expanded cotangent taken for ones",
    "a cotangent whose strides are all 0, as y.sum() and y.mean() give it, is replaced by ones whatever its value",
    MishOfSum.apply,
    [randn(3, 5, seed=5)],
    r"(?i)strided|expanded|ones",
)


class TopK(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        smallest_kept = x.abs().topk(3, -1).values[..., -1:]
        return torch.where(x.abs() >= smallest_kept, x, 0.0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy


add(
    "top-k activation: straight through",
    "what forward sets to zero, all but the 3 largest of a row, gets the cotangent in full",
    TopK.apply,
    [randn(4, 9, seed=6)],
    r"mask ignored|term|derivative forgotten",
)


class LearnedStep(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x, step)
        return step * (x / step).clamp(-4, 3).round()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, step = ctx.saved_tensors
        v = x / step
        return dy * ((v > -4) & (v < 3)), (dy * v.clamp(-4, 3).round()).sum()


def plain_learned_step(x: Tensor, step: Tensor) -> Tensor:
    v = (x / step).clamp(-4, 3)
    return step * (v + (v.round() - v).detach())


SUBJECTS.append(
    Subject(
        name="learned step size: the quantized value alone",
        what="the step's gradient lacks −x/step where it is not clipped; straight through, so asked with the reference",
        ask=lambda _: check_function(
            LearnedStep.apply,
            [2 * randn(4, 7, seed=7), rand(seed=8)],
            reference=plain_learned_step,
            oracles=["reference"],
        ),
        wrong=True,
        reference=True,
        true=(r"term|derivative forgotten",),
    )
)


class RowNormalized(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = 2 * torch.tanh(x / 2)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return F.normalize(dy, dim=-1) * (1 - y * y / 4)


add(
    "capped logits: cotangent normalized",
    "each row of the cotangent is scaled to norm 1, so that examples of large gradients do not prevail",
    RowNormalized.apply,
    [randn(4, 5, seed=9)],
    r"not linear|rows",
)


class SwishSaved(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, s = ctx.saved_tensors
        return dy * (s + x * s * (1 - s))


add(
    "swish: second derivative with σ constant",
    "the FIRST derivative is right; the second takes σ(x), which forward saved outside of the graph, for a constant",
    SwishSaved.apply,
    [randn(3, 5, seed=10)],
    r"(?i)second|double|derivative forgotten",
    F.silu,
)


class BumpSlope(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return -x * torch.exp(-x * x / 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return dy * (1 - x * x) * torch.exp(-x * x / 2)


class Bump(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(-x * x / 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return dy * BumpSlope.apply(x)


add(
    "Gaussian bump: sign of the second derivative",
    "the FIRST derivative is right; the second, that a differential equation's residual needs, has the wrong sign",
    Bump.apply,
    [randn(3, 5, seed=11)],
    r"(?i)second|double",
)


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
        self.weight = nn.Parameter(randn(3, 5, seed=12))
        self.gain = nn.Parameter(rand(3, seed=13))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x @ StandardizedWeight.apply(self.weight).mT)


add(
    "weight standardization: n for n − 1",
    "the variance is over n − 1 and its part of the weight's gradient over n",
    StandardizedLinear(),
    [randn(4, 5, seed=14)],
    r"term|factor",
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
        self.weight = nn.Parameter(randn(4, 4, seed=15))
        v = randn(4, seed=16)
        for _ in range(3):
            u = F.normalize(self.weight.detach() @ v, dim=0)
            v = F.normalize(self.weight.detach().mT @ u, dim=0)
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def forward(self, x: Tensor) -> Tensor:
        return x @ SpectralWeight.apply(self.weight, self.u, self.v).mT


add(
    "spectral norm: v uᵀ for u vᵀ",
    "the derivative of σ = uᵀ W v, which the square weight is divided by, is transposed",
    SpectralLinear(),
    [randn(3, 4, seed=17)],
    r"transposed|term",
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
        self.weight = nn.Parameter(0.5 * randn(4, 4, seed=18))

    def forward(self, x: Tensor) -> Tensor:
        return x @ Cayley.apply(self.weight)


add(
    "Cayley map: skew part forgotten",
    "the weight gets the gradient g of W − Wᵀ and not g − gᵀ; the input's is right",
    OrthogonalLinear(),
    [randn(3, 4, seed=19)],
    r"term|transposed",
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


add(
    "log-determinant: inverse in single precision",
    "in float64 the inverse is computed in float32, whose error the condition of the matrix, about 10⁴, enlarges",
    LogDeterminant.apply,
    [randn(5, 4, seed=20) @ randn(4, 5, seed=60) + 3e-2 * randn(5, 5, seed=61)],
    r"(?i)dtype|precision|float32",
    lambda a: torch.log(torch.det(a).abs()),
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
        self.gamma = nn.Parameter(randn(5, seed=21))

    def forward(self, x: Tensor) -> Tensor:
        return x + LayerScaleFunction.apply(torch.tanh(x), self.gamma)


add(
    "layer scale: mean over batch and tokens",
    "γ's gradient is the mean, not the sum, over the 2·3 places where it is used",
    LayerScale(),
    [randn(2, 3, 5, seed=22)],
    r"factor: .*1/6|mean",
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


add(
    "rotary embedding: rotated on, not back",
    "backward rotates by +θ; the transpose of a rotation is the rotation by −θ",
    Rotary.apply,
    [randn(2, 5, 6, seed=23)],
    r"sign|transposed|term",
    plain_rotary,
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


add(
    "rotary embedding: table of the last length",
    "the table, whose base depends on the length, is the last forward's: wrong if one of another length came between",
    LengthRotary.apply,
    [randn(2, 5, 6, seed=24)],
    r"(?i)stale|raised",
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


add(
    "RMS norm: nothing to do without dx",
    "when x needs no gradient, as in a network's first layer, the weight gets none either",
    RMSNorm.apply,
    [randn(3, 7, seed=25), randn(7, seed=26)],
    r"(?i)missing|none",
    lambda x, weight: F.rms_norm(x, (7,), weight, 1e-6),
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


add(
    "group norm: channels last in one group",
    "the path for a cotangent in channels-last memory takes the two means over all channels, not over each group's",
    GroupNorm.apply,
    [randn(2, 4, 3, 5, seed=27), randn(4, seed=28), randn(4, seed=29)],
    r"(?i)strided|channels.last|layout",
    lambda x, weight, bias: F.group_norm(x, 2, weight, bias, 1e-5),
)
