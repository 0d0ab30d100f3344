"""Pairs where something saturates or cancels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, randn, rows


def softplus_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.clamp(min=0) + x.abs().neg().exp().log1p(), x


def softplus_backward(d: Tensor, x: Tensor) -> Tensor:
    return d * torch.sigmoid(x)


pair(
    "stable softplus at zero and far out",
    "softplus is smooth but made of two kinks, so that autograd through this forward is wrong at zero: not a half",
    softplus_forward,
    softplus_backward,
    lambda: [rows([0, 40, -40, 0.5], [700, -700, 0, -2], [1e-6, -1e-6, 3, -1])],
    reference=lambda x: torch.logaddexp(x, torch.zeros_like(x)),
)


def cross_entropy_forward(x: Tensor, target: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return (x.clamp(min=0) - x * target + x.abs().neg().exp().log1p()).mean(), (x, target)


def cross_entropy_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    x, target = cache
    return d * ((1 - target) * torch.sigmoid(x) - target * torch.sigmoid(-x)) / x.numel()


pair(
    "binary cross-entropy, saturated",
    "most logits are ±40, of which the right ones have gradients below 1e-18 and the wrong ones of 0.1",
    cross_entropy_forward,
    cross_entropy_backward,
    lambda: [rows([40, -40, 40, -40, 0.3], [-40, 2, 40, -1, -40]), rows([1, 0, 0, 1, 1], [0, 0.5, 1, 1, 0.25])],
    reference=F.binary_cross_entropy_with_logits,
    not_differentiable=("target",),
)


def variance_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(1, keepdim=True)
    return centred.square().sum(1) / (x.shape[1] - 1), centred


def variance_backward(d: Tensor, centred: Tensor) -> Tensor:
    return d[:, None] * centred * 2 / (centred.shape[1] - 1)


pair(
    "variance of nearly equal numbers",
    "numbers of 1e4 that differ by 1e-3: right within 1e-8 relative, which is what the numbers' own rounding leaves",
    variance_forward,
    variance_backward,
    lambda: [1e4 + 1e-3 * randn(3, 3, 7)],
    reference=lambda x: torch.var(x, 1),
)


def logsumexp_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    top = x.amax(1, keepdim=True)
    e = (x - top).exp()
    return top[:, 0] + e.sum(1).log(), e / e.sum(1, keepdim=True)


def logsumexp_backward(d: Tensor, p: Tensor) -> Tensor:
    return d[:, None] * p


pair(
    "logsumexp of large numbers",
    "numbers of ±1e4, of which the naive exponential is inf or zero; the first row has two equal maxima",
    logsumexp_forward,
    logsumexp_backward,
    lambda: [rows([1e4, 1e4, 9.999e3, -1e4], [-1e4, -1e4 + 1, -1e4 - 2, -1e4], [1e4 + 0.5, 1e4 - 1, 0, 1e4])],
    reference=lambda x: torch.logsumexp(x, 1),
)


def layer_norm_forward(x: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    centred = x - x.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return centred * inverse * gain + shift, (centred * inverse, inverse, gain)


def layer_norm_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    normal, inverse, gain = cache
    dn = d * gain
    dx = (dn - dn.mean(-1, keepdim=True) - normal * (dn * normal).mean(-1, keepdim=True)) * inverse
    return dx, (d * normal).sum((0, 1)), d.sum((0, 1))


pair(
    "layer norm of nearly constant rows",
    "rows that vary by 1e-4 around 5, and one that does not vary at all: epsilon rules and the function bends sharply",
    layer_norm_forward,
    layer_norm_backward,
    lambda: [
        torch.cat([5 + 1e-4 * randn(4, 2, 2, 5), torch.full((2, 1, 5), 5.0, dtype=torch.float64)], 1),
        1 + 0.1 * randn(5, 5),
        randn(6, 5),
    ],
    reference=lambda x, gain, shift: F.layer_norm(x, gain.shape, gain, shift, eps=1e-5),
)


def enzyme_forward(limit: Tensor, half: Tensor, amount: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    part = amount / (half + amount)
    return limit * part, (limit, half, amount, part)


def enzyme_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    limit, half, amount, part = cache
    slope = limit / (half + amount)
    return d * part, -d * slope * part, d * slope * (1 - part)


pair(
    "enzyme kinetics of three scalars",
    "0-d arguments of 1e4, 1e-6 and 2e-6, whose gradients are 0.7, −2e9 and 1e9",
    enzyme_forward,
    enzyme_backward,
    lambda: [torch.tensor(v, dtype=torch.float64) for v in (1e4, 1e-6, 2e-6)],
    reference=lambda limit, half, amount: limit / (1 + half / amount),
)


def power_forward(x: Tensor, p: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return x**p, (x, p)


def power_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    x, p = cache
    dx = torch.where(p == 0, 0, p * x ** (p - 1))
    dp = torch.where((x == 0) & (p >= 0), 0, x**p * x.log())
    return d * dx, d * dp


pair(
    "power of a zero base",
    "0·log 0 in the exponent's gradient is zero, the base's is 1 at the exponent 1; a negative base has no power",
    power_forward,
    power_backward,
    lambda: [rows([0, 0, 0.5, 2], [1, 0, 3, 0.25]), rows([1, 2.5, 1, 3], [1.5, 3, 1.25, 2])],
    reference=torch.pow,
)


def cumulative_product_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.cumprod(1), x


def cumulative_product_backward(d: Tensor, x: Tensor) -> Tensor:
    columns = []
    for k in range(x.shape[1]):
        without = torch.cat([x[:, :k], torch.ones_like(x[:, :1]), x[:, k + 1 :]], 1)
        columns.append((d * without.cumprod(1))[:, k:].sum(1))
    return torch.stack(columns, 1)


pair(
    "cumulative product with zeros",
    "rows with one zero and with two, where a division by the element is impossible and many gradients are zero",
    cumulative_product_forward,
    cumulative_product_backward,
    lambda: [rows([1.5, 0, -2, 0.5, 3], [0.5, 0, 2, 0, -1], [0, 1, 2, -1, 0.25], [1, -1.5, 2, 0.5, 0])],
    reference=lambda x: torch.stack([x[:, : k + 1].prod(1) for k in range(x.shape[1])], 1),
)
