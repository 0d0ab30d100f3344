"""Learning rate schedules: η at step t = 0, 1, … of T, in units of the base rate η₀.

Most are functions of t and T. `Plateau` follows the result on held-out examples instead; Nielsen's rule, to halve η
when there was no improvement for so many epochs, is one with the factor ½.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, inf, pi
from typing import TypedDict

Schedule = Callable[[int, int], float]


def constant(t: int, total: int) -> float:
    """η(t) = η₀"""
    return 1.0


def cosine(t: int, total: int) -> float:
    """η(t) = η₀ ½ (1 + cos(π t/T)): from η₀ at the first step towards 0 after the last (Loshchilov and Hutter 2017)."""
    return 0.5 * (1 + cos(pi * t / total))


@dataclass(frozen=True)
class Step:
    """η(t) = η₀ γ^⌊t/N⌋: the rate falls to γ of itself every N = `every` steps."""

    every: int
    factor: float

    def __call__(self, t: int, total: int) -> float:
        return self.factor ** (t // self.every)


@dataclass(frozen=True)
class Exponential:
    """η(t) = η₀ γ^(t/N): the same fall, a little at every step."""

    every: int
    factor: float

    def __call__(self, t: int, total: int) -> float:
        return self.factor ** (t / self.every)


RISE = 0.3  # the part of a cycle in which the rate rises
START, END = 1 / 25, 1 / 250_000  # of the largest rate, at the first and the last step


def one_cycle(t: int, total: int) -> float:
    """From η₀/25 up to η₀ at t₁ = 0.3 T − 1, then down to η₀/250,000 at the last step, each along half a cosine.

    Source: Smith and Topin 2018, with torch's numbers.
    """
    peak = max(RISE * total - 1, 0)
    if t < peak:
        return between(START, 1.0, t / peak)
    return between(1.0, END, (t - peak) / max(total - 1 - peak, 1))


def between(start: float, end: float, part: float) -> float:
    """From `start` to `end` as `part` goes from 0 to 1: end + (start − end) ½ (1 + cos(π part))"""
    return end + (start - end) * 0.5 * (1 + cos(pi * part))


@dataclass(frozen=True)
class Warmup:
    """η(t) = η₀ (t + 1)/w for the first w = `steps` steps, then `after` for the other T − w (Goyal et al. 2017)."""

    steps: int
    after: Schedule

    def __call__(self, t: int, total: int) -> float:
        if t < self.steps:
            return (t + 1) / self.steps
        return self.after(t - self.steps, total - self.steps)


class Memory(TypedDict):
    """What a plateau schedule remembers."""

    scale: float  # η / η₀
    best: float  # the best value so far
    waited: int  # evaluations since then, or since the last fall


@dataclass(frozen=True)
class Plateau:
    """The rate falls to γ = `factor` of itself whenever `patience` evaluations in a row brought no new best value.

    Sources: Nielsen, chapter 3 (γ = ½, the value is the accuracy on held-out examples); torch's ReduceLROnPlateau,
    whose patience is one less.
    """

    patience: int
    factor: float

    def init(self) -> Memory:
        return {"scale": 1.0, "best": inf, "waited": 0}

    def update(self, memory: Memory, value: float) -> Memory:
        """The memory after an evaluation; of `value` less is better."""
        if value < memory["best"]:
            return {"scale": memory["scale"], "best": value, "waited": 0}
        if memory["waited"] + 1 < self.patience:
            return {**memory, "waited": memory["waited"] + 1}
        return {**memory, "scale": memory["scale"] * self.factor, "waited": 0}


@dataclass(frozen=True)
class Course:
    """How a schedule is made from N and γ: `make` for a function of t and T, a `Plateau` where results decide."""

    make: Callable[[int, float], Schedule] | None = None
    takes: tuple[str, ...] = ()  # of N, every, and γ, factor
    follows: str = ""  # the result on held-out examples that decides: cost or accuracy
    rises: bool = False  # whether it has a warm-up of its own


SCHEDULES = {
    "constant": Course(lambda every, factor: constant),
    "step": Course(Step, takes=("every", "factor")),
    "exponential": Course(Exponential, takes=("every", "factor")),
    "cosine": Course(lambda every, factor: cosine),
    "one-cycle": Course(lambda every, factor: one_cycle, rises=True),
    "plateau": Course(takes=("every", "factor"), follows="cost"),
    "halve": Course(takes=("every",), follows="accuracy"),
}
