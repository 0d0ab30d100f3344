"""Reductions."""

import math

import torch

from gallery.right.base import Draw, RightLayer, family


@family
def total(draw: Draw) -> RightLayer:
    def forward(x):
        return x.sum(), x

    def backward(ds, x):
        return ds.expand_as(x)

    return RightLayer("sum of all", forward, backward, (draw.normal(*draw.shape(draw.integer(1, 3))),))


@family
def mean(draw: Draw) -> RightLayer:
    dims = draw.choice([(0,), (1,), (2,), (0, 2), (-1, -2)])

    def forward(x):
        return x.mean(dims, keepdim=True), x

    def backward(dm, x):
        return (dm / math.prod(x.shape[i] for i in dims)).expand(x.shape)

    return RightLayer("mean", forward, backward, (draw.normal(*draw.shape(3)),))


@family
def variance(draw: Draw) -> RightLayer:
    unbiased = draw.choice([True, False])

    def forward(x):
        return x.var(-1, unbiased=unbiased), x

    def backward(dv, x):
        n = x.shape[-1] - unbiased
        return 2 * dv[..., None] * (x - x.mean(-1, keepdim=True)) / n

    return RightLayer("variance", forward, backward, (draw.normal(draw.integer(1, 5), draw.integer(3, 6)),))


@family
def standard_deviation(draw: Draw) -> RightLayer:
    def forward(x):
        centered = x - x.mean(0)
        s = torch.sqrt((centered**2).mean(0) + 1e-6)
        return s, (centered, s)

    def backward(ds, cache):
        centered, s = cache
        return ds * centered / (s * max(len(centered), 1))

    return RightLayer("standard deviation", forward, backward, (draw.normal(draw.integer(3, 6), draw.integer(1, 5)),))


@family
def length(draw: Draw) -> RightLayer:
    """‖x‖ of every row; at zero, where it has no gradient, 0."""

    def forward(x):
        n = x.norm(dim=-1)
        return n, (x, n)

    def backward(dn, cache):
        x, n = cache
        return torch.where(n > 0, dn / n, 0)[..., None] * x

    return RightLayer("length", forward, backward, (draw.normal(*draw.shape(2)),))


@family
def largest(draw: Draw) -> RightLayer:
    def forward(x):
        return x.amax(-1), (x.argmax(-1, keepdim=True), x.shape)

    def backward(dy, cache):
        where, shape = cache
        return dy.new_zeros(shape).scatter(-1, where, dy[..., None])

    return RightLayer("largest", forward, backward, (draw.normal(*draw.shape(2)),))


@family
def product(draw: Draw) -> RightLayer:
    """Of each row; the gradient of an element is the product of the others, zeros or not."""

    def forward(x):
        return x.prod(-1), x

    def backward(dy, x):
        n = x.shape[-1]
        others = [x[..., [j for j in range(n) if j != i]].prod(-1) for i in range(n)]
        return dy[..., None] * torch.stack(others, -1)

    return RightLayer("product", forward, backward, (draw.normal(*draw.shape(2)),))


@family
def cumsum(draw: Draw) -> RightLayer:
    dim = draw.integer(0, 1)

    def forward(x):
        return x.cumsum(dim), None

    def backward(dy, cache):
        return dy.flip(dim).cumsum(dim).flip(dim)

    return RightLayer("cumsum", forward, backward, (draw.normal(*draw.shape(2)),))
