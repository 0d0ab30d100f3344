"""Blocks of several layers."""

import math
from itertools import pairwise

import torch

from gallery.right.base import Draw, RightLayer, family


@family
def gated_linear_unit(draw: Draw) -> RightLayer:
    """SwiGLU: swish(x Wᵀ) ⊙ (x Vᵀ)."""

    def forward(x, W, V):
        z, u = x @ W.T, x @ V.T
        s = torch.sigmoid(z)
        return z * s * u, (x, W, V, z, u, s)

    def backward(dy, cache):
        x, W, V, z, u, s = cache
        dz, du = dy * u * s * (1 + z * (1 - s)), dy * z * s
        return dz @ W + du @ V, dz.T @ x, du.T @ x

    B, n, m = draw.shape(3)
    return RightLayer("gated linear unit", forward, backward, (draw.normal(B, n), draw.normal(m, n), draw.normal(m, n)))


@family
def residual(draw: Draw) -> RightLayer:
    """x + V tanh(W x)."""

    def forward(x, W, V):
        a = torch.tanh(x @ W.T)
        return x + a @ V.T, (x, W, V, a)

    def backward(dy, cache):
        x, W, V, a = cache
        dz = (dy @ V) * (1 - a * a)
        return dy + dz @ W, dz.T @ x, dy.T @ a

    B, n, m = draw.shape(3)
    return RightLayer("residual", forward, backward, (draw.normal(B, n), draw.normal(m, n), draw.normal(n, m)))


@family
def perceptron(draw: Draw) -> RightLayer:
    """Three layers with relu, sigmoid and none."""

    def forward(x, W1, b1, W2, b2, W3, b3):
        z1 = x @ W1.T + b1
        a1 = torch.relu(z1)
        a2 = torch.sigmoid(a1 @ W2.T + b2)
        return a2 @ W3.T + b3, (x, z1, a1, a2, W1, W2, W3)

    def backward(dz3, cache):
        x, z1, a1, a2, W1, W2, W3 = cache
        dz2 = (dz3 @ W3) * a2 * (1 - a2)
        dz1 = (dz2 @ W2) * (z1 > 0)
        return dz1 @ W1, dz1.T @ x, dz1.sum(0), dz2.T @ a1, dz2.sum(0), dz3.T @ a2, dz3.sum(0)

    B, *sizes = draw.shape(5, low=2, high=6)
    parameters = [v for i, o in pairwise(sizes) for v in (draw.normal(o, i), draw.positive(o))]
    return RightLayer("perceptron", forward, backward, (draw.normal(B, sizes[0]), *parameters))


@family
def deep_perceptron(draw: Draw) -> RightLayer:
    """Any depth; the parameters are gathered by a star."""

    def forward(x, *weights):
        activations = [x]
        for W in weights:
            activations.append(torch.tanh(activations[-1] @ W.T))
        return activations[-1], (activations, weights)

    def backward(da, cache):
        activations, weights = cache
        gradients = []
        for W, a, before in zip(weights[::-1], activations[:0:-1], activations[-2::-1], strict=True):
            dz = da * (1 - a * a)
            gradients.append(dz.T @ before)
            da = dz @ W
        return da, *gradients[::-1]

    sizes = draw.shape(draw.integer(3, 7), low=2)
    weights = [draw.normal(o, i) / math.sqrt(i) for i, o in pairwise(sizes)]
    return RightLayer("deep perceptron", forward, backward, (draw.normal(draw.integer(1, 4), sizes[0]), *weights))


@family
def linear_and_layer_norm(draw: Draw) -> RightLayer:
    def forward(x, W, b):
        z = x @ W.T + b
        rstd = torch.rsqrt(z.var(-1, unbiased=False, keepdim=True) + 1e-5)
        zhat = (z - z.mean(-1, keepdim=True)) * rstd
        return zhat, (x, W, zhat, rstd)

    def backward(dy, cache):
        x, W, zhat, rstd = cache
        dz = rstd * (dy - dy.mean(-1, keepdim=True) - zhat * (dy * zhat).mean(-1, keepdim=True))
        return dz @ W, dz.T @ x, dz.sum(0)

    B, n, m = draw.integer(1, 4), draw.integer(1, 4), draw.integer(4, 7)
    return RightLayer(
        "linear and layer norm", forward, backward, (draw.normal(B, n), draw.normal(m, n), draw.normal(m))
    )
