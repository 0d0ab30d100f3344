"""Zero, the conjugate, or a constant times the correct gradient."""

from collections.abc import Iterator
from fractions import Fraction
from math import isfinite, prod

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import KNOWN, Fault, dims_words, norm, numbered, times
from gradient_check.report import Diagnosis


def zero(fault: Fault) -> Diagnosis | None:
    if fault.given.norm() <= 1e-12 * norm(fault.wanted):
        return Diagnosis("zero", "this is zero everywhere")
    return None


def sign(fault: Fault) -> Diagnosis | None:
    if fault.explained_by(-fault.wanted, free=KNOWN):
        return Diagnosis("sign", "the sign is wrong: this is −1 times the correct gradient")
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
    return known or Diagnosis("factor", f"this is {times(c)} times the correct gradient")


def _factor(fault: Fault, c: float) -> Diagnosis | None:
    near = min(fault.evidence.noise, 3e-3)

    def is_(value: float) -> bool:
        return abs(c - value) <= near * abs(value)

    def said(what: str, size: int, words: str) -> str:
        return f"this is {what} times the correct gradient ({size} = {words})"

    scalars = {key: v.item() for key, v in fault.tensors.items() if v.numel() == 1 and key != fault.argument}
    scalars |= {key: value for key, value in fault.evidence.arguments.items() if isinstance(value, float)}
    for key, scalar in scalars.items():
        if scalar not in (0.0, 1.0) and isfinite(scalar) and (is_(1 / scalar) or is_(scalar)):
            how = "not multiplied in" if is_(1 / scalar) else "multiplied in once too often"
            text = f"this is {times(c)} times the correct gradient: {key} = {scalar:.6g} was {how}"
            return Diagnosis("missing factor", text)
    sizes = sorted(_sizes(fault), key=lambda entry: not entry[2])
    for size, words, averaged in sizes:
        if is_(1 / size) or is_(size):
            what = f"1/{size}" if is_(1 / size) else str(size)
            if size == 2:
                half = _fraction(Fraction(c).limit_denominator(2))
                return Diagnosis("factor", f"this is {half} times the correct gradient (2 is also {words})")
            text = said(what, size, words)
            return Diagnosis("batch factor", f"{text}: mean against sum") if averaged else Diagnosis("factor", text)
    for size, words, _ in sizes:
        if size > 2 and (is_((size - 1) / size) or is_(size / (size - 1))):
            what = f"{size - 1}/{size}" if is_((size - 1) / size) else f"{size}/{size - 1}"
            return Diagnosis("factor", said(what, size, words))
    fraction = Fraction(c).limit_denominator(12 if near < 1e-3 else 4)
    if fraction and is_(float(fraction)) and abs(fraction.numerator) <= 12:
        return Diagnosis("factor", f"this is {_fraction(fraction)} times the correct gradient")
    for size, words, _ in sizes:
        if is_(size**-0.5) or is_(size**0.5):
            return Diagnosis("factor", said(f"1/√{size}" if is_(size**-0.5) else f"√{size}", size, words))
    return None


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


def _fraction(fraction: Fraction) -> str:
    text = {Fraction(1, 2): "½", Fraction(1, 3): "⅓", Fraction(1, 4): "¼"}.get(abs(fraction), str(abs(fraction)))
    return f"−{text}" if fraction < 0 else text
