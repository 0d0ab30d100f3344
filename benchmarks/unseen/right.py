"""Right pairs of a forward and its backward that a careless check would accuse: kinks, saturation and cancellation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import Subject
from gradient_check import Report, check_backward

SUBJECTS: list[Subject] = []


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(
    subjects: list[Subject],
    name: str,
    what: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    example: Callable[[], list[Any]],
    reference: Callable[..., Any] | None = None,
    **options: Any,
) -> None:
    """Add a right pair."""

    def ask(given: bool) -> Report:
        return check_backward(forward, backward, example(), reference=reference if given else None, **options)

    subjects.append(Subject(name, what, ask, wrong=False, reference=reference is not None))


# kinks


def relu_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * (x >= 0), x


def relu_backward(d: Tensor, x: Tensor) -> Tensor:
    return d * (x >= 0)


pair(
    SUBJECTS,
    "relu, one at zero",
    "exact zeros in the example, where every number from 0 to 1 is a subgradient: this backward says 1, torch.relu 0",
    relu_forward,
    relu_backward,
    lambda: [rows([0, 1.5, -0.5], [0, 0, 2], [-1, 0, 0.25], [0.75, -2, 0])],
    torch.relu,
)


def row_maximum_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.amax(1)
    return y, x == y[:, None]


def row_maximum_backward(d: Tensor, hit: Tensor) -> Tensor:
    return d[:, None] * hit / hit.sum(1, keepdim=True)


pair(
    SUBJECTS,
    "maximum of a row, shared among ties",
    "three of four rows have ties, among which the gradient is divided equally",
    row_maximum_forward,
    row_maximum_backward,
    lambda: [rows([1, 2, 2, 0, 2], [0, 0, 0, 0, 0], [-1, 3, 0.5, 2, 1], [4, 1, 1, 4, 0])],
    lambda x: torch.amax(x, 1),
)


def median_forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y, where = x.median(dim=1)
    return y, (where, x)


def median_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    where, x = cache
    return torch.zeros_like(x).scatter(1, where[:, None], d[:, None])


pair(
    SUBJECTS,
    "median with close neighbours",
    "middle values are 1e-7 apart, so that an ordinary step of a difference changes which of them is the median",
    median_forward,
    median_backward,
    lambda: [rows([0.3, 0.3 + 1e-7, -2, 1.5, 2, -1], [0, 1, 2, 3, 2 - 1e-7, 5], [1, 1 - 1e-7, 1 + 1e-7, 4, -3, 0])],
    lambda x: x.sort(dim=1).values[:, (x.shape[1] - 1) // 2],
)


def hinge_forward(scores: Tensor, target: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    margin = 1 + scores - scores.gather(1, target[:, None])
    others = torch.arange(scores.shape[1], device=scores.device) != target[:, None]
    loss = (margin.clamp(min=0) * others).sum() / scores.numel()
    return loss, ((margin > 0) & others, target, scores)


def hinge_backward(d: Tensor, cache: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    active, target, scores = cache
    pushed = active.to(scores.dtype)
    pulled = torch.zeros_like(scores).scatter(1, target[:, None], pushed.sum(1, keepdim=True))
    return d * (pushed - pulled) / scores.numel()


pair(
    SUBJECTS,
    "hinge loss with margins of exactly zero",
    "the scores are multiples of a half, so that several margins lie on the kink; the loss is 0-d, the target integer",
    hinge_forward,
    hinge_backward,
    lambda: [
        rows([0, 1, 0.5, -1], [2, 1, 0, 3], [0.5, 0.5, 1.5, 0.5], [1, 0, 2, 0], [-0.5, 0, 0, 1]),
        torch.tensor([1, 3, 2, 2, 0]),
    ],
    F.multi_margin_loss,
)


def huber_forward(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    r = x - target
    return torch.where(r.abs() <= 1, r * r / 2, r.abs() - 0.5).mean(), r


def huber_backward(d: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    dx = d * r.clamp(-1, 1) / r.numel()
    return dx, -dx


pair(
    SUBJECTS,
    "huber loss with residuals of exactly one",
    "the second derivative jumps at residuals of ±1, which are in the example, and of 0 the gradient is exactly zero",
    huber_forward,
    huber_backward,
    lambda: [rows([1, -1, 0, 2.5, 0.5], [3, 0, -0.25, 1, 1]), rows([0, 0, 0, 0, 0], [1, 1, -0.25, 2, -4])],
    lambda x, target: F.huber_loss(x, target, delta=1.0),
)


def minimum_forward(a: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return torch.minimum(a, b), (a, b)


def minimum_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    a, b = cache
    share = (a < b).to(d.dtype) + 0.5 * (a == b)
    return d * share, d * (1 - share)


pair(
    SUBJECTS,
    "smaller of two equal arguments",
    "the two arguments are the same tensor, so that every element is a tie and each gets a half",
    minimum_forward,
    minimum_backward,
    lambda: [randn(1, 3, 5)] * 2,
    lambda a, b: (a + b - (a - b).abs()) / 2,
)


def three_largest_forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y, where = x.topk(3, dim=1)
    return y, (where, x)


def three_largest_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    where, x = cache
    return torch.zeros_like(x).scatter(1, where, d)


pair(
    SUBJECTS,
    "three largest with ties at the third",
    "which of the equal elements is third is arbitrary, and the other ones get nothing",
    three_largest_forward,
    three_largest_backward,
    lambda: [rows([5, 1, 1, 1, 3, 0], [2, 2, 2, 2, 2, 2], [0.5, -1, 4, 0.5, 0.5, 7])],
)


def interpolation_forward(table: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    low = x.detach().floor().long().clamp(max=len(table) - 2).clamp(min=0)
    high = (low + 1).clamp(max=len(table) - 1)
    part = x - low
    return table[low] * (1 - part) + table[high] * part, (table, low, high, part)


def interpolation_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    table, low, high, part = cache
    d_table = torch.zeros_like(table).index_add(0, low, d * (1 - part)).index_add(0, high, d * part)
    return d_table, d * (table[high] - table[low])


pair(
    SUBJECTS,
    "interpolation in a table, at its grid points",
    "all but one position are grid points, where the slope is that of the right neighbour; two positions are the same",
    interpolation_forward,
    interpolation_backward,
    lambda: [randn(2, 6), torch.tensor([0, 3, 1, 4.5, 3, 5, 2], dtype=torch.float64)],
)


def norm_forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y = x.square().sum(1).sqrt()
    return y, (x, y)


def norm_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    x, y = cache
    return d[:, None] * torch.where(y > 0, 1 / y, 0)[:, None] * x


pair(
    SUBJECTS,
    "norm of a row of zeros",
    "autograd through this very forward gives nan at the second row, the backward the subgradient zero",
    norm_forward,
    norm_backward,
    lambda: [rows([3, -4, 0], [0, 0, 0], [1e-6, 2e-6, -2e-6], [0, 0, -5])],
    lambda x: torch.linalg.vector_norm(x, dim=1),
)


# saturation and cancellation


def softplus_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.clamp(min=0) + x.abs().neg().exp().log1p(), x


def softplus_backward(d: Tensor, x: Tensor) -> Tensor:
    return d * torch.sigmoid(x)


pair(
    SUBJECTS,
    "stable softplus at zero and far out",
    "softplus is smooth but made of two kinks, so that autograd through this forward is wrong at zero: not a half",
    softplus_forward,
    softplus_backward,
    lambda: [rows([0, 40, -40, 0.5], [700, -700, 0, -2], [1e-6, -1e-6, 3, -1])],
    lambda x: torch.logaddexp(x, torch.zeros_like(x)),
)


def cross_entropy_forward(x: Tensor, target: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return (x.clamp(min=0) - x * target + x.abs().neg().exp().log1p()).mean(), (x, target)


def cross_entropy_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    x, target = cache
    return d * ((1 - target) * torch.sigmoid(x) - target * torch.sigmoid(-x)) / x.numel()


pair(
    SUBJECTS,
    "binary cross-entropy, saturated",
    "most logits are ±40, of which the right ones have gradients below 1e-18 and the wrong ones of 0.1",
    cross_entropy_forward,
    cross_entropy_backward,
    lambda: [rows([40, -40, 40, -40, 0.3], [-40, 2, 40, -1, -40]), rows([1, 0, 0, 1, 1], [0, 0.5, 1, 1, 0.25])],
    F.binary_cross_entropy_with_logits,
    not_differentiable=("target",),
)


def variance_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(1, keepdim=True)
    return centred.square().sum(1) / (x.shape[1] - 1), centred


def variance_backward(d: Tensor, centred: Tensor) -> Tensor:
    return d[:, None] * centred * 2 / (centred.shape[1] - 1)


pair(
    SUBJECTS,
    "variance of nearly equal numbers",
    "numbers of 1e4 that differ by 1e-3: right within 1e-8 relative, which is what the numbers' own rounding leaves",
    variance_forward,
    variance_backward,
    lambda: [1e4 + 1e-3 * randn(3, 3, 7)],
    lambda x: torch.var(x, 1),
)


def logsumexp_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    top = x.amax(1, keepdim=True)
    e = (x - top).exp()
    return top[:, 0] + e.sum(1).log(), e / e.sum(1, keepdim=True)


def logsumexp_backward(d: Tensor, p: Tensor) -> Tensor:
    return d[:, None] * p


pair(
    SUBJECTS,
    "logsumexp of large numbers",
    "numbers of ±1e4, of which the naive exponential is inf or zero; the first row has two equal maxima",
    logsumexp_forward,
    logsumexp_backward,
    lambda: [rows([1e4, 1e4, 9.999e3, -1e4], [-1e4, -1e4 + 1, -1e4 - 2, -1e4], [1e4 + 0.5, 1e4 - 1, 0, 1e4])],
    lambda x: torch.logsumexp(x, 1),
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
    SUBJECTS,
    "layer norm of nearly constant rows",
    "rows that vary by 1e-4 around 5, and one that does not vary at all: epsilon rules and the function bends sharply",
    layer_norm_forward,
    layer_norm_backward,
    lambda: [
        torch.cat([5 + 1e-4 * randn(4, 2, 2, 5), torch.full((2, 1, 5), 5.0, dtype=torch.float64)], 1),
        1 + 0.1 * randn(5, 5),
        randn(6, 5),
    ],
    lambda x, gain, shift: F.layer_norm(x, gain.shape, gain, shift, eps=1e-5),
)


def enzyme_forward(limit: Tensor, half: Tensor, amount: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    part = amount / (half + amount)
    return limit * part, (limit, half, amount, part)


def enzyme_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    limit, half, amount, part = cache
    slope = limit / (half + amount)
    return d * part, -d * slope * part, d * slope * (1 - part)


pair(
    SUBJECTS,
    "enzyme kinetics of three scalars",
    "0-d arguments of 1e4, 1e-6 and 2e-6, whose gradients are 0.7, −2e9 and 1e9",
    enzyme_forward,
    enzyme_backward,
    lambda: [torch.tensor(v, dtype=torch.float64) for v in (1e4, 1e-6, 2e-6)],
    lambda limit, half, amount: limit / (1 + half / amount),
)


def power_forward(x: Tensor, p: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return x**p, (x, p)


def power_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    x, p = cache
    dx = torch.where(p == 0, 0, p * x ** (p - 1))
    dp = torch.where((x == 0) & (p >= 0), 0, x**p * x.log())
    return d * dx, d * dp


pair(
    SUBJECTS,
    "power of a zero base",
    "0·log 0 in the exponent's gradient is zero, the base's is 1 at the exponent 1; a negative base has no power",
    power_forward,
    power_backward,
    lambda: [rows([0, 0, 0.5, 2], [1, 0, 3, 0.25]), rows([1, 2.5, 1, 3], [1.5, 3, 1.25, 2])],
    torch.pow,
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
    SUBJECTS,
    "cumulative product with zeros",
    "rows with one zero and with two, where a division by the element is impossible and many gradients are zero",
    cumulative_product_forward,
    cumulative_product_backward,
    lambda: [rows([1.5, 0, -2, 0.5, 3], [0.5, 0, 2, 0, -1], [0, 1, 2, -1, 0.25], [1, -1.5, 2, 0.5, 0])],
    lambda x: torch.stack([x[:, : k + 1].prod(1) for k in range(x.shape[1])], 1),
)
