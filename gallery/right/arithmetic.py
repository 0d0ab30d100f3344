"""Arithmetic of two arguments, one of them broadcast."""

import torch
from torch import Tensor

from gallery.right.base import Draw, RightLayer, family


def summed_like(d: Tensor, x: Tensor) -> Tensor:
    """The gradient of `x` from that of `x` broadcast: the sum over all its copies."""
    while d.ndim > x.ndim:
        d = d.sum(0)
    for i, n in enumerate(x.shape):
        if n == 1:
            d = d.sum(i, keepdim=True)
    return d


def shapes_to_broadcast(draw: Draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    whole = draw.shape(draw.integer(1, 3))
    part = tuple(1 if draw.integer(0, 1) else n for n in whole)
    return whole, part[draw.integer(0, len(part) - 1) :]


@family
def add(draw: Draw) -> RightLayer:
    def forward(x, y):
        return x + y, (x, y)

    def backward(dz, cache):
        x, y = cache
        return summed_like(dz, x), summed_like(dz, y)

    whole, part = shapes_to_broadcast(draw)
    return RightLayer("add", forward, backward, (draw.normal(*whole), draw.normal(*part)))


@family
def multiply(draw: Draw) -> RightLayer:
    def forward(x, y):
        return x * y, (x, y)

    def backward(dz, cache):
        x, y = cache
        return summed_like(dz * y, x), summed_like(dz * x, y)

    whole, part = shapes_to_broadcast(draw)
    return RightLayer("multiply", forward, backward, (draw.normal(*whole), draw.normal(*part)))


@family
def divide(draw: Draw) -> RightLayer:
    def forward(x, y):
        return x / y, (x, y)

    def backward(dz, cache):
        x, y = cache
        return summed_like(dz / y, x), summed_like(-dz * x / (y * y), y)

    whole, part = shapes_to_broadcast(draw)
    return RightLayer("divide", forward, backward, (draw.normal(*whole), draw.uniform(*part, low=0.4, high=2)))


@family
def larger_of_two(draw: Draw) -> RightLayer:
    def forward(x, y):
        return torch.maximum(x, y), x > y

    def backward(dz, first):
        return dz * first, dz * ~first

    shape = draw.shape(2, low=2)
    x, difference = draw.normal(*shape), draw.off([0], *shape)
    difference[0, 0] = -0.25
    return RightLayer("larger of two", forward, backward, (x, x + difference))


@family
def choose(draw: Draw) -> RightLayer:
    def forward(mask, x, y):
        return torch.where(mask, x, y), mask

    def backward(dz, mask):
        return torch.where(mask, dz, 0), torch.where(mask, 0, dz)

    shape = draw.shape(2, low=2)
    return RightLayer("choose", forward, backward, (draw.keep(*shape), draw.normal(*shape), draw.normal(*shape)))


@family
def mix(draw: Draw) -> RightLayer:
    """x + t (y − x), with one t for all."""

    def forward(x, y, t):
        return x + t * (y - x), (x, y, t)

    def backward(dz, cache):
        x, y, t = cache
        return dz * (1 - t), dz * t, (dz * (y - x)).sum()

    shape = draw.shape(2)
    t = draw.uniform(low=0.2, high=0.8)
    return RightLayer("mix", forward, backward, (draw.normal(*shape), draw.normal(*shape), t))


@family
def prelu(draw: Draw) -> RightLayer:
    def forward(x, slope):
        return torch.where(x > 0, x, slope * x), (x, slope)

    def backward(da, cache):
        x, slope = cache
        return torch.where(x > 0, da, slope * da), torch.where(x > 0, 0, da * x).sum(0)

    B, C = draw.shape(2, low=2)
    x = draw.off([0], B, C)
    x[0, 0] = -0.25
    return RightLayer("prelu", forward, backward, (x, draw.uniform(C, low=0.1, high=0.6)))


@family
def dropout(draw: Draw) -> RightLayer:
    """The noise is an argument."""
    p = draw.choice([0.2, 0.5])

    def forward(x, noise):
        keep = (noise > p) / (1 - p)
        return x * keep.to(x.dtype), keep

    def backward(dy, keep):
        return dy * keep.to(dy.dtype)

    shape = draw.shape(2)
    noise = draw.uniform(*shape, low=0, high=1)
    noise[0, 0] = 0.9
    return RightLayer("dropout", forward, backward, (draw.normal(*shape), noise), ("noise",))


@family
def scale_by_a_number(draw: Draw) -> RightLayer:
    """With arguments that are no tensors."""

    def forward(x, scale, power, mask):
        return scale * x**power, (x, scale, power)

    def backward(dy, cache):
        x, scale, power = cache
        return dy * scale * power * x ** (power - 1)

    return RightLayer("scale by a number", forward, backward, (draw.normal(*draw.shape(2)), 0.7, 2, None))
