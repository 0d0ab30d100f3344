"""Functions and modules: activations and gates."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.unseen.subject import add, function, rand, randn
from gradient_check import check_function


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


function(
    "GEGLU: density forgotten",
    "the gate's gradient is value·Φ(gate) alone; value·gate·φ(gate) is missing",
    GEGLU.apply,
    [randn(1, 3, 10)],
    true=(r"term|derivative forgotten",),
    reference=plain_geglu,
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
        self.up = nn.Parameter(randn(2, 8, 5))
        self.beta = nn.Parameter(0.5 + rand(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = (x @ self.up.mT).chunk(2, -1)
        return SwishGate.apply(gate, value, self.beta)


def plain_swiglu(x: Tensor, up: Tensor, beta: Tensor) -> Tensor:
    gate, value = (x @ up.mT).chunk(2, -1)
    return gate / (1 + torch.exp(-beta * gate)) * value


function(
    "SwiGLU: β by the gate instead of its square",
    "the gradient of the learned β lacks one of its two factors of the gate; all others are right",
    SwiGLU(),
    [randn(4, 3, 5)],
    true=(r"factor|term|derivative forgotten",),
    reference=plain_swiglu,
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


function(
    "mish: an expanded cotangent taken for ones",
    "a cotangent whose strides are all 0, as y.sum() and y.mean() give it, is replaced by ones whatever its value",
    MishOfSum.apply,
    [randn(5, 3, 5)],
    true=(r"(?i)strided|expanded|ones",),
)


class TopK(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        smallest_kept = x.abs().topk(3, -1).values[..., -1:]
        return torch.where(x.abs() >= smallest_kept, x, 0.0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy


function(
    "top-k activation: straight through",
    "what forward sets to zero, all but the 3 largest of a row, gets the cotangent in full",
    TopK.apply,
    [randn(6, 4, 9)],
    true=(r"mask ignored|term|derivative forgotten",),
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


add(
    name="learned step size: the quantized value alone",
    what="the step's gradient lacks −x/step where it is not clipped; straight through, so asked with the reference",
    ask=lambda _: check_function(
        LearnedStep.apply,
        [2 * randn(7, 4, 7), rand(8)],
        reference=plain_learned_step,
        oracles=["reference"],
    ),
    reference=True,
    true=(r"term|derivative forgotten",),
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


function(
    "capped logits: cotangent normalized",
    "each row of the cotangent is scaled to norm 1, so that examples of large gradients do not prevail",
    RowNormalized.apply,
    [randn(9, 4, 5)],
    true=(r"not linear|rows",),
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


function(
    "swish: second derivative with σ constant",
    "the FIRST derivative is right; the second takes σ(x), which forward saved outside of the graph, for a constant",
    SwishSaved.apply,
    [randn(10, 3, 5)],
    true=(r"(?i)second|double|derivative forgotten",),
    reference=F.silu,
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


function(
    "Gaussian bump: sign of the second derivative",
    "the FIRST derivative is right; the second, that a differential equation's residual needs, has the wrong sign",
    Bump.apply,
    [randn(11, 3, 5)],
    true=(r"(?i)second|double",),
)
