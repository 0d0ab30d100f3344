"""What is wrong with a gradient, where the pattern is known.

Each pattern is a hypothesis that says what a backward pass with that mistake returns; it is named only if that *is*
what was returned: the remainder is below the noise, below a twentieth of the error, and no accident (a fit of k numbers
to n elements within r of the error happens by chance with a probability of about rⁿ⁻ᵏ). The simplest come first. The
correct gradient may be one that was measured: its noise is the uncertainty, and what is unknown is not looked at.
Patterns that need forward run again take autograd's own graph apart (`terms`). No pattern: None, "unknown".
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gradient_check.diagnosis import factors, paths, places, shapes
from gradient_check.diagnosis.fault import Evidence, Fault, Pattern, as_double, norm
from gradient_check.report import Diagnosis, Row, quoted
from gradient_check.tolerances import SAME

__all__ = ["Evidence", "diagnose", "diagnosed"]

OTHER_SHAPE: tuple[Pattern, ...] = (shapes.swapped, shapes.transposed, shapes.wrong_axis, shapes.shape)
CONSTANT: tuple[Pattern, ...] = (places.nan, factors.zero, factors.sign, factors.factor)
SAME_SHAPE: tuple[Pattern, ...] = (
    *(places.nan, factors.zero, factors.sign, factors.conjugate, factors.ones, factors.factor),
    *(shapes.swapped, shapes.transposed, factors.mask_ignored, factors.missing_factor),
    *(paths.candidate, paths.path_missing, paths.output_ignored, paths.wrong_step, shapes.wrong_axis, paths.path_wrong),
    *(factors.cotangent_unchanged, places.repeated_indices, paths.proportional_error),
    *(places.examples_left_out, places.reordered, places.moved, places.in_part),
)
COARSE = 1e-3  # of the root mean square: an element that is known no better counts as unknown
SAMPLE = 2**18  # elements that are looked at of a gradient four times as large


def diagnosed(
    row: Row,
    given: Mapping[str, Tensor | None],
    known: Mapping[str, Tensor],
    evidence: Evidence,
    uncertainty: Mapping[str, Tensor] | None = None,
) -> Row:
    """A row that failed by its values or its shape, with its diagnosis; any other as it is.

    `given` and `known` are what backward returned and what is known of it in float64, by the names of the gradients;
    `uncertainty` says how well, element by element, where that was measured: infinite where nothing is known.
    """
    actual = given.get(row.name)
    unexplained = not (row.passed or row.inconclusive or row.agrees or row.diagnosis)
    if not unexplained or actual is None or actual.device.type == "meta":
        return row
    noise = max(evidence.noise, SAME.get(actual.dtype, 0.0))
    correct, sure = dict(known), noise
    for name, doubt in (uncertainty or {}).items():
        correct[name], blur = _known_part(as_double(known[name]), as_double(doubt))
        sure = max(sure, blur) if name == row.name else sure
    troubles: list[str] = []
    found = diagnose(row.name, given, correct, replace(evidence, noise=sure), troubles)
    said = f"; in the search for a diagnosis: {troubles[0]}" if troubles and not found else ""
    return replace(row, diagnosis=found, reason=row.reason + said)


def _known_part(known: Tensor, doubt: Tensor) -> tuple[Tensor, float]:
    """What is known well enough, NaN elsewhere; and how well, relative to its root mean square."""
    known = known.where(doubt.isfinite(), torch.nan)
    count = max(1, int((~known.isnan()).sum()))
    rms = norm(known) / count**0.5
    good = doubt <= COARSE * rms
    return known.where(good, torch.nan), doubt[good].max().item() / rms if rms and good.any() else 0.0


def diagnose(
    name: str,
    actual: Mapping[str, Tensor | None],
    correct: Mapping[str, Tensor],
    evidence: Evidence,
    troubles: list[str] | None = None,
) -> Diagnosis | None:
    """The known mistake that turns correct[name], NaN where it is unknown, into actual[name], or None. Never raises.

    `name` is that of the gradient, `d` + the argument's. Exceptions that were met are quoted in `troubles`.
    """
    given, wanted = actual.get(name), correct.get(name)
    if given is None or wanted is None or given.is_complex() or wanted.is_complex():
        return None
    patterns, among = OTHER_SHAPE if given.shape != wanted.shape else SAME_SHAPE, ""
    if given.numel() > 4 * SAMPLE and given.shape == wanted.shape:
        drawn = torch.randint(given.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(0), device="cpu")
        given, wanted = (tensor.flatten()[drawn.to(tensor.device)] for tensor in (given, wanted))
        patterns, among = CONSTANT, f" (in a sample of {SAMPLE:,} elements)"
    elif (unknown := int(wanted.isnan().sum())) and given.shape == wanted.shape:
        among = f" (in the {wanted.numel() - unknown:,} of {wanted.numel():,} elements that are known)"
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        fault = Fault(name, as_double(given), as_double(wanted), actual, correct, evidence)
        if given.shape == wanted.shape and not (fault.error[~fault.wanted.isnan()] != 0).any():
            return None
        for pattern in patterns:
            try:
                found = pattern(fault)
            except Exception as error:  # forward, fed with something else, may raise what it likes
                fault.troubles.append(quoted(error))
                continue
            if found is not None:
                return replace(found, text=found.text + among)
    if troubles is not None:
        troubles += fault.troubles
    return None
