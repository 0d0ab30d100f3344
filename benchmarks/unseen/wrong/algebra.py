"""Pairs: linear algebra and quadratic programs."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.unseen.subject import pair, rand, randn


def solve_forward(A: Tensor, B: Tensor) -> Any:
    X = torch.linalg.solve(A, B)
    return X, (A, X)


def solve_backward(dX: Tensor, cache: Any) -> Any:
    A, X = cache
    dB = torch.linalg.solve(A, dX)
    return -dB @ X.mT, dB


pair(
    "linear solve: transpose missing",
    "the adjoint system is solved with A, not with Aᵀ, so both gradients are wrong",
    solve_forward,
    solve_backward,
    [randn(1, 4, 4) + 3 * torch.eye(4, dtype=torch.float64), randn(2, 4, 3)],
    true=(r"transposed",),
    reference=lambda A, B: torch.linalg.inv(A) @ B,
)


def program_forward(Q: Tensor, q: Tensor) -> Any:
    P = (Q + Q.mT) / 2
    z = -torch.linalg.solve(P, q)
    return z, (P, z)


def program_backward(dz: Tensor, cache: Any) -> Any:
    P, z = cache
    dq = -torch.linalg.solve(P, dz)
    return torch.outer(dq, z), dq


pair(
    "quadratic program: symmetric part missing",
    "Q enters by (Q + Qᵀ)/2, and its gradient is d zᵀ instead of (d zᵀ + z dᵀ)/2",
    program_forward,
    program_backward,
    [randn(3, 5, 5) + 5 * torch.eye(5, dtype=torch.float64), randn(4, 5)],
    true=(r"term|transposed|symmetr",),
    reference=lambda Q, q: -2 * torch.linalg.inv(Q + Q.mT) @ q,
)


def nearest_forward(c: Tensor, A: Tensor, b: Tensor) -> Any:
    gram = A @ A.mT
    price = torch.linalg.solve(gram, (c @ A.mT - b).mT).mT
    z = c - price @ A
    return z, (A, gram, price, z)


def nearest_backward(dz: Tensor, cache: Any) -> Any:
    A, gram, price, z = cache
    adjoint = torch.linalg.solve(gram, A @ dz.mT).mT
    dc = dz - adjoint @ A
    return dc, -price.mT @ dc - adjoint.mT @ z, -adjoint


pair(
    "nearest point of an affine set: sign of the right-hand side",
    "z is the point nearest to c with A z = b; b gets minus the adjoint price, the other two gradients are right",
    nearest_forward,
    nearest_backward,
    [randn(5, 3, 5), randn(6, 2, 5), randn(7, 3, 2)],
    true=(r"sign",),
)


def cholesky_forward(M: Tensor) -> Any:
    L = torch.linalg.cholesky(M @ M.mT + torch.eye(len(M), dtype=M.dtype))
    return L, (M, L)


def cholesky_backward(dL: Tensor, cache: Any) -> Any:
    M, L = cache
    lower = (L.mT @ dL).tril()
    left = torch.linalg.solve_triangular(L.mT, lower + lower.mT, upper=True)
    return torch.linalg.solve_triangular(L, left, upper=False, left=False) @ M


def plain_cholesky(M: Tensor) -> Tensor:
    """By Gram and Schmidt: L is the transposed triangle of the QR decomposition of (Mᵀ above I)."""
    columns: list[Tensor] = []
    L = []
    for column in torch.cat([M.mT, torch.eye(len(M), dtype=M.dtype)]).unbind(1):
        row = [q @ column for q in columns]
        rest = column - sum((r * q for r, q in zip(row, columns, strict=True)), torch.zeros_like(column))
        columns.append(rest / rest.norm())
        L.append(torch.stack([*row, rest.norm(), *[torch.zeros_like(rest[0])] * (len(M) - len(row) - 1)]))
    return torch.stack(L)


pair(
    "Cholesky: diagonal not halved",
    "of L of M Mᵀ + I: the lower triangle of Lᵀ dL is made symmetric without halving its diagonal, which counts twice",
    cholesky_forward,
    cholesky_backward,
    [randn(8, 4, 3)],
    true=(r"term|factor",),
    reference=plain_cholesky,
)


def exponential_forward(A: Tensor) -> Any:
    E = torch.linalg.matrix_exp(A)
    return E, E


def exponential_backward(dE: Tensor, E: Any) -> Any:
    return E.mT @ dE


def plain_exponential(A: Tensor) -> Tensor:
    total = term = torch.eye(len(A), dtype=A.dtype)
    for n in range(1, 40):
        term = term @ A / n
        total = total + term
    return total


pair(
    "matrix exponential: as if it commuted",
    "exp(A)ᵀ dE, which would be right if A and its change commuted",
    exponential_forward,
    exponential_backward,
    [0.5 * randn(9, 4, 4)],
    true=(r"term",),
    reference=plain_exponential,
)


def batched_scale_forward(x: Tensor, W: Tensor, scale: Tensor) -> Any:
    z = x @ W.mT
    return z * scale, (x, W, scale, z)


def batched_scale_backward(dy: Tensor, cache: Any) -> Any:
    x, W, scale, z = cache
    dz = dy * scale
    if len(x) == 1:
        return dz @ W, dz.mT * x, (dz * z)[0]
    return dz @ W, dz.mT @ x, (dy * z).sum(0)


pair(
    "scaled linear map: path of one row",
    "the path for a batch of 1 multiplies the gradient of the scale by the scale; any other batch is right",
    batched_scale_forward,
    batched_scale_backward,
    [randn(10, 4, 5), randn(11, 3, 5), 0.2 + rand(12, 3)],
    true=(r"(?i)batch of|batch.*\b1\b|one example|factor|rows",),
)
