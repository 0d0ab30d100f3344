"""Modules."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from benchmarks.unseen.right.functions import Linear, TanhByOutput
from benchmarks.unseen.subject import add, randn
from gradient_check import check_function


def parameter(seed: int, *shape: int) -> nn.Parameter:
    return nn.Parameter(randn(seed, *shape))


class Frozen(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(11, 3, 4), requires_grad=False)
        self.bias = parameter(12, 3)
        self.register_buffer("scale", 1 + randn(13, 4).square())

    def forward(self, x: Tensor) -> Tensor:
        return Linear.apply(x * self.scale, self.weight, self.bias)


add(
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


add(
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


add(
    "two layers under a checkpoint",
    "the forward is run again within the backward, by hooks on what is saved",
    lambda given: check_function(Checkpointed(False), [randn(19, 3, 3)]),
)

add(
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


add(
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


add(
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


add(
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


add(
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


add(
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


add(
    "layer recomputed by autograd in its backward",
    "the backward builds a graph of its own and asks autograd for both gradients, as a checkpoint written by hand",
    lambda given: check_function(Recomputed.apply, [randn(33, 3, 4), randn(34, 4, 2)]),
)
