"""Pairs: affine and bilinear maps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, randn


def bilinear_forward(x: Tensor, W: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    return ((x @ W) * y).sum(1), (x, W, y)


def bilinear_backward(ds: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, W, y = cache
    ds = ds[:, None]
    return ds * (y @ W.T), (ds * y).T @ x, ds * (x @ W)


pair(
    "bilinear form: dW transposed",
    "the outer products of dW are of y and x, not of x and y, which the square W does not show",
    bilinear_forward,
    bilinear_backward,
    [randn(1, 3, 5), randn(2, 5, 5), randn(3, 3, 5)],
    reference=lambda x, W, y: torch.einsum("bi,ij,bj->b", x, W, y),
    true=(r"^transposed",),
)


def rank_one_forward(x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Any]:
    s = (x @ w)[..., None]
    return s * v, (x, w, v, s)


def rank_one_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, w, v, s = cache
    ds = dy @ v[:, None]
    dw = (ds.squeeze()[..., None] * x).sum((0, 1))
    return ds * w, dw, (dy * s).sum((0, 1))


pair(
    "rank-one map: a bare squeeze in dw",
    "with a middle axis of size 1 `squeeze()` takes that too, and every example meets every error",
    rank_one_forward,
    rank_one_backward,
    [randn(4, 4, 3, 5), randn(5, 5), randn(6, 2)],
    reference=lambda x, w, v: torch.einsum("bti,i,j->btj", x, w, v),
    true=(r"^(wrong axis|rows)", r"squeez|axis of|size 1|size one"),
)


def solve_forward(A: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    x = torch.linalg.solve(A, b)
    return x, (A, x)


def solve_backward(dx: Tensor, cache: Any) -> tuple[Tensor, ...]:
    A, x = cache
    db = torch.linalg.solve(A.T, dx)
    return db @ x.T, db


pair(
    "linear system: sign of dA",
    "d(A⁻¹) = −A⁻¹ dA A⁻¹, and the minus is lost",
    solve_forward,
    solve_backward,
    [randn(7, 4, 4) + 4 * torch.eye(4, dtype=torch.float64), randn(8, 4, 3)],
    true=(r"^sign", r"^factor.*[−-]1\b"),
)


def gram_forward(a: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return a @ b.T, (a, b)


def gram_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    a, b = cache
    if a.data_ptr() == b.data_ptr():  # a Gram matrix: one product is enough
        both = (dy + dy.T) @ a
        return both, both
    return dy @ b, dy.T @ a


pair(
    "inner products: both gradients when the arguments share memory",
    "of one tensor given twice, each of the two gradients is already their sum, which autograd will add again",
    gram_forward,
    gram_backward,
    [randn(9, 5, 4), randn(10, 5, 4)],
    true=(r"shar|memory|alias|same tensor|twice", r"^term"),
)


def square_affine_forward(x: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return x @ W.T + b, (x, W)


def square_affine_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, W = cache
    if len(x) == 1:
        return (W @ dy[0])[None], torch.outer(dy[0], x[0]), dy[0].clone()
    return dy @ W, dy.T @ x, dy.sum(0)


pair(
    "square affine layer: the short path for one example",
    "a batch of one takes a path of its own, where dx is W dy and not Wᵀ dy",
    square_affine_forward,
    square_affine_backward,
    [randn(11, 3, 5), randn(12, 5, 5), randn(13, 5)],
    reference=F.linear,
    true=(r"^transposed", r"one example|batch of (one|1)|1 example"),
)


def scale_shift_forward(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return x * w + b, (x, w)


def scale_shift_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, w = cache
    if dy.stride(0) == 0:  # the same error for every example
        return dy * w, (dy * x).sum(0), dy[0].clone()
    return dy * w, (dy * x).sum(0), dy.sum(0)


pair(
    "scale and shift: the short path for an expanded cotangent",
    "of a cotangent expanded over the batch, db is one example's and not B times that",
    scale_shift_forward,
    scale_shift_backward,
    [randn(14, 5, 3), randn(15, 3), randn(16, 3)],
    true=(r"^(strided|batch factor|factor|missing factor)", r"expanded|contiguous"),
)


def bias_forward(x: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return x + b, b


def bias_in_bfloat16_backward(dy: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    db = torch.zeros_like(b)
    for row in dy:
        db = db + row
    return dy, db


pair(
    "bias in bfloat16: the sum is kept in bfloat16",
    "1500 rows are added one after another in bfloat16, which has 8 bits for the sum",
    bias_forward,
    bias_in_bfloat16_backward,
    [randn(17, 1500, 2, dtype=torch.bfloat16), randn(18, 2, dtype=torch.bfloat16)],
    reference=torch.add,
    true=(r"^dtype", r"precision|round|accumul|bfloat16"),
)
