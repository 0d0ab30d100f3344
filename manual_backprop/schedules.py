"""Learning rate schedules: η at step t = 0, 1, … of T, in units of the base rate η₀."""

from collections.abc import Callable
from math import cos, pi

Schedule = Callable[[int, int], float]


def constant(t: int, total: int) -> float:
    """η(t) = η₀"""
    return 1.0


def cosine(t: int, total: int) -> float:
    """η(t) = η₀ ½ (1 + cos(π t/T)): from η₀ at the first step towards 0 after the last (Loshchilov and Hutter 2017)."""
    return 0.5 * (1 + cos(pi * t / total))


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine}
