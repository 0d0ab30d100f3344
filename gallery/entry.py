"""What an entry of the gallery is: a right layer, a wrong backward of it, and what is said of the mistake."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

import gradient_check
from gradient_check.report import Diagnosis, Report

Forward = Callable[..., Any]  # arguments → output, …, cache
Backward = Callable[..., Any]  # (d_output, …, cache) → one gradient per differentiable argument
Pair = tuple[Forward, Backward]
Example = Callable[[Generator], Sequence[Any]]
OWN = "our own tests"  # who made a mistake that was found before it came here


class Entry(Protocol):
    """A known mistake. There are mistakes of a layer (`Wrong`), an optimizer (`WrongRule`) and a network."""

    name: str
    what: str  # one sentence: what is wrong
    diagnosis: Sequence[str]  # the kinds that are true of it, none where the pattern has no name
    where: str  # who made it

    def ours(self, right: bool, seed: int = 0) -> Report: ...

    def misses(self, right: bool, seed: int = 0) -> bool:
        """Whether the naive test passes: it should for right, and shouldn't for wrong, but does."""
        ...


ENTRIES: list[Entry] = []


def normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def away_from_one(generator: Generator, *shape: int) -> Tensor:
    """A scale such as γ: ±[0.3, 0.8], never its default."""
    sign = 2.0 * torch.randint(0, 2, shape, generator=generator) - 1
    return sign * (0.3 + 0.5 * torch.rand(shape, generator=generator, dtype=torch.float64))


@dataclass(frozen=True)
class Layer:
    """A forward, its right backward and an example; `wrong` adds an entry to the gallery."""

    forward: Forward
    backward: Backward
    example: Example
    outputs: int = 1
    not_differentiable: Sequence[str] = ()
    reference: Forward | None = None

    def arguments(self, seed: int) -> list[Any]:
        return list(self.example(torch.Generator().manual_seed(seed)))

    def wrong(self, name: str, **said: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate a wrong backward of this layer."""

        def add(backward: Backward) -> Backward:
            ENTRIES.append(Wrong(name, layer=self, wrong_pair=lambda: (self.forward, backward), **said))
            return backward

        return add

    def wrong_pair(self, name: str, **said: Any) -> Callable[[Callable[[], Pair]], Callable[[], Pair]]:
        """Decorate what makes a wrong (forward, backward): a forward that is wrong too, or a pair that has a state."""

        def add(make: Callable[[], Pair]) -> Callable[[], Pair]:
            ENTRIES.append(Wrong(name, layer=self, wrong_pair=make, **said))
            return make

        return add


@dataclass(frozen=True)
class Naive:
    """A test as people write it. `accepts` runs it on a pair of functions."""

    text: str
    test: Callable[[Pair, Layer, Sequence[Any]], bool]
    example: Example | None = None  # where the test has its own arguments, such as γ = 1

    def accepts(self, pair: Pair, layer: Layer, seed: int) -> bool:
        generator = torch.Generator().manual_seed(seed)
        return self.test(pair, layer, list((self.example or layer.example)(generator)))


@dataclass(frozen=True)
class Wrong:
    """A mistake in a backward pass."""

    name: str
    what: str
    layer: Layer
    wrong_pair: Callable[[], Pair]
    naive: Naive  # a test that misses it
    diagnosis: Sequence[str] = ()
    where: str = "classic"
    only: str = ""  # the group of cases without which the check passes it

    def pair(self, right: bool) -> Pair:
        return (self.layer.forward, self.layer.backward) if right else self.wrong_pair()

    def ours(self, right: bool, seed: int = 0, cases: Sequence[str] | None = None) -> Report:
        forward, backward = self.pair(right)
        layer = self.layer
        return gradient_check.check_backward(
            forward,
            backward,
            layer.arguments(seed),
            outputs=layer.outputs,
            not_differentiable=layer.not_differentiable,
            reference=layer.reference,
            cases=cases,
            seed=seed,
        )

    def misses(self, right: bool, seed: int = 0) -> bool:
        return self.naive.accepts(self.pair(right), self.layer, seed)


Update = Callable[[Tensor, Tensor, dict[str, Tensor], int, float], Tensor]  # (θ, g, state, t, λ) → new θ


@dataclass(frozen=True)
class WrongRule:
    """A mistake in an optimizer's update, shown by feeding it and torch.optim the same recorded gradients."""

    name: str
    what: str
    right: Update
    wrong: Update
    make: Callable[[Sequence[dict[str, Any]]], torch.optim.Optimizer] = field(repr=False)
    diagnosis: Sequence[str] = ()
    where: str = "classic"

    def ours(self, right: bool, seed: int = 0, steps: int = 5) -> Report:
        generator = torch.Generator().manual_seed(seed)
        start = {"weight": normal(generator, 5, 3), "bias": normal(generator, 5)}
        recorded = [{name: normal(generator, *v.shape) for name, v in start.items()} for _ in range(steps)]
        theirs = {name: v.clone().requires_grad_() for name, v in start.items()}
        optimizer = self.make([{"params": [v], "weight_decay": decay(name)} for name, v in theirs.items()])
        for gradients in recorded:
            for name, v in theirs.items():
                v.grad = gradients[name].clone()
            optimizer.step()
        actual = self.run(self.right if right else self.wrong, start, lambda t, theta: recorded[t - 1], steps)
        return gradient_check.compare_gradients(actual, {name: v.detach() for name, v in theirs.items()})

    def misses(self, right: bool, seed: int = 0) -> bool:
        """The naive test of an optimizer: 200 steps on ½‖θ‖² halve ‖θ‖."""
        generator = torch.Generator().manual_seed(seed)
        start = {"weight": normal(generator, 5, 3), "bias": normal(generator, 5)}
        end = self.run(self.right if right else self.wrong, start, lambda t, theta: theta, 200)
        return all(bool(end[name].norm() < 0.5 * start[name].norm()) for name in start)

    @staticmethod
    def run(
        update: Update,
        start: dict[str, Tensor],
        gradients: Callable[[int, dict[str, Tensor]], dict[str, Tensor]],
        steps: int,
    ) -> dict[str, Tensor]:
        theta = dict(start)
        states: dict[str, dict[str, Tensor]] = {name: {} for name in theta}
        for t in range(1, steps + 1):
            g = gradients(t, theta)
            theta = {name: update(v, g[name], states[name], t, decay(name)) for name, v in theta.items()}
        return theta


def decay(name: str) -> float:
    """λ: weights decay, biases do not."""
    return 0.03 if name == "weight" else 0.0


def named(report: Report) -> Diagnosis | None:
    """What a report says that the mistake is: the first diagnosis that a reader meets."""
    return next((row.diagnosis for row in report.failures if row.diagnosis), None)


def verdict(entry: Entry, diagnosis: Diagnosis | None) -> str:
    """right, wrong, or unknown; a dash where the mistake has no name of its own and none was given."""
    if diagnosis is None:
        return "unknown" if entry.diagnosis else "–"
    return "right" if diagnosis.kind in entry.diagnosis else "wrong"
