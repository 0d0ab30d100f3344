"""What is wrong with a gradient, where the pattern is known.

Each pattern is a hypothesis that says what a backward pass with that mistake returns; it is named only if that *is*
what was returned: the remainder is below the noise, below a twentieth of the error, and no accident (a fit of k numbers
to n elements within r of the error happens by chance with a probability of about rⁿ⁻ᵏ). The simplest come first.
Patterns that need forward run again take autograd's own graph apart (`terms`). No pattern: None, "unknown".
"""

import warnings
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from gradient_check.patterns import axes, constants, forgotten, places, shapes, sums
from gradient_check.patterns.case import Case, Evidence, Pattern, plain
from gradient_check.report import Diagnosis

__all__ = ["Evidence", "diagnose"]

OTHER_SHAPE: tuple[Pattern, ...] = (shapes.swapped, shapes.transposed_shape, axes.wrong_axis, shapes.shape)
SAME_SHAPE: tuple[Pattern, ...] = (
    places.nan,
    constants.zero,
    constants.sign,
    forgotten.ones,
    constants.factor,
    shapes.swapped,
    shapes.transposed,
    sums.output_ignored,
    forgotten.mask_ignored,
    forgotten.mask_ignored_throughout,
    forgotten.mask_ignored_inside,
    forgotten.missing_factor,
    sums.candidate,
    sums.path_missing,
    forgotten.local_derivative,
    axes.wrong_axis,
    axes.wrong_axis_inside,
    sums.path_wrong,
    sums.diagonal,
    forgotten.cotangent_unchanged,
    shapes.transposed_factor,
    places.repeated_indices,
    sums.weight_decay,
    sums.constant_error,
    sums.proportional_error,
    places.examples_left_out,
    places.rows,
)


def diagnose(
    name: str, actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor], evidence: Evidence
) -> Diagnosis | None:
    """The known mistake that turns expected[name] into actual[name], or None. Never raises.

    `name` is that of the gradient, `d` + the argument's.
    """
    given, wanted = actual.get(name), expected.get(name)
    if given is None or wanted is None or given.is_complex() or wanted.is_complex():
        return None
    if given.shape == wanted.shape and bool((given == wanted).all()):
        return None
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        case = Case(name, plain(given), plain(wanted), actual, expected, evidence)
        for pattern in OTHER_SHAPE if given.shape != wanted.shape else SAME_SHAPE:
            with suppress(Exception):  # forward, fed with something else, may raise: then that is not the mistake
                if (found := pattern(case)) is not None:
                    return found
    return None
