"""Functions with a gradient that is meant in the place of the derivative: staircases, and an LSTM that is truncated."""

import torch

from gallery.through_time import LSTM, in_segments, nothing
from manual_backprop.layers import lstm


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


TRUNCATED = (*in_segments(lstm, 2, nothing), LSTM.arguments(0))  # forward, backward, example


def truncated_lstm(x, h, c, *weights):
    """An LSTM for autograd whose gradient does not pass from the third step to the second."""
    y, h, c, _ = lstm.forward(x[:, :2], h, c, *weights)
    y_2, h, c, _ = lstm.forward(x[:, 2:], h.detach(), c.detach(), *weights)
    return torch.cat([y, y_2], 1), h, c
