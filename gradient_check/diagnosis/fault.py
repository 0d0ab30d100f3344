"""One wrong gradient, what is known beside it, and when a hypothesis explains it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from gradient_check.diagnosis.terms import Graph, Term
from gradient_check.report import Diagnosis, quoted

ACCIDENT = 1e-6  # how improbable a fit by chance must be
PASSES = 300  # backward passes that one pattern may take
VISITS = 40_000  # nodes that they may visit
WORK = 30_000_000  # elements that they may move


@dataclass(frozen=True)
class Evidence:
    """What is known beside the two gradients; every field may be empty.

    `arguments` are forward's, by name, as fed; `outputs` what it returned and `cotangents` the gradients fed for them.
    `forward` is one that autograd can go through, called as forward(*arguments.values()), or None; `own` is that on
    trial, which has more steps than a reference. `candidates` are terms that the caller suspects. `complex` names the
    arguments and outputs (as in `named_outputs`) that are complex numbers as pairs (real, imaginary) along the last
    dimension. Two tensors nearer than `noise`, relative to the norm, are the same.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[Tensor] = ()
    cotangents: Sequence[Tensor] = ()
    forward: Callable[..., Any] | None = None
    own: Callable[..., Any] | None = None
    candidates: Mapping[str, Tensor] = field(default_factory=dict)
    complex: frozenset[str] = frozenset()
    noise: float = 1e-9

    @property
    def named_outputs(self) -> dict[str, Tensor]:
        return {numbered("the output", i, len(self.outputs)): output for i, output in enumerate(self.outputs)}


@dataclass
class Fault:
    """One wrong gradient: `given` is what backward returned, `wanted` the correct one, both float64 on the CPU.

    `wanted` and the others in `correct` are NaN where they are unknown. `troubles` are exceptions that were met.
    """

    name: str
    given: Tensor
    wanted: Tensor
    actual: Mapping[str, Tensor | None]
    correct: Mapping[str, Tensor]
    evidence: Evidence
    troubles: list[str] = field(default_factory=list)

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
        rms = norm(self.wanted) / max(1, int((self.wanted.nan_to_num() != 0).sum())) ** 0.5
        return self.error.abs() > self.evidence.noise * self.wanted.abs().clamp(min=rms)

    @cached_property
    def telling(self) -> Tensor:
        """Which elements are known and would show a mistake."""
        return ~self.wanted.isnan() & (self.wrong | (self.wanted != 0) | (self.given != 0))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The floating-point arguments and outputs by name."""
        found = {k: v for k, v in self.evidence.arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
        return {key: as_double(value) for key, value in {**found, **self.evidence.named_outputs}.items()}

    @cached_property
    def graph(self) -> Graph | None:
        """Autograd's graph, if the gradient that it gives is the correct one."""
        arguments, cotangents, troubles = self.evidence.arguments, self.evidence.cotangents, list[str]()
        forwards = [f for f in (self.evidence.own, self.evidence.forward) if f and self.argument and cotangents]
        for forward, how in product(forwards, ((True, True), (True, False), (False, False))):
            try:
                graph = Graph(forward, arguments, cotangents, self.argument, *how)
            except Exception as error:  # whatever a forward raises that was not made for autograd, or for float64
                troubles.append(quoted(error))
                continue
            if distance(graph.value, self.wanted) <= self.evidence.noise * norm(self.wanted):
                return graph
        self.troubles += troubles
        return None

    @cached_property
    def terms(self) -> list[Term]:
        """The terms of the gradient, as autograd's graph shows them."""
        return [] if self.graph is None else self.graph.terms(self.passes)

    @property
    def passes(self) -> int:
        """How many backward passes a pattern may take."""
        graph = self.graph
        return 0 if graph is None else min(PASSES, VISITS // (1 + len(graph.nodes)), WORK // graph.work)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The other arguments that are made of zeros and one other value."""
        return {k: v for k, v in self.evidence.arguments.items() if is_mask(v) and not is_trained(self, k)}

    @cached_property
    def paired(self) -> bool:
        """Whether the last dimension holds real and imaginary part: no dimension for a person."""
        return self.argument in self.evidence.complex

    def explained_by(self, hypothesis: Tensor, free: int = 0, scale: float | None = None) -> bool:
        """Whether the hypothesis, with `free` numbers fitted, is what was returned, explains why, and not by chance.

        Where `wanted` is unknown in some elements, so may the hypothesis be.
        """
        given, wanted, unknown = self.given, self.wanted, hypothesis.isnan()
        if hypothesis.shape != given.shape or (unknown.any() and not wanted.isnan().any()):
            return False
        error = distance(given, wanted) if given.shape == wanted.shape else norm(given)
        size = max(norm(given.where(~unknown, 0.0)), norm(wanted)) if scale is None else scale
        limit = min(self.evidence.noise * size, 0.05 * error)
        if not (distance(given, hypothesis) <= limit and error > 0):
            return False
        elements = int((~unknown & ((given != 0) | (hypothesis != 0))).sum())
        return limit == 0 or (limit / error) ** (elements - free) <= ACCIDENT

    def again(self, key: str, value: Tensor) -> Tensor:
        """The gradient that autograd gives with another value of an argument, as for the graph."""
        assert self.graph is not None, "asked where there is a graph"
        fed, cotangents = {**self.evidence.arguments, key: value}, self.evidence.cotangents
        return Graph(self.graph.forward, fed, cotangents, self.argument, *self.graph.taken).value


def is_trained(fault: Fault, key: str) -> bool:
    """Whether an argument has a gradient of its own: it is no mask, whatever its values."""
    return key == fault.argument or fault.actual.get(f"d{key}") is not None


Pattern = Callable[[Fault], Diagnosis | None]


def subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    """The non-empty sets of dimensions."""
    for n in range(1, ndim + 1):
        yield from combinations(range(ndim), n)


def as_double(tensor: Tensor) -> Tensor:
    """On the CPU in float64, safe to compute with under any grad mode."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def norm(tensor: Tensor) -> float:
    """Of the elements that are known."""
    size = tensor.norm()
    return (tensor[~tensor.isnan()].norm() if size.isnan() else size).item()


def distance(a: Tensor, b: Tensor) -> float:
    """Between the elements that are known of b."""
    difference = a - b
    size = difference.norm()
    return (difference[~b.isnan()].norm() if size.isnan() else size).item()


def is_mask(value: Any) -> bool:
    """Whether there are zeros and one other value in it, and nothing else."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.dtype == torch.bool):
        return False
    other = value[value != 0]
    return 0 < other.numel() < value.numel() >= 3 and bool((other == other[0]).all())


def ideal(fault: Fault) -> str:
    """What the given tensor should be: not all that is compared is the gradient of an argument."""
    return f"the correct {'gradient' if fault.argument else 'value'}"


def numbered(what: str, i: int, n: int) -> str:
    return what if n == 1 else f"{what} {i}"


def times(c: float) -> str:
    """A factor with six digits, or as many as show that it is not ±1."""
    written = [f"{c:.{digits}g}" for digits in (6, 9, 12, 17)]
    return next((text for text in written if abs(float(text)) != 1), written[-1]).replace("-", "−")


def dims_words(dims: Sequence[int]) -> str:
    return ("dimension " if len(dims) == 1 else "dimensions ") + "·".join(map(str, dims))


def shape_words(tensor: Tensor, paired: bool = False) -> str:
    return str(tuple(tensor.shape[:-1] if paired else tensor.shape))
