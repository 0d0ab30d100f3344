"""Mistakes in an `autograd.Function`: gradients that are not asked for, sparse ones, and second derivatives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import gradient_check
from gallery.entry import ENTRIES, OWN, Example, normal
from gradient_check.report import Report

Function = type[torch.autograd.Function]


def function_of(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
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


@dataclass(frozen=True)
class NaiveFunction:
    """Autograd through the function and through its reference, all gradients at once, `allclose`."""

    text: str = "autograd through the function, all gradients at once, `allclose`"
    example: Example | None = None  # where the test has its own arguments
    read: Callable[[Tensor], Tensor] = Tensor.to_dense  # a gradient

    def accepts(
        self, function: Callable[..., Tensor], reference: Callable[..., Tensor], example: Sequence[Any]
    ) -> bool:
        found = []
        for each in (function, reference):
            leaves = [v.clone().requires_grad_(v.is_floating_point()) for v in example]
            output = each(*leaves)
            cotangent = normal(torch.Generator().manual_seed(987654321), *output.shape)
            wanted = [v for v in leaves if v.requires_grad]
            found.append([self.read(g) for g in torch.autograd.grad(output, wanted, cotangent)])
        return all(a.shape == e.shape and torch.allclose(a, e) for a, e in zip(*found, strict=True))


@dataclass(frozen=True)
class WrongFunction:
    """A mistake in the backward of an `autograd.Function`."""

    name: str
    what: str
    right: Function
    wrong: Function
    reference: Callable[..., Tensor]
    example: Example
    diagnosis: Sequence[str] = ()
    naive: NaiveFunction = NaiveFunction()
    where: str = OWN
    options: Mapping[str, Any] = field(default_factory=dict)
    only: str = ""  # the row, or the case, that alone finds it

    def arguments(self, seed: int) -> list[Any]:
        return list(self.example(torch.Generator().manual_seed(seed)))

    def ours(self, right: bool, seed: int = 0) -> Report:
        function = self.right if right else self.wrong
        return gradient_check.check_function(function.apply, self.arguments(seed), seed=seed, **self.options)

    def misses(self, right: bool, seed: int = 0) -> bool:
        example = (self.naive.example or self.example)(torch.Generator().manual_seed(seed))
        return self.naive.accepts((self.right if right else self.wrong).apply, self.reference, example)


@dataclass(frozen=True)
class Written:
    """A right function, its reference and an example; `wrong` adds an entry to the gallery."""

    right: Function
    reference: Callable[..., Tensor]
    example: Example
    said: Mapping[str, Any]

    def wrong(self, name: str, what: str, **said: Any) -> Callable[[Function], Function]:
        """Decorate a wrong function."""

        def add(function: Function) -> Function:
            entry = WrongFunction(name, what, self.right, function, self.reference, self.example, **self.said | said)
            ENTRIES.append(entry)
            return function

        return add


# a gradient that is another where not every input wants one


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(x, W)
        return x @ W.T + b

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        dx, dW, db = ctx.needs_input_grad
        return dz @ W if dx else None, dz.T @ x if dW else None, dz.sum(0) if db else None


def affine(g: Generator) -> Sequence[Tensor]:
    return normal(g, 7, 5), normal(g, 3, 5), normal(g, 3)


LINEAR = Written(Linear, F.linear, affine, {"only": "alone"})


@LINEAR.wrong("db only with dx", "the bias's gradient is made in the branch of the input's", diagnosis=["missing"])
class BiasWithInput(Linear):
    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx, db = dz @ W, dz.sum(0)
        return dx, dz.T @ x if ctx.needs_input_grad[1] else None, db


@LINEAR.wrong(
    "needs_input_grad of another input", "dW is asked for by the flag of x, its neighbour", diagnosis=["missing"]
)
class OtherFlag(Linear):
    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        return dz @ W if ctx.needs_input_grad[0] else None, dz.T @ x if ctx.needs_input_grad[0] else None, dz.sum(0)


@LINEAR.wrong("mean where x is frozen", "the branch for a frozen input averages dW over the examples")
class MeanWhereFrozen(Linear):
    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            return dz @ W, dz.T @ x, dz.sum(0)
        return None, dz.T @ x / len(x), dz.sum(0)


class HalfWhereFrozen(nn.Linear):
    """Half of dx is lost where W is frozen."""

    def forward(self, x):
        return super().forward(x if self.weight.requires_grad else (x + x.detach()) / 2)


# sparse gradients


class Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, W):
        ctx.ids, ctx.shape = ids, W.shape
        return W[ids]

    @staticmethod
    def backward(ctx, dy):
        return None, torch.sparse_coo_tensor(ctx.ids[None], dy, ctx.shape, check_invariants=False)


def rows(*ids: int) -> Example:
    return lambda g: (torch.tensor(ids), normal(g, 6, 6))


SPARSE = Written(Embedding, F.embedding, rows(0, 4, 2, 4), {"options": {"reference": F.embedding}})
VALUES = NaiveFunction(
    "autograd through the function, the values of the sparse gradient without their places, `allclose`",
    read=lambda g: g.to_dense().flatten().sort().values,
)
DISTINCT = NaiveFunction(f"{NaiveFunction.text}, every id once, the last one too", rows(0, 5, 2))


@SPARSE.wrong(
    "sparse: duplicates lost",
    "ids that occur twice keep the gradient of one place only",
    naive=DISTINCT,
    diagnosis=["repeated indices", "rows"],
)
class DuplicatesLost(Embedding):
    @staticmethod
    def backward(ctx, dy):
        ids, places = ctx.ids.unique(return_inverse=True)
        values = dy.new_zeros(len(ids), dy.shape[1])
        values[places] = dy
        return None, torch.sparse_coo_tensor(ids[None], values, ctx.shape, check_invariants=False)


@SPARSE.wrong(
    "sparse: indices transposed",
    "rows and columns of the sparse gradient are exchanged",
    naive=VALUES,
    diagnosis=["transposed"],
)
class IndicesTransposed(Embedding):
    @staticmethod
    def backward(ctx, dy):
        columns = torch.arange(dy.shape[1]).expand(dy.shape)
        places = torch.stack([columns, ctx.ids[:, None].expand(dy.shape)]).flatten(1)
        return None, torch.sparse_coo_tensor(places, dy.flatten(), ctx.shape, check_invariants=False)


@SPARSE.wrong(
    "sparse: as long as the largest id",
    "the sparse gradient has no row behind the last one that was read",
    naive=DISTINCT,
    diagnosis=["raised", "shape"],
)
class AsLongAsTheLargestId(Embedding):
    @staticmethod
    def backward(ctx, dy):
        return None, torch.sparse_coo_tensor(ctx.ids[None], dy, check_invariants=False)


# second derivatives


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 3 * x * x * dy


SECOND = {"only": "second derivative", "options": {"order": 2}, "diagnosis": ["second derivative"]}
CUBE = Written(Cube, lambda x: x**3, lambda g: (normal(g, 5, 3),), SECOND)


@CUBE.wrong("backward detached", "dx is detached from its graph, and its derivative is zero without a word")
class Detached(Cube):
    @staticmethod
    def backward(ctx, dy):
        return Cube.backward(ctx, dy).detach()


@CUBE.wrong("`.data` in backward", "backward reads `x.data`, and the derivative by x is zero without a word")
class ReadsData(Cube):
    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 3 * x.data**2 * dy


@CUBE.wrong("slope kept from forward", "forward keeps 3x², which autograd did not see being made")
class KeepsTheSlope(Cube):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x * x
        return x**3

    @staticmethod
    def backward(ctx, dy):
        return ctx.slope * dy


class Slope(torch.autograd.Function):
    """3x² dy, whose own backward has no factor 2."""

    @staticmethod
    def forward(ctx, x, dy):
        ctx.save_for_backward(x, dy)
        return 3 * x * x * dy

    @staticmethod
    def backward(ctx, d):
        x, dy = ctx.saved_tensors
        return 3 * x * dy * d, 3 * x * x * d


@CUBE.wrong("wrong backward of the backward", "the function that backward calls has a backward that forgets a 2")
class WrongAgain(Cube):
    @staticmethod
    def backward(ctx, dy):
        return Slope.apply(*ctx.saved_tensors, dy)


class Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return torch.tanh(x @ W.T)

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        dz = dy * (1 - torch.tanh(x @ W.T) ** 2)
        return dz @ W, dz.T @ x


PERCEPTRON = Written(
    Split, lambda x, W: torch.tanh(x @ W.T), lambda g: (normal(g, 4, 3) / 2, normal(g, 2, 3) / 2), SECOND
)


@PERCEPTRON.wrong("second derivative without one path", "dW is made without a graph, and dx with one")
class OnePath(Split):
    @staticmethod
    def backward(ctx, dy):
        dx, dW = Split.backward(ctx, dy)
        return dx, dW.detach()


# several outputs


class Powers(torch.autograd.Function):
    """x² and x³."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x**2, x**3

    @staticmethod
    def backward(ctx, dsquare, dcube):
        (x,) = ctx.saved_tensors
        of_square, of_cube = dsquare is not None, dcube is not None
        return (2 * x * dsquare if of_square else 0) + (3 * x * x * dcube if of_cube else 0)


class SecondForgotten(Powers):
    """The second cotangent counts only where there is a first."""

    @staticmethod
    def backward(ctx, dsquare, dcube):
        return None if dsquare is None else Powers.backward(ctx, dsquare, dcube)
