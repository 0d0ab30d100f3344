"""Examples as people save them: pictures of any number format, depth and layout, and rows of features."""

from collections.abc import Mapping
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.errors import UserError

DEPTHS = (1, 16, 255, 4095, 65535)  # largest values of pixels: of one bit, scikit-learn's digits, 8, 12 and 16 bits
PIXELS = 64  # flat rows of as many numbers that are not negative are taken for pixels
CHANNELS = 4  # at most, of an axis that is taken for that of the channels
OVERSHOOT = 0.1  # how far interpolation may go beyond black and white, as a share of the depth
APART = 30  # times: training and test pictures whose values are so far apart are not scaled alike
LARGE = 10  # features beyond this learn badly


def check_examples(where: str, x: NDArray) -> None:
    """Raises UserError unless x, which `where` names, is (N, …) finite numbers, one row an example."""
    if x.dtype.kind not in "buif":
        raise UserError(f"{where} is {x.dtype}; examples are numbers, save it as uint8 (0 to 255) or as float32")
    if x.ndim < 2 or x.size == 0:
        raise UserError(f"{where} has shape {x.shape}; expected (N, features) or (N, height, width), none of them 0")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row = np.argwhere(~np.isfinite(x))[0][0]
        raise UserError(f"{where} has a value that is not finite in row {row}; remove or replace it")


def as_examples(where: str, arrays: Mapping[str, NDArray]) -> tuple[Tensor, tuple[int, ...], list[str]]:
    """The arrays, one after another, as rows that Split keeps; an example's shape; and what was made of them.

    Pixels, which are hardly negative, become bytes where they are whole numbers of 8 bits or of one, else fractions of
    the largest value of their depth. Other features stay as they are. Channels come first, and flat rows of pixels that
    fill a square are pictures. Raises UserError, beginning with `where`, for arrays that are not alike.
    """
    for name, other in arrays.items():
        first, x = next(iter(arrays.items()))
        if other.shape[1:] != x.shape[1:]:
            raise UserError(
                f"{where}: {name} has examples of shape {other.shape[1:]}, and {first} of {x.shape[1:]}; "
                "save both alike"
            )
    x = np.concatenate(list(arrays.values()))
    may_be = x.dtype.kind == "b" or x.dtype == np.uint8 or x[0].ndim > 1 or x[0].size >= PIXELS
    is_pixels = may_be and float(x.min()) >= -OVERSHOOT * float(x.max())
    if is_pixels:
        _require_one_scale(where, arrays)
    x, notes = _laid_out(x, is_pixels)
    shape = x.shape[1:]
    x, scaling = (_pixels if is_pixels else _features)(x.reshape(len(x), -1))
    return torch.from_numpy(x), shape, [*notes, *scaling]


def _require_one_scale(where: str, arrays: Mapping[str, NDArray]) -> None:
    ordered = sorted(((float(x.max()), name) for name, x in arrays.items()))
    (low, least), (high, most) = ordered[0], ordered[-1]
    if high > APART * low:
        raise UserError(f"{where}: {most} has values up to {high:g}, and {least} up to {low:g}; scale both alike")


def _laid_out(x: NDArray, is_pixels: bool) -> tuple[NDArray, list[str]]:
    """With channels first, without a single channel, and flat rows of pixels as squares."""
    shape = x.shape[1:]
    side = isqrt(shape[0])
    if is_pixels and len(shape) == 1 and side**2 == shape[0] >= PIXELS:
        return x.reshape(-1, side, side), [f"rows of {shape[0]:,} are taken as {side}×{side} pictures"]
    if len(shape) == 3 and shape[2] <= CHANNELS < min(shape[:2]):
        x, notes = np.moveaxis(x, 3, 1), [] if shape[2] == 1 else [f"the {shape[2]} channels are moved to the front"]
        return (x[:, 0] if shape[2] == 1 else x), notes
    return (x[:, 0] if len(shape) == 3 and shape[0] == 1 else x), []


def _pixels(x: NDArray) -> tuple[NDArray, list[str]]:
    low, high = float(x.min()), float(x.max())
    is_whole = low >= 0 and (x.dtype.kind != "f" or np.array_equal(x, np.rint(x)))
    depth = next((depth for depth in DEPTHS if high <= depth * (1 if is_whole else 1 + OVERSHOOT)), 0)
    if is_whole and depth == 1:
        return (x * 255).astype(np.uint8), []
    if is_whole and depth == 255:
        taken = [f"pixels {low:g} to {high:g} ({x.dtype}) are divided by 255"]
        return x.astype(np.uint8), [] if x.dtype == np.uint8 else taken
    if depth > (1 if is_whole else 16):
        return _floating(x / depth, x.dtype), [f"pixels {low:g} to {high:g} ({x.dtype}) are divided by {depth:,}"]
    return _features(x)


def _features(x: NDArray) -> tuple[NDArray, list[str]]:
    low, high = float(x.min()), float(x.max())
    advice = ", but networks learn better from about -1 to 1" if max(-low, high) > LARGE else ""
    taken = [f"values from {low:.3g} to {high:.3g} are taken as they are{advice}"]
    return _floating(x, x.dtype), taken if low < 0 or high > 1 else []


def _floating(x: NDArray, saved: np.dtype) -> NDArray:
    """Doubles stay doubles; in the machine's own byte order."""
    return np.array(x, dtype=np.float64 if saved == np.float64 else np.float32)
