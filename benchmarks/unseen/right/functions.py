"""Functions of autograd: what they save, and for whom they compute."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from benchmarks.unseen.subject import add, randn, rows
from gradient_check import check_function


class TanhByOutput(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return d * (1 - y) * (1 + y)


add(
    "tanh that saves its output, saturated",
    "only the output is saved; at ±40 the gradient is exactly zero, at ±9 it is 6e-8 by cancellation",
    lambda given: check_function(
        TanhByOutput.apply,
        [rows([40, -40, 0.3], [9, -9, 0], [1, -2, 300])],
        reference=(lambda x: 2 * torch.sigmoid(2 * x) - 1) if given else None,
    ),
    reference=True,
)


class Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = x @ weight.T
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = d @ weight if ctx.needs_input_grad[0] else None
        d_weight = d.T @ x if ctx.needs_input_grad[1] else None
        d_bias = d.sum(0) if len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[2] else None
        return (dx, d_weight, d_bias)[: len(ctx.needs_input_grad)]


add(
    "linear layer that asks what is needed",
    "a gradient that nobody needs is None, and the number of gradients follows the number of arguments",
    lambda given: check_function(
        Linear.apply, [randn(1, 3, 5), randn(2, 2, 5), randn(3, 2)], reference=F.linear if given else None
    ),
    reference=True,
)


class RowMaximum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y, where = x.max(dim=1)
        ctx.save_for_backward(where)
        ctx.mark_non_differentiable(where)
        ctx.columns = x.shape[1]
        return y, where

    @staticmethod
    def backward(ctx: Any, d: Tensor, _: Tensor | None) -> Tensor:
        (where,) = ctx.saved_tensors
        return d[:, None] * F.one_hot(where, ctx.columns)


add(
    "maximum of a row and its place, with ties",
    "the second output is an integer and marked; of tied elements one gets all, and a small step changes which",
    lambda given: check_function(
        RowMaximum.apply,
        [rows([1, 2, 2, 0], [0.5, -1, 0.25, 3], [7, 7, 7, 7])],
        reference=(lambda x: tuple(x.max(dim=1))) if given else None,
    ),
    reference=True,
)


class Softmax(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        e = (x - x.amax(-1, keepdim=True)).exp()
        p = e / e.sum(-1, keepdim=True)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return p * (d - (d * p).sum(-1, keepdim=True))


add(
    "softmax, saturated and once differentiable",
    "scores of ±40, so that rows of the Jacobian are 1e-35; a second derivative raises by design",
    lambda given: check_function(
        Softmax.apply,
        [rows([40, -40, 0, -40], [-40, -40, -40, -40], [40, 40, -40, 39], [0.5, 1, -1, 0])],
        reference=(lambda x: torch.log_softmax(x, -1).exp()) if given else None,
    ),
    reference=True,
)


class StableSort(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, order = x.sort(dim=-1, stable=True)
        ctx.save_for_backward(order)
        return y

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (order,) = ctx.saved_tensors
        return d.gather(-1, order.argsort(-1))


add(
    "stable sort with ties",
    "each tied element has the gradient of its own place, and a difference moves it past the others",
    lambda given: check_function(
        StableSort.apply,
        [rows([2, 1, 2, 0, 1], [3, 3, 3, 3, 3], [0.5, -1, 4, 0, -3])],
        reference=(lambda x: x.gather(-1, x.detach().argsort(dim=-1, stable=True))) if given else None,
    ),
    reference=True,
)


class HardSwish(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        on = x > 0
        ctx.mark_non_differentiable(on)
        return x * (x + 3).clamp(0, 6) / 6, on

    @staticmethod
    def backward(ctx: Any, d: Tensor, _: Tensor | None) -> Tensor:
        (x,) = ctx.saved_tensors
        return d * torch.where(x <= -3, 0, torch.where(x < 3, (2 * x + 3) / 6, 1))


add(
    "hard-swish at its corners, and a comparison",
    "the example holds -3 and 3, where the slope jumps by a half; the second output is boolean",
    lambda given: check_function(
        HardSwish.apply,
        [rows([-3, 3, 0, 1.5, -1.5], [5, -5, 2.9, -3, 3])],
        reference=(lambda x: (F.hardswish(x), x > 0)) if given else None,
    ),
    reference=True,
)


class Angle(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(y, x)
        return torch.atan2(y, x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        y, x = ctx.saved_tensors
        square = x * x + y * y
        part = torch.where(square > 0, d / square, 0)
        return part * x, -part * y


add(
    "angle of points on the axes and near the origin",
    "exact zeros among y and x, and a point 1e-6 from the origin, where the gradient is 5e5 and steps must be tiny",
    lambda given: check_function(
        Angle.apply,
        [torch.tensor([0, 2, -3, 1e-6, 1.5], dtype=torch.float64), torch.tensor([1.5, 0, 0, 1e-6, -1]).double()],
        reference=torch.atan2 if given else None,
    ),
    reference=True,
)


class Between(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x >= low) & (x <= high))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return d * inside, None, None


add(
    "clamp at its bounds",
    "elements on both bounds have the gradient 1, where torch's is 0 or 1 by its version; the bounds are floats",
    lambda given: check_function(
        Between.apply,
        [rows([-1, 2, 0.5], [2, 2, -1], [5, -5, 0]), -1.0, 2.0],
        reference=torch.clamp if given else None,
    ),
    reference=True,
)


class LogDeterminant(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return torch.linalg.slogdet(a).logabsdet

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return d[..., None, None] * torch.linalg.inv(a).mT


add(
    "logarithm of a determinant",
    "some determinants are negative, and of a singular matrix the value is -inf and the inverse raises",
    lambda given: check_function(
        LogDeterminant.apply,
        [randn(4, 3, 4, 4) + 2 * torch.eye(4, dtype=torch.float64)],
        reference=(lambda a: torch.linalg.qr(a).R.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)) if given else None,
    ),
    reference=True,
)


class BagMean(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        bag = torch.searchsorted(offsets, torch.arange(len(ids), device=ids.device), right=True) - 1
        size = torch.bincount(bag, minlength=len(offsets)).clamp(min=1)
        total = torch.zeros(len(offsets), weight.shape[1], dtype=weight.dtype, device=weight.device)
        ctx.save_for_backward(ids, bag, size)
        ctx.rows = len(weight)
        return total.index_add(0, bag, weight[ids]) / size[:, None]

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        ids, bag, size = ctx.saved_tensors
        each = (d / size[:, None])[bag]
        return torch.zeros(ctx.rows, d.shape[1], dtype=d.dtype, device=d.device).index_add(0, ids, each), None, None


add(
    "mean of each bag of embeddings",
    "integer ids and offsets, ids repeated within a bag and across, the second bag empty, two rows never looked up",
    lambda given: check_function(
        BagMean.apply,
        [randn(5, 6, 3), torch.tensor([4, 1, 4, 4, 0, 1, 2]), torch.tensor([0, 3, 3, 6])],
        reference=(lambda weight, ids, offsets: F.embedding_bag(ids, weight, offsets, mode="mean")) if given else None,
    ),
    reference=True,
)


class Mean(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, keepdim: bool) -> Tensor:
        ctx.shape, ctx.dim, ctx.keepdim = x.shape, dim, keepdim
        return x.mean(dim, keepdim)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        d = d if ctx.keepdim else d.unsqueeze(ctx.dim)
        return (d / ctx.shape[ctx.dim]).expand(ctx.shape), None, None


add(
    "mean over an axis, its gradient expanded",
    "an integer and a boolean in the example; the gradient is an expanded tensor, whose elements share memory",
    lambda given: check_function(Mean.apply, [randn(6, 3, 5, 2), 1, False], reference=torch.mean if given else None),
    reference=True,
)


class Growth(Function):
    """(eˣ − 1) / x, with its derivative in both modes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return torch.where(x == 0, 1, x.expm1() / torch.where(x == 0, 1, x))

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        near = x.abs() < 0.5
        small, large = torch.where(near, x, 0), torch.where(near, 1, x)
        series, power = torch.zeros_like(x), torch.ones_like(x)
        for k in range(18):
            series = series + power / (k + 2)
            power = power * small / (k + 1)
        return torch.where(near, series, (large * large.exp() - large.expm1()) / large**2)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        return d * Growth.slope(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * Growth.slope(*ctx.saved_tensors)


def growth(x: Tensor) -> Tensor:
    """The same as an integral of e^{xt} over t from 0 to 1, by Gauss and Legendre on 16 pieces."""
    places, weights = (torch.from_numpy(v).to(x) for v in np.polynomial.legendre.leggauss(24))
    t = (torch.arange(16, device=x.device)[:, None] + (1 + places) / 2) / 16
    return ((x[..., None, None] * t).exp() @ weights).sum(-1) / 32


add(
    "exponential growth near zero",
    "(eˣ − 1) / x cancels twice near zero and is 0/0 at zero, both in the example; forward mode is written too",
    lambda given: check_function(
        Growth.apply,
        [rows([0, 1e-6, -1e-6, 0.5], [-0.4999, 1e-3, 3, -2])],
        reference=growth if given else None,
    ),
    reference=True,
)
