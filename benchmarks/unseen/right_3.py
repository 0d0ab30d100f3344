"""Right autograd functions and modules that a careless check would accuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from benchmarks.unseen.right import randn, rows
from benchmarks.unseen.subject import Subject
from gradient_check import Report, check_function

SUBJECTS: list[Subject] = []


def right(name: str, what: str, ask: Callable[[bool], Report], reference: bool = False) -> None:
    SUBJECTS.append(Subject(name, what, ask, wrong=False, reference=reference))


def parameter(seed: int, *shape: int) -> nn.Parameter:
    return nn.Parameter(randn(seed, *shape))


# what a Function saves, and for whom it computes


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


right(
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


right(
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


right(
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


right(
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


right(
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


right(
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


right(
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


right(
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


right(
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


right(
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


right(
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


right(
    "exponential growth near zero",
    "(eˣ − 1) / x cancels twice near zero and is 0/0 at zero, both in the example; forward mode is written too",
    lambda given: check_function(
        Growth.apply,
        [rows([0, 1e-6, -1e-6, 0.5], [-0.4999, 1e-3, 3, -2])],
        reference=growth if given else None,
    ),
    reference=True,
)


# views, writing in place, outputs apart


class Turn(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        return d.transpose(0, 1)


right(
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


right(
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


right(
    "two outputs that share no input",
    "an output that is not used gives None, not zeros, and each argument matters to one output alone",
    lambda given: check_function(Apart.apply, [randn(9, 3, 2), randn(10, 5)]),
)


# modules


class Frozen(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(11, 3, 4), requires_grad=False)
        self.bias = parameter(12, 3)
        self.register_buffer("scale", 1 + randn(13, 4).square())

    def forward(self, x: Tensor) -> Tensor:
        return Linear.apply(x * self.scale, self.weight, self.bias)


right(
    "module with a frozen weight and a buffer",
    "the weight does not require a gradient and gets none, the buffer neither, the bias does",
    lambda given: check_function(Frozen(), [randn(14, 5, 4)]),
)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Module()
        self.decode = nn.Module()
        self.code.weight = self.decode.weight = parameter(15, 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        return Linear.apply(TanhByOutput.apply(Linear.apply(x, self.code.weight)), self.decode.weight.T)


right(
    "autoencoder with tied weights",
    "one parameter has two names and its gradient is the sum of two, so that a change under one name changes both",
    lambda given: check_function(Tied(), [randn(16, 3, 5)]),
)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = parameter(17, 4, 3)
        self.second = parameter(18, 2, 4)

    def layers(self, x: Tensor) -> Tensor:
        return Linear.apply(TanhByOutput.apply(Linear.apply(x, self.first)), self.second)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x, use_reentrant=self.reentrant)


right(
    "two layers under a checkpoint",
    "the forward is run again within the backward, by hooks on what is saved",
    lambda given: check_function(Checkpointed(False), [randn(19, 3, 3)]),
)

right(
    "two layers under a reentrant checkpoint",
    "works with .backward() alone: autograd.grad, and .backward(inputs=…), raise by design",
    lambda given: check_function(Checkpointed(True), [randn(20, 3, 3)]),
)


class Cubic(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**4 / 4

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return d * x**3


class Forces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            place = x if x.requires_grad else x.clone().requires_grad_()
            energy = (Cubic.apply(place) + self.stiffness * place**2 / 2).sum(1)
            (slope,) = torch.autograd.grad(energy.sum(), place, create_graph=True)
        return energy, -slope


right(
    "energy and forces",
    "the forward calls autograd, so that the forces' gradient is a second derivative, of which the sign is minus",
    lambda given: check_function(
        Forces(),
        [randn(21, 4, 3)],
        reference=(lambda x, stiffness: ((x**2 * (x**2 / 4 + stiffness / 2)).sum(1), -(x**3) - stiffness * x))
        if given
        else None,
    ),
    reference=True,
)


class Coupling(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, f: nn.Module, g: nn.Module) -> tuple[Tensor, Tensor]:
        ctx.f, ctx.g = f, g
        with torch.no_grad():
            y = a + f(b)
            z = b + g(y)
        ctx.save_for_backward(y, z)
        return y, z

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dz: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y, z = ctx.saved_tensors
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            g = ctx.g(y)
            g.backward(dz)
            b = (z - g).detach().requires_grad_()
            dy = dy + y.grad
            ctx.f(b).backward(dy)
        return dy, dz + b.grad, None, None


class Layer(nn.Module):
    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        self.weight = parameter(seed, width, width)

    def forward(self, x: Tensor) -> Tensor:
        return TanhByOutput.apply(Linear.apply(x, self.weight))


class Reversible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Layer(22, 3), Layer(23, 3)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return Coupling.apply(a, b, self.f, self.g)


right(
    "reversible block",
    "saves its outputs, recomputes its inputs and calls .backward() inside, which adds to the parameters' .grad",
    lambda given: check_function(Reversible(), [randn(24, 2, 3), randn(25, 2, 3)]),
)


class ByModule(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, module: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return x @ weight

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        return d @ ctx.module.weight.T, x.mT @ d, None


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = parameter(26, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return ByModule.apply(x, self.weight, self)


right(
    "module whose backward reads self.weight",
    "the weight is not saved but read in the backward, so that whoever swaps or moves it between the passes is misled",
    lambda given: check_function(Reader(), [randn(27, 5, 4)]),
)


class Standardize(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        centred = x - x.mean(0)
        inverse = (centred.square().mean(0) + epsilon).rsqrt()
        ctx.save_for_backward(centred * inverse, inverse)
        return centred * inverse

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        normal, inverse = ctx.saved_tensors
        return (d - d.mean(0) - normal * (d * normal).mean(0)) * inverse, None


class BatchNorm(nn.Module):
    average: Tensor
    calls: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = parameter(28, width)
        self.shift = parameter(29, width)
        self.register_buffer("average", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.average) * self.gain + self.shift
        with torch.no_grad():
            self.calls += 1
            self.average.lerp_(x.mean(0), 0.1)
        return Standardize.apply(x, 1e-5) * self.gain + self.shift


right(
    "batch norm in training mode",
    "every call changes two buffers, one of them an integer, without changing the output; of a batch of one dx is zero",
    lambda given: check_function(
        BatchNorm(3),
        [randn(30, 6, 3)],
        reference=(lambda x, gain, shift: F.batch_norm(x, None, None, gain, shift, training=True)) if given else None,
    ),
    reference=True,
)


class Sentences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, padding_idx=0, dtype=torch.float64)
        self.table.weight = parameter(31, 6, 3)
        self.top = parameter(32, 2, 3)

    def forward(self, ids: Tensor) -> Tensor:
        real = ids.ne(0)[..., None]
        mean = (self.table(ids) * real).sum(1) / real.sum(1).clamp(min=1)
        return Linear.apply(mean, self.top)


right(
    "mean of the words of padded sentences",
    "only parameters are differentiable; the padding row is not zero and not used; one sentence is all padding",
    lambda given: check_function(Sentences(), [torch.tensor([[2, 5, 2, 0], [0, 0, 0, 0], [5, 1, 0, 0]])]),
)


class Recomputed(Function):
    @staticmethod
    def run(x: Tensor, weight: Tensor) -> Tensor:
        return torch.sigmoid(x @ weight) * x.square().sum(1, keepdim=True)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return Recomputed.run(x, weight)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            y = Recomputed.run(*leaves)
        return torch.autograd.grad(y, leaves, d)


right(
    "layer recomputed by autograd in its backward",
    "the backward builds a graph of its own and asks autograd for both gradients, as a checkpoint written by hand",
    lambda given: check_function(Recomputed.apply, [randn(33, 3, 4), randn(34, 4, 2)]),
)
