"""Functions of autograd: views, writing in place, outputs apart."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from benchmarks.unseen.subject import add, randn
from gradient_check import check_function


class Turn(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        return d.transpose(0, 1)


add(
    "transposition, a view both ways",
    "the output shares the memory of the input, the gradient that of the cotangent, and neither is contiguous",
    lambda given: check_function(Turn.apply, [randn(7, 3, 5, 2)]),
)


class LeakyInPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.copy_(torch.where(x > 0, x, 0.1 * x))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.where(y > 0, d, 0.1 * d)


add(
    "leaky relu that writes to a copy",
    "the function overwrites its input and says so, and is given a copy; the slope is read off the output's sign",
    lambda given: check_function(lambda x: LeakyInPlace.apply(x.clone()), [randn(8, 4, 3)]),
)


class Apart(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, b)
        ctx.set_materialize_grads(False)
        return a * a, b.sin()

    @staticmethod
    def backward(ctx: Any, d_square: Tensor | None, d_sine: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        return None if d_square is None else 2 * a * d_square, None if d_sine is None else d_sine * b.cos()


add(
    "two outputs that share no input",
    "an output that is not used gives None, not zeros, and each argument matters to one output alone",
    lambda given: check_function(Apart.apply, [randn(9, 3, 2), randn(10, 5)]),
)
