"""What the tests of the gradient check share."""

from functools import wraps

import torch

from gallery import ENTRIES

MISTAKES = {entry.name: entry for entry in ENTRIES}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_failure(report):
    assert not report.passed
    return report.failures[0]


def function_of(forward, backward):
    """A hand-written pair as an `autograd.Function`, whose arguments are called as forward's."""

    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            output, ctx.cache = forward(*arguments)
            return output

        @staticmethod
        def backward(ctx, d_output):
            return backward(d_output, ctx.cache)

    return wraps(forward)(lambda *arguments: Pair.apply(*arguments))
