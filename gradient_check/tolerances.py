"""How large a difference may be: derived from the number format, never from what happens to pass.

- float64. Two right ways to compute a gradient differ by rounding only, at most 2e-15 of its norm where it is well
  conditioned (measured, networks of depth 32); 500 times that, 1e-12, is the limit.
- Lower precision. The truth is the float64 result on the same (rounded) inputs. The error allowed is MULTIPLE times the
  error that autograd has itself at that dtype (there and at a few inputs nearby, because one result can be right by
  luck), plus FLOOR units of rounding. In 16 bits they are fewer where many elements tell that error (`floor_of`): a
  sum over 400 terms that is kept in 16 bits is off by no more than 3 units, ten times as far as autograd.
  Where there is no autograd to ask, it is FLOOR + √n units, n the number of terms that may have been added up (16-bit
  numbers in float32): the errors of a sum in any order grow like a random walk.
- Badly conditioned gradients. Where one unit of rounding in the inputs moves the truth itself, FLOOR times that
  movement is allowed. A caller who knows the size of the summands may say so instead (`condition`).
- A gradient that is zero in exact arithmetic (a bias before batch norm) is no more than the rounding of its summands,
  and judged by their size.

Two things are judged, with two limits: ‖difference‖ against ‖truth‖, and the largest |difference| against the root mean
square of the truth, or one wrong element among a million would hide. At float64 an error of 1e-9 in one element of
root-mean-square size, at float32 one of 0.1%, must not pass: a comparison that could not see it (VISIBLE) fails. In 16
bits the same holds of errors as large as the element. Where rounding in an example's inputs moves its gradient by more,
that is known and counted, and only one of 1e-4, at float32 of 3%, must be seen (BLINDING).
"""

from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

MEASURED_FLOOR = 2e-15  # of float64, relative to the norm
FLOAT64_TOLERANCE = 500 * MEASURED_FLOOR
MULTIPLE = 4  # of autograd's own error
FLOOR = {torch.float64: 64, torch.float32: 16, torch.bfloat16: 4, torch.float16: 4}  # units of rounding of the norm
ELEMENT = 16  # an element's error may be so many times the root mean square of the errors
VISIBLE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 1.0}  # what must not pass
BLINDING = {torch.float64: 1e-4, torch.float32: 3e-2, torch.float16: 0.2, torch.bfloat16: 1.0}  # it shows nothing then
SCATTERING = {
    dtype: BLINDING[dtype] for dtype in (torch.float64, torch.float32)
}  # and so far rounding may scatter what is on trial
SAME = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # for a diagnosis


@dataclass(frozen=True)
class Tolerance:
    """Limits of ‖difference‖ / ‖truth‖ and of the largest |difference| / root mean square, and where they come from."""

    norm: float
    element: float
    origin: str

    def wider(self, norm: float, element: float, origin: str) -> "Tolerance":
        """The larger of two limits, each for itself."""
        if norm <= self.norm and element <= self.element:
            return self
        return Tolerance(max(norm, self.norm), max(element, self.element), origin)


@dataclass(frozen=True)
class Leeway:
    """What is allowed beside: errors relative to the norm that the caller declared, and rounding that was seen."""

    tolerance: float = 0.0
    because: str = ""
    nondeterministic: float = 0.0  # what a second call may differ by; it is added to every slack
    single: float = 0.0  # rounding in float32, where a forward of float64 is seen to compute in it

    @property
    def relative(self) -> float:
        return max(self.tolerance, self.nondeterministic, self.single)

    def widen(self, limit: Tolerance) -> Tolerance:
        if self.tolerance:
            limit = limit.wider(self.tolerance, ELEMENT * self.tolerance, f"declared, because {self.because}")
        if self.single:
            limit = limit.wider(self.single, ELEMENT * self.single, "rounding in float32, in which forward computes")
        if not self.nondeterministic:
            return limit
        own = self.nondeterministic
        return Tolerance(
            limit.norm + own,
            limit.element + ELEMENT * own,
            f"{limit.origin}, and {own:g}, declared as nondeterministic",
        )

    def sentences(self) -> list[str]:
        """For the report."""
        said = [f"declared: errors up to {self.tolerance:g} of the norm pass, because {self.because}"]
        other = [f"declared as nondeterministic: two calls may differ by {self.nondeterministic:g} of the norm"]
        inside = ["forward computes in float32 inside, and is judged by that"] if self.single else []
        return inside + (said if self.tolerance else []) + (other if self.nondeterministic else [])


def tolerance(dtype: torch.dtype, condition: float = 1.0) -> Tolerance:
    """Of float64, for a truth that is as exact as the value on trial."""
    norm = FLOAT64_TOLERANCE
    limit = Tolerance(norm, ELEMENT * norm, "500 × the rounding measured in float64")
    rounded = FLOOR[dtype] * torch.finfo(dtype).eps * condition
    return limit.wider(rounded, ELEMENT * rounded, f"{FLOOR[dtype]} units of rounding × condition {condition:.2g}")


def floor_of(dtype: torch.dtype, known: int) -> float:
    """How many units of rounding are allowed beside an oracle's own error that several draws of `known` elements tell.

    Measured in 16 bits: right layers stay within 4 times that error where 16 elements tell it, and half a unit.
    """
    return max(FLOOR[dtype] / 2 / sqrt(known), 0.5) if known > 1 and torch.finfo(dtype).bits == 16 else FLOOR[dtype]


def tolerance_beside(dtype: torch.dtype, own: Tensor, size: float, condition: float = 1.0, known: int = 1) -> Tolerance:
    """Of a lower precision, in which autograd is off by `own`; `size` is what relative errors are relative to."""
    allowed = floor_of(dtype, known)
    floor = allowed * torch.finfo(dtype).eps * condition
    norm = floor + MULTIPLE * ratio(own.norm().item(), size)
    element = ELEMENT * floor + MULTIPLE * ratio(own.max().item(), size / sqrt(own.numel()))
    units = f"{allowed:.2g} units of rounding" + (f" × condition {condition:.2g}" if condition > 1 else "")
    return Tolerance(norm, element, f"{MULTIPLE} × the oracle's own error in {_name(dtype)} + {units}")


def tolerance_of_sums(dtype: torch.dtype, terms: int) -> Tolerance:
    """Of a lower precision without an autograd to ask; `terms` may have been added up in any order.

    16-bit numbers are added up in float32, by libraries and by hardware.
    """
    adding = torch.float32 if torch.finfo(dtype).bits == 16 else dtype
    floor, walk = FLOOR[dtype] * torch.finfo(dtype).eps, sqrt(terms) * torch.finfo(adding).eps
    origin = f"{FLOOR[dtype]} units of rounding in {_name(dtype)} + √{terms:,} in {_name(adding)}"
    return Tolerance(floor + walk, ELEMENT * floor + 6 * walk, origin)


def magnified(dtype: torch.dtype, known: int = 1) -> float:
    """How often the movement of a truth by one unit of float64's rounding in its inputs is allowed."""
    return max(1.0, floor_of(dtype, known)) * torch.finfo(dtype).eps / torch.finfo(torch.float64).eps


def ratio(error: float, size: float) -> float:
    """error / size; where both are zero there is no error."""
    if error == 0:
        return 0.0
    return error / size if size > 0 else inf


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
