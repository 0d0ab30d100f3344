"""One wrong gradient, what is known beside it, and when a hypothesis explains it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, wraps
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from gradient_check.report import Diagnosis
from gradient_check.terms import Graph, Term

ACCIDENT = 1e-6  # how improbable a fit by chance must be
PASSES = 300  # backward passes that one pattern may take
VISITS = 40_000  # nodes that they may visit
WORK = 30_000_000  # elements that they may move
KNOWN = -1  # a factor that is a known number is worth an element, or a bias of one could never be told


@dataclass(frozen=True)
class Evidence:
    """What is known beside the two gradients; every field may be empty.

    `arguments` are forward's, by name, as fed; `outputs` what it returned and `cotangents` the gradients fed for them.
    `forward` is one that autograd can go through, called as forward(*arguments.values()), or None. `candidates` are
    terms that the caller suspects. Two tensors nearer than `noise`, relative to the norm, are the same.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[Tensor] = ()
    cotangents: Sequence[Tensor] = ()
    forward: Callable[..., Any] | None = None
    candidates: Mapping[str, Tensor] = field(default_factory=dict)
    noise: float = 1e-9


@dataclass
class Case:
    """One wrong gradient: `given` is what backward returned, `wanted` the truth, both float64 on the CPU."""

    name: str
    given: Tensor
    wanted: Tensor
    actual: Mapping[str, Tensor | None]
    expected: Mapping[str, Tensor]
    evidence: Evidence

    @cached_property
    def argument(self) -> str:
        """The argument's name, or nothing where the gradient is not one of an argument's."""
        argument = self.name[1:]
        return argument if self.name.startswith("d") and argument in self.evidence.arguments else ""

    @cached_property
    def error(self) -> Tensor:
        return self.given - self.wanted

    @cached_property
    def wrong(self) -> Tensor:
        """Which elements are wrong."""
        rms = self.wanted.norm() / max(1, int(self.wanted.count_nonzero())) ** 0.5
        return ~(self.error.abs() <= self.evidence.noise * torch.maximum(self.wanted.abs(), rms))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The floating-point arguments and outputs by name."""
        found = {k: v for k, v in self.evidence.arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
        for i, output in enumerate(self.evidence.outputs):
            found[numbered("the output", i, len(self.evidence.outputs))] = output
        return {key: plain(value) for key, value in found.items()}

    @cached_property
    def graph(self) -> Graph | None:
        """Autograd's graph, if the gradient that it gives is the right one."""
        forward, arguments = self.evidence.forward, self.evidence.arguments
        if forward is None or not self.argument or not self.evidence.cotangents:
            return None
        for double, spelled in ((True, True), (True, False), (False, False)):
            with suppress(Exception):
                graph = Graph(
                    forward, arguments, self.evidence.cotangents, self.argument, double=double, spelled=spelled
                )
                if distance(graph.value, self.wanted) <= self.evidence.noise * self.wanted.norm():
                    return graph
        return None

    @cached_property
    def terms(self) -> list[Term]:
        """The terms of the gradient, as autograd's graph shows them."""
        return [] if self.graph is None else self.graph.terms(self.passes)

    @property
    def passes(self) -> int:
        """How many backward passes a pattern may take."""
        graph = self.graph
        return 0 if graph is None else min(PASSES, VISITS // len(graph.nodes), WORK // graph.work)

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """The other arguments that are made of zeros and one other value."""
        found = {k: v for k, v in self.evidence.arguments.items() if isinstance(v, Tensor) and k != self.argument}
        return {key: value for key, value in found.items() if is_mask(value)}

    def arguments_at(self, size: int) -> Iterator[tuple[str, Tensor]]:
        """The other arguments of so many elements, flat."""
        for key, value in self.evidence.arguments.items():
            if isinstance(value, Tensor) and key != self.argument and value.numel() == size:
                yield key, plain(value).flatten()

    def again(self, **changed: Any) -> Tensor | None:
        """The gradient that autograd gives when some arguments are others."""
        forward = self.evidence.forward
        if self.graph is None or forward is None:
            return None
        arguments = {**self.evidence.arguments, **changed}
        return Graph(forward, arguments, self.graph.cotangents, self.argument, spelled=False).value

    def is_(self, hypothesis: Tensor | None, free: int = 0, scale: float | None = None) -> bool:
        """Whether the hypothesis, with `free` numbers fitted, is what backward returned."""
        return hypothesis is not None and same(self.given, hypothesis, self.wanted, self.evidence.noise, free, scale)


def same(
    given: Tensor, hypothesis: Tensor, wanted: Tensor, noise: float, free: int = 0, scale: float | None = None
) -> bool:
    """Whether `hypothesis` is `given`, in a way that explains why that is not `wanted`, and not by chance."""
    if hypothesis.shape != given.shape:
        return False
    error = distance(given, wanted) if given.shape == wanted.shape else given.norm().item()
    size = max(given.norm().item(), wanted.norm().item()) if scale is None else scale
    limit = min(noise * size, 0.05 * error)
    remainder = distance(given, hypothesis)
    if not (remainder <= limit and error > 0):
        return False
    elements = int(((given != 0) | (hypothesis != 0)).sum())
    return limit == 0 or (limit / error) ** (elements - free) <= ACCIDENT


Pattern = Callable[[Case], Diagnosis | None]


def with_graph(pattern: Callable[[Case, Graph], Diagnosis | None]) -> Pattern:
    """A pattern that autograd's graph has to be asked for: where there is none, it is not known."""

    @wraps(pattern)
    def asked(case: Case) -> Diagnosis | None:
        return None if case.graph is None else pattern(case, case.graph)

    return asked


def subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    """The non-empty sets of dimensions."""
    for n in range(1, ndim + 1):
        yield from combinations(range(ndim), n)


def plain(tensor: Tensor) -> Tensor:
    """On the CPU in float64, safe to compute with under any grad mode."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).norm().item()


def is_mask(tensor: Tensor) -> bool:
    """Whether there are zeros and one other value in it, and nothing else."""
    if not (tensor.is_floating_point() or tensor.dtype == torch.bool) or tensor.numel() < 3:
        return False
    other = tensor[tensor != 0]
    return 0 < other.numel() < tensor.numel() and bool((other == other[0]).all())


def numbered(what: str, i: int, n: int) -> str:
    return what if n == 1 else f"{what} {i}"


def dims_words(dims: Sequence[int]) -> str:
    return ("dimension " if len(dims) == 1 else "dimensions ") + "·".join(map(str, dims))


def shape_words(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
