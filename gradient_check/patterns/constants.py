"""Zero, or a constant times the right value."""

from collections.abc import Iterator
from fractions import Fraction
from math import isfinite, prod

from torch import Tensor

from gradient_check.patterns.case import KNOWN, Case, dims_words, numbered
from gradient_check.report import Diagnosis


def zero(case: Case) -> Diagnosis | None:
    if case.given.norm() <= 1e-12 * case.wanted.norm():
        return Diagnosis("zero", "it is zero everywhere")
    return None


def sign(case: Case) -> Diagnosis | None:
    if case.is_(-case.wanted, free=KNOWN):
        return Diagnosis("sign", "the sign is wrong: it is −1 times the right value")
    return None


def factor(case: Case) -> Diagnosis | None:
    """A constant times the right value."""
    square = case.wanted.pow(2).sum()
    if square == 0:
        return None
    c = float((case.given * case.wanted).sum() / square)
    if abs(c - 1) <= case.evidence.noise:
        return None
    known = _factor(case, c)
    if not case.is_(c * case.wanted, free=KNOWN if known else 2, scale=case.given.norm().item()):
        return None
    return known or Diagnosis("factor", f"it is {c:.6g} times the right value")


def _factor(case: Case, c: float) -> Diagnosis | None:
    near = min(case.evidence.noise, 3e-3)

    def is_(value: float) -> bool:
        return abs(c - value) <= near * abs(value)

    scalars = {key: value.item() for key, value in case.tensors.items() if value.numel() == 1 and key != case.argument}
    scalars |= {key: value for key, value in case.evidence.arguments.items() if isinstance(value, float)}
    for key, scalar in scalars.items():
        if scalar not in (0.0, 1.0) and isfinite(scalar) and (is_(1 / scalar) or is_(scalar)):
            how = "not multiplied in" if is_(1 / scalar) else "multiplied in once too often"
            return Diagnosis("missing factor", f"it is {c:.6g} times the right value: {key} = {scalar:.6g} was {how}")
    sizes = sorted(_sizes(case), key=lambda entry: not entry[2])
    for size, words, averaged in sizes:
        if is_(1 / size) or is_(size):
            what = f"1/{size}" if is_(1 / size) else str(size)
            if size == 2:
                half = _fraction(Fraction(c).limit_denominator(2))
                return Diagnosis("factor", f"it is {half} times the right value (2 is {words}, too)")
            text = f"it is {what} times the right value ({size} = {words})"
            return Diagnosis("batch factor", f"{text}: mean against sum") if averaged else Diagnosis("factor", text)
    for size, words, _ in sizes:
        if size > 2 and (is_((size - 1) / size) or is_(size / (size - 1))):
            what = f"{size - 1}/{size}" if is_((size - 1) / size) else f"{size}/{size - 1}"
            return Diagnosis("factor", f"it is {what} times the right value ({size} = {words})")
    fraction = Fraction(c).limit_denominator(12 if near < 1e-3 else 4)
    if fraction and is_(float(fraction)) and abs(fraction.numerator) <= 12:
        return Diagnosis("factor", f"it is {_fraction(fraction)} times the right value")
    for size, words, _ in sizes:
        if is_(size**-0.5) or is_(size**0.5):
            what = f"1/√{size}" if is_(size**-0.5) else f"√{size}"
            return Diagnosis("factor", f"it is {what} times the right value ({size} = {words})")
    return None


def _sizes(case: Case) -> Iterator[tuple[int, str, bool]]:
    """Sizes of runs of dimensions, what they are, and whether one takes means over them; the output's come first."""
    for i, output in enumerate(case.evidence.outputs):
        yield from ((*run, True) for run in _runs(output, numbered("the output", i, len(case.evidence.outputs))))
    for key, value in case.evidence.arguments.items():
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
    return {Fraction(1, 2): "½", Fraction(1, 3): "⅓", Fraction(1, 4): "¼"}.get(fraction, str(fraction))
