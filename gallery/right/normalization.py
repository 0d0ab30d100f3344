"""Normalization. At least three values share their statistics: two would become ±1, and their gradient 0."""

import torch
from torch.nn import functional as F

from gallery.right.base import Draw, RightLayer, family


@family
def layer_norm(draw: Draw) -> RightLayer:
    def forward(x, gamma, beta, eps):
        mu = x.mean(-1, keepdim=True)
        rstd = torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
        xhat = (x - mu) * rstd
        return gamma * xhat + beta, (xhat, rstd, gamma)

    def backward(dy, cache):
        xhat, rstd, gamma = cache
        dxhat = dy * gamma
        centered = dxhat - dxhat.mean(-1, keepdim=True) - xhat * (dxhat * xhat).mean(-1, keepdim=True)
        rest = tuple(range(dy.ndim - 1))
        return rstd * centered, (dy * xhat).sum(rest), dy.sum(rest)

    n = draw.integer(3, 7)
    x = draw.normal(*draw.shape(draw.integer(1, 2)), n)
    return RightLayer("layer norm", forward, backward, (x, draw.normal(n), draw.normal(n), 1e-5))


@family
def batch_norm(draw: Draw) -> RightLayer:
    """Over the examples and all places of a channel; the new running statistics are handed out beside the cache."""
    places = draw.choice([(), (draw.integer(1, 4), draw.integer(1, 4))])
    dims = (0, 2, 3)[: 1 + len(places)]
    wide = (1, -1) + (1,) * len(places)

    def forward(x, gamma, beta, running_mean):
        mu = x.mean(dims)
        var = ((x - mu.reshape(wide)) ** 2).mean(dims)
        rstd = 1 / torch.sqrt(var + 1e-5)
        xhat = (x - mu.reshape(wide)) * rstd.reshape(wide)
        y = xhat * gamma.reshape(wide) + beta.reshape(wide)
        return y, (xhat, rstd, gamma), 0.9 * running_mean + 0.1 * mu

    def backward(dy, cache):
        xhat, rstd, gamma = cache
        dgamma, dbeta = (dy * xhat).sum(dims), dy.sum(dims)
        count = dy.numel() // len(gamma)
        dx = dy - (dbeta.reshape(wide) + xhat * dgamma.reshape(wide)) / max(count, 1)
        return (gamma * rstd).reshape(wide) * dx, dgamma, dbeta

    C = draw.integer(1, 4)
    x = draw.normal(draw.integer(3, 6), C, *places)
    example = (x, draw.normal(C), draw.normal(C), draw.normal(C))
    return RightLayer("batch norm", forward, backward, example, ("running_mean",))


@family
def batch_norm_evaluation(draw: Draw) -> RightLayer:
    def forward(x, gamma, beta, mean, var):
        rstd = torch.rsqrt(var + 1e-5)
        xhat = (x - mean) * rstd
        return gamma * xhat + beta, (xhat, rstd, gamma)

    def backward(dy, cache):
        xhat, rstd, gamma = cache
        return dy * gamma * rstd, (dy * xhat).sum(0), dy.sum(0)

    B, n = draw.shape(2)
    example = (draw.normal(B, n), draw.normal(n), draw.normal(n), draw.normal(n), draw.positive(n))
    return RightLayer("batch norm, evaluation", forward, backward, example, ("mean", "var"))


@family
def rms_norm(draw: Draw) -> RightLayer:
    def forward(x, gamma):
        r = torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        return x * r * gamma, (x, r, gamma)

    def backward(dy, cache):
        x, r, gamma = cache
        dxhat = dy * gamma
        dx = r * (dxhat - x * r * r * (dxhat * x).mean(-1, keepdim=True))
        return dx, (dy * x * r).sum(tuple(range(dy.ndim - 1)))

    n = draw.integer(3, 7)
    return RightLayer("RMS norm", forward, backward, (draw.normal(*draw.shape(2), n), draw.normal(n)))


@family
def group_norm(draw: Draw) -> RightLayer:
    """With one channel per group it is instance norm."""
    groups = draw.integer(1, 3)
    C = groups * draw.integer(1, 3)

    def forward(x, gamma, beta):
        y = F.group_norm(x, groups, gamma, beta, 1e-5)
        grouped = x.reshape(len(x), groups, x[0].numel() // groups) if len(x) else x.reshape(0, groups, 1)
        mu, var = grouped.mean(-1, keepdim=True), grouped.var(-1, unbiased=False, keepdim=True)
        rstd = torch.rsqrt(var + 1e-5)
        return y, ((grouped - mu) * rstd, rstd, gamma, x.shape)

    def backward(dy, cache):
        xhat, rstd, gamma, shape = cache
        dgamma = (dy * xhat.reshape(shape)).sum((0, 2, 3))
        dxhat = (dy * gamma[:, None, None]).reshape(xhat.shape)
        dx = rstd * (dxhat - dxhat.mean(-1, keepdim=True) - xhat * (dxhat * xhat).mean(-1, keepdim=True))
        return dx.reshape(shape), dgamma, dy.sum((0, 2, 3))

    x = draw.normal(draw.integer(1, 3), C, draw.integer(2, 3), draw.integer(2, 3))
    return RightLayer("group norm", forward, backward, (x, draw.normal(C), draw.normal(C)))


@family
def unit_length(draw: Draw) -> RightLayer:
    """x/‖x‖, the gradient without its part along x."""

    def forward(x):
        r = torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-12)
        return x * r, (x * r, r)

    def backward(du, cache):
        u, r = cache
        return r * (du - u * (du * u).sum(-1, keepdim=True))

    B, n = draw.integer(1, 5), draw.integer(3, 6)
    return RightLayer("unit length", forward, backward, (draw.normal(B, n),))


@family
def cosine_similarity(draw: Draw) -> RightLayer:
    def forward(x, y):
        a, b = x.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
        u, v = x / a, y / b
        c = (u * v).sum(-1)
        return c, (u, v, a, b, c)

    def backward(dc, cache):
        u, v, a, b, c = cache
        dc, c = dc[..., None], c[..., None]
        return dc * (v - c * u) / a, dc * (u - c * v) / b

    B, n = draw.integer(1, 5), draw.integer(3, 6)
    return RightLayer("cosine similarity", forward, backward, (draw.normal(B, n), draw.normal(B, n)))
