"""Zero, the conjugate, or a constant times the correct gradient."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from math import gcd, isfinite, prod

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import KNOWN, Fault, dims_words, ideal, norm, numbered, times
from gradient_check.report import Diagnosis


def zero(fault: Fault) -> Diagnosis | None:
    if fault.given.norm() <= 1e-12 * norm(fault.wanted):
        return Diagnosis("zero", "this is zero everywhere")
    return None


def sign(fault: Fault) -> Diagnosis | None:
    if fault.explained_by(-fault.wanted, free=KNOWN):
        return Diagnosis("sign", f"the sign is wrong: this is −1 times {ideal(fault)}")
    return None


def conjugate(fault: Fault) -> Diagnosis | None:
    """Of complex numbers that are pairs: the imaginary part has the other sign."""
    if fault.argument not in fault.evidence.complex:
        return None
    if fault.explained_by(fault.wanted * torch.tensor([1.0, -1.0], dtype=torch.float64)):
        return Diagnosis("conjugate", "the conjugate was forgotten: this is the conjugate of the correct gradient")
    return None


def factor(fault: Fault) -> Diagnosis | None:
    """A constant times the correct gradient."""
    filled = fault.wanted.nan_to_num()
    square = filled.pow(2).sum()
    if square == 0:
        return None
    c = float((fault.given * filled).sum() / square)
    if abs(c - 1) <= fault.evidence.noise:
        return None
    known = _factor(fault, c)
    scale = norm(fault.given.where(~fault.wanted.isnan(), 0.0))
    if not fault.explained_by(c * fault.wanted, free=KNOWN if known else 2, scale=scale):
        return None
    return known or Diagnosis("factor", f"this is {times(c)} times {ideal(fault)}")


def _factor(fault: Fault, c: float) -> Diagnosis | None:
    near = min(fault.evidence.noise, 3e-3)
    for value, what, written, words in _numbers(fault, largest=12 if near < 1e-3 else 4):
        if abs(c - value) <= near * abs(value):
            return Diagnosis(what, f"this is {written} times {ideal(fault)}{words}")
    return None


def _numbers(fault: Fault, largest: int) -> Iterator[tuple[float, str, str, str]]:
    """Factors that have a meaning, the kind of mistake, how they are written, and what they are."""
    scalars = {key: v.item() for key, v in fault.tensors.items() if v.numel() == 1 and key != fault.argument}
    scalars |= {key: value for key, value in fault.evidence.arguments.items() if isinstance(value, float)}
    for key, scalar in scalars.items():
        if scalar not in (0.0, 1.0) and isfinite(scalar):
            for value, how in ((1 / scalar, "not multiplied in"), (scalar, "multiplied in once too often")):
                yield value, "missing factor", times(value), f": {key} = {scalar:.6g} was {how}"
    sizes = sorted(_sizes(fault), key=lambda entry: not entry[2])
    for n, words, averaged in sizes:
        what, tail = ("batch factor", ": mean against sum") if averaged and n > 2 else ("factor", "")
        yield 1 / n, what, "½" if n == 2 else f"1/{n}", f" ({n} = {words}){tail}"
        yield n, what, str(n), f" ({n} = {words}){tail}"
    for n, words, _ in sizes:
        if n > 2:
            yield (n - 1) / n, "factor", f"{n - 1}/{n}", f" ({n} = {words})"
            yield n / (n - 1), "factor", f"{n}/{n - 1}", f" ({n} = {words})"
    for above, below in product(range(1, largest + 1), repeat=2):
        if gcd(above, below) == 1:
            written = {(1, 2): "½", (1, 3): "⅓", (1, 4): "¼"}.get((above, below), str(Fraction(above, below)))
            yield above / below, "factor", written, ""
            yield -above / below, "factor", f"−{written}", ""
    for n, words, _ in sizes:
        yield n**-0.5, "factor", f"1/√{n}", f" ({n} = {words})"
        yield n**0.5, "factor", f"√{n}", f" ({n} = {words})"


def _sizes(fault: Fault) -> Iterator[tuple[int, str, bool]]:
    """Sizes of runs of dimensions, what they are, and whether one takes means over them; the output's come first."""
    for i, output in enumerate(fault.evidence.outputs):
        yield from ((*run, True) for run in _runs(output, numbered("the output", i, len(fault.evidence.outputs))))
    for key, value in fault.evidence.arguments.items():
        if isinstance(value, Tensor):
            for size, words in _runs(value, key):
                # a lone last dimension is summed over by products; nobody takes its mean
                yield size, words, value.ndim == 1 or words != f"{dims_words([value.ndim - 1])} of {key}"


def _runs(tensor: Tensor, name: str) -> Iterator[tuple[int, str]]:
    for start in range(tensor.ndim):
        for stop in range(start + 1, tensor.ndim + 1):
            size = prod(tensor.shape[start:stop])
            if size > 1:
                yield size, f"{dims_words(range(start, stop))} of {name}"
