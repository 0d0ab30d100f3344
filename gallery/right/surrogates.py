"""Staircases, whose derivative is 0 almost everywhere, and gradients that are meant in its place."""

import torch


def stairs(x):
    return x.floor() + x / 4


def straight_through(x):
    """Stairs as far as values go; for autograd the identity is in the place of floor."""
    return x + x / 4 + (x.floor() - x).detach()


class Rounded(torch.autograd.Function):
    """Meant is the gradient of `clipped`, times `factor`."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x.round()

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return ctx.factor * dy * (x.abs() <= 1.5), None


def clipped(x, factor):
    return x.clamp(-1.5, 1.5)
