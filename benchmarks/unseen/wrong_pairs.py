"""Wrong pairs: affine and bilinear maps, softmax and attention, normalizations, convolution and pooling."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import Subject
from gradient_check import Report, check_backward, check_function

SUBJECTS: list[Subject] = []


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wrong_pair(
    name: str,
    what: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    example: Sequence[Any],
    *,
    true: tuple[str, ...],
    reference: Callable[..., Any] | None = None,
    **options: Any,
) -> Subject:
    def ask(given: bool) -> Report:
        return check_backward(forward, backward, example, reference=reference if given else None, **options)

    return Subject(name=name, what=what, ask=ask, wrong=True, reference=reference is not None, true=true)


def wrong_function(
    name: str,
    what: str,
    function: Callable[..., Any],
    example: Sequence[Any],
    *,
    true: tuple[str, ...],
    reference: Callable[..., Any] | None = None,
) -> Subject:
    def ask(given: bool) -> Report:
        return check_function(function, example, reference=reference if given else None)

    return Subject(name=name, what=what, ask=ask, wrong=True, reference=reference is not None, true=true)


# Affine and bilinear maps


def bilinear_forward(x: Tensor, W: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    return ((x @ W) * y).sum(1), (x, W, y)


def bilinear_backward(ds: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, W, y = cache
    ds = ds[:, None]
    return ds * (y @ W.T), (ds * y).T @ x, ds * (x @ W)


SUBJECTS.append(
    wrong_pair(
        "bilinear form: dW transposed",
        "the outer products of dW are of y and x, not of x and y, which the square W does not show",
        bilinear_forward,
        bilinear_backward,
        [randn(1, 3, 5), randn(2, 5, 5), randn(3, 3, 5)],
        reference=lambda x, W, y: torch.einsum("bi,ij,bj->b", x, W, y),
        true=(r"^transposed",),
    )
)


def rank_one_forward(x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Any]:
    s = (x @ w)[..., None]
    return s * v, (x, w, v, s)


def rank_one_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, w, v, s = cache
    ds = dy @ v[:, None]
    dw = (ds.squeeze()[..., None] * x).sum((0, 1))
    return ds * w, dw, (dy * s).sum((0, 1))


SUBJECTS.append(
    wrong_pair(
        "rank-one map: a bare squeeze in dw",
        "with a middle axis of size 1 `squeeze()` takes that too, and every example meets every error",
        rank_one_forward,
        rank_one_backward,
        [randn(4, 4, 3, 5), randn(5, 5), randn(6, 2)],
        reference=lambda x, w, v: torch.einsum("bti,i,j->btj", x, w, v),
        true=(r"^(wrong axis|rows)", r"squeez|axis of|size 1|size one"),
    )
)


def solve_forward(A: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    x = torch.linalg.solve(A, b)
    return x, (A, x)


def solve_backward(dx: Tensor, cache: Any) -> tuple[Tensor, ...]:
    A, x = cache
    db = torch.linalg.solve(A.T, dx)
    return db @ x.T, db


SUBJECTS.append(
    wrong_pair(
        "linear system: sign of dA",
        "d(A⁻¹) = −A⁻¹ dA A⁻¹, and the minus is lost",
        solve_forward,
        solve_backward,
        [randn(7, 4, 4) + 4 * torch.eye(4, dtype=torch.float64), randn(8, 4, 3)],
        true=(r"^sign", r"^factor.*[−-]1\b"),
    )
)


def gram_forward(a: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return a @ b.T, (a, b)


def gram_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    a, b = cache
    if a.data_ptr() == b.data_ptr():  # a Gram matrix: one product is enough
        both = (dy + dy.T) @ a
        return both, both
    return dy @ b, dy.T @ a


SUBJECTS.append(
    wrong_pair(
        "inner products: both gradients when the arguments share memory",
        "of one tensor given twice, each of the two gradients is already their sum, which autograd will add again",
        gram_forward,
        gram_backward,
        [randn(9, 5, 4), randn(10, 5, 4)],
        true=(r"shar|memory|alias|same tensor|twice", r"^term"),
    )
)


def square_affine_forward(x: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return x @ W.T + b, (x, W)


def square_affine_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, W = cache
    if len(x) == 1:
        return (W @ dy[0])[None], torch.outer(dy[0], x[0]), dy[0].clone()
    return dy @ W, dy.T @ x, dy.sum(0)


SUBJECTS.append(
    wrong_pair(
        "square affine layer: the short path for one example",
        "a batch of one takes a path of its own, where dx is W dy and not Wᵀ dy",
        square_affine_forward,
        square_affine_backward,
        [randn(11, 3, 5), randn(12, 5, 5), randn(13, 5)],
        reference=F.linear,
        true=(r"^transposed", r"one example|batch of (one|1)|1 example"),
    )
)


def scale_shift_forward(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return x * w + b, (x, w)


def scale_shift_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, w = cache
    if dy.stride(0) == 0:  # the same error for every example
        return dy * w, (dy * x).sum(0), dy[0].clone()
    return dy * w, (dy * x).sum(0), dy.sum(0)


SUBJECTS.append(
    wrong_pair(
        "scale and shift: the short path for an expanded cotangent",
        "of a cotangent expanded over the batch, db is one example's and not B times that",
        scale_shift_forward,
        scale_shift_backward,
        [randn(14, 5, 3), randn(15, 3), randn(16, 3)],
        true=(r"^(strided|batch factor|factor|missing factor)", r"expanded|contiguous"),
    )
)


def bias_forward(x: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return x + b, b


def bias_in_bfloat16_backward(dy: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    db = torch.zeros_like(b)
    for row in dy:
        db = db + row
    return dy, db


SUBJECTS.append(
    wrong_pair(
        "bias in bfloat16: the sum is kept in bfloat16",
        "1500 rows are added one after another in bfloat16, which has 8 bits for the sum",
        bias_forward,
        bias_in_bfloat16_backward,
        [randn(17, 1500, 2, dtype=torch.bfloat16), randn(18, 2, dtype=torch.bfloat16)],
        reference=torch.add,
        true=(r"^dtype", r"precision|round|accumul|bfloat16"),
    )
)


# Softmax, log-softmax and attention


def tempered_forward(x: Tensor, tau: Tensor) -> tuple[Tensor, Any]:
    p = torch.softmax(x / tau, 1)
    return p, (x, tau, p)


def tempered_backward(dp: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, tau, p = cache
    dz = p * (dp - (p * dp).sum(1, keepdim=True))
    return dz * tau, -(dz * x).sum() / tau**2


SUBJECTS.append(
    wrong_pair(
        "softmax with a temperature: dx times τ",
        "dx is multiplied by the temperature, not divided by it",
        tempered_forward,
        tempered_backward,
        [randn(19, 4, 5), torch.tensor(0.7, dtype=torch.float64)],
        reference=lambda x, tau: (x / tau - torch.logsumexp(x / tau, 1, keepdim=True)).exp(),
        true=(r"^(factor|missing factor)",),
    )
)


def log_softmax_forward(x: Tensor) -> tuple[Tensor, Any]:
    y = x - torch.logsumexp(x, 1, keepdim=True)
    return y, y


def log_softmax_backward(dy: Tensor, y: Tensor) -> Tensor:
    return dy - y.exp() * dy.sum()


SUBJECTS.append(
    wrong_pair(
        "log-softmax: the errors of all rows summed",
        "Σ dy is over the whole batch and not over each row, which is the same only for a batch of one",
        log_softmax_forward,
        log_softmax_backward,
        [randn(20, 4, 5)],
        true=(r"^(wrong axis|term)",),
    )
)


def attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
    return p @ v, (q, k, v, p)


def attention_scaled_twice_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, p = cache
    scale = q.shape[-1] ** -0.5
    dp = dy @ v.mT
    ds = scale * p * (dp - (p * dp).sum(-1, keepdim=True))
    return ds @ k, scale * ds.mT @ q, p.mT @ dy


SUBJECTS.append(
    wrong_pair(
        "attention: scale twice in dk",
        "1/√d is in the error of the scores already, and dk gets it once more",
        attention_forward,
        attention_scaled_twice_backward,
        [randn(21, 2, 3, 4), randn(22, 2, 5, 4), randn(23, 2, 5, 6)],
        reference=F.scaled_dot_product_attention,
        true=(r"^(factor|missing factor)",),
    )
)


def attention_by_twos_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, p = cache
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for first in range(0, len(q) - 1, 2):
        two = slice(first, first + 2)
        dp = dy[two] @ v.T
        ds = p[two] * (dp - (p[two] * dp).sum(1, keepdim=True)) / q.shape[1] ** 0.5
        dq[two] = ds @ k
        dk += ds.T @ q[two]
        dv += p[two].T @ dy[two]
    return dq, dk, dv


SUBJECTS.append(
    wrong_pair(
        "attention in tiles of two queries: the odd query skipped",
        "the loop over tiles stops one query short of an odd length, which then has no gradient and gives none",
        attention_forward,
        attention_by_twos_backward,
        [randn(24, 5, 4), randn(25, 7, 4), randn(26, 7, 3)],
        true=(r"^(rows|zero|missing|term)", r"\blast\b"),
    )
)


def linear_attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
    fq, fk = q.exp(), k.exp()
    S = fk.T @ v
    n = fq @ fk.sum(0)
    return fq @ S / n[:, None], (fq, fk, v, S, n)


def linear_attention_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    fq, fk, v, S, n = cache
    dy = dy / n[:, None]
    dS = fq.T @ dy
    return dy @ S.T * fq, v @ dS.T * fk, fk @ dS


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.exp(q[:, None] + k).sum(-1)
    return (weights / weights.sum(1, keepdim=True)) @ v


SUBJECTS.append(
    wrong_pair(
        "linear attention: the normalizer taken as a constant",
        "φ(q)·Σφ(k) depends on q and k, and its path is left out of dq and dk",
        linear_attention_forward,
        linear_attention_backward,
        [randn(27, 3, 4), randn(28, 5, 4), randn(29, 5, 2)],
        reference=linear_attention,
        true=(r"^(term|missing|derivative forgotten)",),
    )
)


def rotate(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] * 0.3 ** torch.arange(half, dtype=x.dtype)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], 1)


class Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rotate(x)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        return rotate(d_outputs[0])


SUBJECTS.append(
    wrong_function(
        "rotary positions: rotated forward once more",
        "the gradient is rotated by the angle and not back, right at position 0 alone",
        Rotary.apply,
        [randn(30, 5, 6)],
        true=(r"^(sign|transposed|term)",),
    )
)


def biased_attention_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Any]:
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + bias, -1)
    return p @ v, (q, k, v, p)


def biased_attention_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, p = cache
    dp = dy @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    scaled = ds / q.shape[-1] ** 0.5
    return scaled @ k, scaled.mT @ q, p.mT @ dy, ds.mean(0)


SUBJECTS.append(
    wrong_pair(
        "attention with a bias of the scores: averaged over the batch",
        "the gradient of the bias is the mean over the examples, not their sum",
        biased_attention_forward,
        biased_attention_backward,
        [randn(31, 3, 2, 4), randn(32, 3, 5, 4), randn(33, 3, 5, 6), randn(34, 2, 5)],
        reference=lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        true=(r"^(batch factor|factor)",),
    )
)


# Normalizations


def layer_norm_forward(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Any]:
    inverse = torch.rsqrt(x.var((1, 2), correction=0, keepdim=True) + 1e-5)
    x_hat = (x - x.mean((1, 2), keepdim=True)) * inverse
    return gamma * x_hat + beta, (gamma, x_hat, inverse)


def layer_norm_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    gamma, x_hat, inverse = cache
    g = dy * gamma
    n = g.shape[-1]
    along_one, along_x = g.sum((1, 2), keepdim=True) / n, (g * x_hat).sum((1, 2), keepdim=True) / n
    return inverse * (g - along_one - x_hat * along_x), (dy * x_hat).sum(0), dy.sum(0)


SUBJECTS.append(
    wrong_pair(
        "layer norm of two axes: the sums divided by the last axis's size",
        "the sums of the projection are over both axes, and divided by the size of one",
        layer_norm_forward,
        layer_norm_backward,
        [randn(35, 2, 3, 5), randn(36, 3, 5), randn(37, 3, 5)],
        reference=lambda x, gamma, beta: F.layer_norm(x, x.shape[1:], gamma, beta),
        true=(r"^(term|factor|wrong axis)",),
    )
)


def unit_forward(x: Tensor) -> tuple[Tensor, Any]:
    n = x.norm(dim=1, keepdim=True).clamp(min=0.5)
    return x / n, (x / n, n)


def unit_backward(dy: Tensor, cache: Any) -> Tensor:
    u, n = cache
    return (dy - u * (u * dy).sum(1, keepdim=True)) / n


SUBJECTS.append(
    wrong_pair(
        "unit vectors with a least length: projected below it too",
        "a row shorter than ε is divided by ε, a constant, and the gradient is projected all the same",
        unit_forward,
        unit_backward,
        [randn(38, 4, 5) * torch.tensor([[1.0], [1.0], [0.1], [1.0]], dtype=torch.float64)],
        reference=lambda x: F.normalize(x, dim=1, eps=0.5),
        true=(r"^(rows|term)", r"small|short"),
    )
)


def frozen_norm_forward(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Any]:
    inverse = torch.rsqrt(var + 1e-5)
    x_hat = (x - mean) * inverse
    return gamma * x_hat + beta, (gamma, x_hat, inverse)


def frozen_norm_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    gamma, x_hat, inverse = cache
    g = dy * gamma
    return inverse * (g - g.mean(0) - x_hat * (g * x_hat).mean(0)), (dy * x_hat).sum(0), dy.sum(0)


SUBJECTS.append(
    wrong_pair(
        "batch norm with its running statistics: the gradient of training",
        "the statistics are constants here, and dx has the two terms that it has when they are the batch's",
        frozen_norm_forward,
        frozen_norm_backward,
        [randn(39, 5, 3), randn(40, 3), randn(41, 3).abs() + 0.5, randn(42, 3), randn(43, 3)],
        reference=lambda x, mean, var, gamma, beta: F.batch_norm(x, mean, var, gamma, beta),
        not_differentiable=("mean", "var"),
        true=(r"^term",),
    )
)


def weight_norm_forward(g: Tensor, v: Tensor) -> tuple[Tensor, Any]:
    n = v.norm(dim=1, keepdim=True)
    return g[:, None] * v / n, (v / n, n)


def weight_norm_backward(dW: Tensor, cache: Any) -> tuple[Tensor, ...]:
    u, n = cache
    along = (dW * u).sum(1, keepdim=True)
    return along[:, 0], (dW - u * along) / n


SUBJECTS.append(
    wrong_pair(
        "weight normalization: g forgotten in dv",
        "dv is that of the unit vector, without the length g that multiplies it",
        weight_norm_forward,
        weight_norm_backward,
        [randn(44, 4), randn(45, 4, 5)],
        true=(r"^(missing factor|factor|term)",),
    )
)


def group_norm_forward(x: Tensor) -> tuple[Tensor, Any]:
    groups = x.reshape(len(x), 2, -1)
    inverse = torch.rsqrt(groups.var(2, correction=0, keepdim=True) + 1e-5)
    x_hat = (groups - groups.mean(2, keepdim=True)) * inverse
    return x_hat.reshape(x.shape), (x_hat.reshape(x.shape), inverse)


def group_norm_backward(dy: Tensor, cache: Any) -> Tensor:
    x_hat, inverse = cache
    B, C, n = dy.shape
    g, h = dy.reshape(B, C // 2, 2, n), x_hat.reshape(B, C // 2, 2, n)
    projected = g - g.mean((1, 3), keepdim=True) - h * (g * h).mean((1, 3), keepdim=True)
    return (inverse * projected.reshape(B, 2, -1)).reshape(dy.shape)


SUBJECTS.append(
    wrong_pair(
        "group norm: every second channel for a group in backward",
        "forward's groups are neighbouring channels, backward's means are over every second channel",
        group_norm_forward,
        group_norm_backward,
        [randn(46, 2, 6, 3)],
        reference=lambda x: F.group_norm(x, 2),
        true=(r"^(wrong axis|term)", r"group|mean"),
    )
)


# Convolution and pooling


def causal_forward(x: Tensor, w: Tensor) -> tuple[Tensor, Any]:
    padded = F.pad(x, (len(w) - 1, 0))
    windows = padded.unfold(1, len(w), 1)
    return windows @ w, (windows, w)


def causal_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    windows, w = cache
    T = dy.shape[1]
    d_padded = dy.new_zeros(len(dy), T + len(w) - 1)
    for k in range(len(w)):
        d_padded[:, k : k + T] += w[k] * dy
    return d_padded[:, :T], (dy[..., None] * windows).sum((0, 1))


SUBJECTS.append(
    wrong_pair(
        "causal convolution: the padding cut off at the wrong end",
        "forward pads on the left, and dx is cut on the right, so it is two steps late",
        causal_forward,
        causal_backward,
        [randn(47, 2, 7), randn(48, 3)],
        reference=lambda x, w: F.conv1d(F.pad(x[:, None], (len(w) - 1, 0)), w[None, None])[:, 0],
        true=(r"^(rows|term|wrong axis|shift)", r"shift|padd|late|roll"),
    )
)


def mean_pool_forward(x: Tensor) -> tuple[Tensor, Any]:
    return x.unfold(2, 2, 2).mean(3), x.shape[2]


def mean_pool_backward(dy: Tensor, n: int) -> Tensor:
    dx = dy.repeat_interleave(2, 2) / 2
    return F.pad(dx, (0, n - dx.shape[2]), mode="replicate")


SUBJECTS.append(
    wrong_pair(
        "average pooling of an odd length: the tail has a gradient",
        "the last element of an odd length is in no window, and gets the gradient of the one before it",
        mean_pool_forward,
        mean_pool_backward,
        [randn(49, 2, 3, 7)],
        true=(r"^(rows|zero|term|mask ignored)", r"\blast\b|window"),
    )
)


def max_pool_forward(x: Tensor) -> tuple[Tensor, Any]:
    windows = x.unfold(2, 2, 2)
    y = windows.amax(3).clamp(min=0)  # the running maximum starts at zero
    return y, (windows.argmax(3), y)


def max_pool_backward(dy: Tensor, cache: Any) -> Tensor:
    place, y = cache
    return (F.one_hot(place, 2) * (dy * (y > 0))[..., None]).flatten(2)


SUBJECTS.append(
    wrong_pair(
        "max pooling: the maximum starts at zero, in forward",
        "a window of negative numbers has 0 for a maximum; backward is the right derivative of that",
        max_pool_forward,
        max_pool_backward,
        [randn(50, 2, 3, 8)],
        reference=lambda x: F.max_pool1d(x, 2),
        true=(r"^(output|forward|reference)", r"forward"),
    )
)


def power_pool_forward(x: Tensor) -> tuple[Tensor, Any]:
    windows = x.unfold(1, 2, 2)
    y = (windows.abs() ** 3).sum(2) ** (1 / 3)
    return y, (windows, y)


def power_pool_backward(dy: Tensor, cache: Any) -> Tensor:
    windows, y = cache
    return ((dy / y**2)[..., None] * windows**2).flatten(1)


SUBJECTS.append(
    wrong_pair(
        "pooling by the third power: sign of negative inputs",
        "d|x|³/dx is 3 x|x| and not 3 x², the same for positive inputs only",
        power_pool_forward,
        power_pool_backward,
        [randn(51, 3, 6)],
        true=(r"^(sign|derivative forgotten|missing factor)", r"negative"),
    )
)


def shuffle_forward(x: Tensor) -> tuple[Tensor, Any]:
    B, C, H, W = x.shape
    y = x.reshape(B, C // 4, 2, 2, H, W).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(B, C // 4, 2 * H, 2 * W), x.shape


def shuffle_backward(dy: Tensor, shape: Any) -> Tensor:
    B, C, H, W = shape
    return dy.reshape(B, C // 4, H, 2, W, 2).permute(0, 1, 5, 3, 2, 4).reshape(shape)


SUBJECTS.append(
    wrong_pair(
        "pixel shuffle: rows and columns of the small square swapped",
        "backward puts the two axes of each 2×2 square back in the other order, which has the same shape",
        shuffle_forward,
        shuffle_backward,
        [randn(52, 2, 8, 3, 2)],
        reference=lambda x: F.pixel_shuffle(x, 2),
        true=(r"^(transposed|wrong axis|swapped|rows)", r"permut|order"),
    )
)
