"""Affine and bilinear maps."""

import torch
from torch.nn import functional as F

from gallery.right.base import Draw, RightLayer, family


@family
def linear(draw: Draw) -> RightLayer:
    def forward(x, W, b):
        return x @ W.T + b, (x, W)

    def backward(dz, cache):
        x, W = cache
        return dz @ W, dz.T @ x, dz.sum(0)

    B, n, m = draw.shape(3, high=7)
    return RightLayer("linear", forward, backward, (draw.normal(B, n), draw.normal(m, n), draw.normal(m)))


@family
def linear_over_time(draw: Draw) -> RightLayer:
    def forward(x, W):
        return F.linear(x, W), (x, W)

    def backward(dz, cache):
        x, W = cache
        return dz @ W, dz.reshape(-1, W.shape[0]).T @ x.reshape(-1, W.shape[1])

    B, T, n, m = draw.shape(4)
    return RightLayer("linear over time", forward, backward, (draw.normal(B, T, n), draw.normal(m, n)))


@family
def matrix_product(draw: Draw) -> RightLayer:
    def forward(A, B):
        return A @ B, (A, B)

    def backward(dC, cache):
        A, B = cache
        return dC @ B.T, A.T @ dC

    n, k, m = draw.shape(3)
    return RightLayer("matrix product", forward, backward, (draw.normal(n, k), draw.normal(k, m)))


@family
def batched_matrix_product(draw: Draw) -> RightLayer:
    def forward(A, B):
        return torch.bmm(A, B), (A, B)

    def backward(dC, cache):
        A, B = cache
        return dC @ B.mT, A.mT @ dC

    b, n, k, m = draw.shape(4)
    return RightLayer("batched matrix product", forward, backward, (draw.normal(b, n, k), draw.normal(b, k, m)))


@family
def bilinear(draw: Draw) -> RightLayer:
    """z_bo = Σ x_bi W_oij y_bj."""

    def forward(x, W, y):
        return torch.einsum("bi,oij,bj->bo", x, W, y), (x, W, y)

    def backward(dz, cache):
        x, W, y = cache
        dx = torch.einsum("bo,oij,bj->bi", dz, W, y)
        dW = torch.einsum("bo,bi,bj->oij", dz, x, y)
        return dx, dW, torch.einsum("bo,bi,oij->bj", dz, x, W)

    B, i, j, o = draw.shape(4, high=4)
    return RightLayer("bilinear", forward, backward, (draw.normal(B, i), draw.normal(o, i, j), draw.normal(B, j)))


@family
def outer(draw: Draw) -> RightLayer:
    def forward(u, v):
        return torch.outer(u, v), (u, v)

    def backward(dz, cache):
        u, v = cache
        return dz @ v, u @ dz

    return RightLayer("outer", forward, backward, (draw.normal(draw.integer(1, 6)), draw.normal(draw.integer(1, 6))))


@family
def kronecker(draw: Draw) -> RightLayer:
    def forward(A, B):
        return torch.kron(A, B), (A, B)

    def backward(dC, cache):
        A, B = cache
        blocks = dC.reshape(A.shape[0], B.shape[0], A.shape[1], B.shape[1])
        return torch.einsum("ikjl,kl->ij", blocks, B), torch.einsum("ikjl,ij->kl", blocks, A)

    return RightLayer("kronecker", forward, backward, (draw.normal(*draw.shape(2)), draw.normal(*draw.shape(2))))


@family
def quadratic_form(draw: Draw) -> RightLayer:
    def forward(x, A):
        return ((x @ A) * x).sum(-1), (x, A)

    def backward(dq, cache):
        x, A = cache
        return dq[:, None] * (x @ (A + A.T)), (dq[:, None] * x).T @ x

    B, n = draw.shape(2)
    return RightLayer("quadratic form", forward, backward, (draw.normal(B, n), draw.normal(n, n)))


@family
def solve(draw: Draw) -> RightLayer:
    """X = M⁻¹ B with M = A + 2I, far from singular even where A is tied: dB = M⁻ᵀ dX, dA = −dB Xᵀ."""

    def forward(A, B):
        M = A + 2 * torch.eye(len(A), dtype=A.dtype)
        X = torch.linalg.solve(M, B)
        return X, (M, X)

    def backward(dX, cache):
        M, X = cache
        dB = torch.linalg.solve(M.T, dX)
        return -dB @ X.T, dB

    n, m = draw.shape(2, high=4)
    return RightLayer("solve", forward, backward, (draw.normal(n, n) / 4, draw.normal(n, m)))


@family
def squared_distances(draw: Draw) -> RightLayer:
    def forward(x, y):
        return ((x[:, None] - y[None]) ** 2).sum(-1), (x, y)

    def backward(dD, cache):
        x, y = cache
        pairs = 2 * dD[..., None] * (x[:, None] - y[None])
        return pairs.sum(1), -pairs.sum(0)

    n, m, d = draw.shape(3)
    return RightLayer("squared distances", forward, backward, (draw.normal(n, d), draw.normal(m, d)))


@family
def tied_weights(draw: Draw) -> RightLayer:
    """An autoencoder whose decoder is its encoder transposed: tanh(x Wᵀ) W."""

    def forward(x, W):
        h = torch.tanh(x @ W.T)
        return h @ W, (x, W, h)

    def backward(dy, cache):
        x, W, h = cache
        dz = (dy @ W.T) * (1 - h * h)
        return dz @ W, dz.T @ x + h.T @ dy

    B, n, m = draw.shape(3)
    return RightLayer("tied weights", forward, backward, (draw.normal(B, n), draw.normal(m, n)))
