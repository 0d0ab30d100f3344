"""A picture of a digit, prepared as MNIST's authors prepared theirs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.errors import UserError
from training.pictures.opening import on_paper, open_picture
from training.pictures.paper import Map, highest
from training.pictures.parts import box_of
from training.pictures.search import find

SIDE, DIGIT_SIDE, CENTER = 28, 20, 14  # MNIST's digits fill 20x20 pixels, their center of mass is in row and column 14
FAINT = 64  # of 255: fainter ink, such as JPEG's noise around a stroke, does not count for the bounding box
TURNS = (0.0, -8.0, 8.0)  # degrees
PENS = (0.0, -0.02, 0.03)  # of the digit's size, by which the strokes grow on each side


@dataclass(frozen=True)
class Reading:
    """What a network is given of a picture: `views` (V, 784) bytes, the first as it is and the others a little turned,
    with a finer and a broader pen. `doubts` says why its answer may be about something else."""

    views: Tensor
    doubts: tuple[str, ...] = ()


def read_digit(path: Path) -> Reading:
    """Raises UserError if the file is no picture or shows nothing."""
    image = on_paper(open_picture(path, richest=True))
    if image.size == (SIDE, SIDE) and (ink := _as_mnists(np.asarray(image.convert("L"), dtype=np.float64))) is not None:
        return Reading(as_bytes(_like_mnist(ink))[None])
    found = find(image)
    if found is None:
        raise UserError(f"{path} shows nothing that stands out from its background; use a picture of a digit")
    doubts = (*found.doubts, "it touches a frame, which was taken away") if found.touched else found.doubts
    return Reading(torch.stack([as_bytes(view) for view in _views(found.cut)]), doubts)


def _as_mnists(grey: Map) -> Map | None:
    """The ink of a picture that is like MNIST's own: plain paper around it."""
    border = np.concatenate([grey[[0, -1]].ravel(), grey[:, [0, -1]].ravel()])
    paper = np.median(border)
    plain = abs(border - paper).max() <= 2 and (abs(grey - paper) <= 2).mean() > 0.4
    return _stretch(abs(grey - paper)) if plain and abs(grey - paper).max() >= 64 else None


def _views(found: Map) -> list[Map]:
    """The digit as it is, and a little turned, with a finer and a broader pen."""
    side = 80
    scale = side / max(found.shape)
    height, width = (max(1, round(n * scale)) for n in found.shape)
    digit = np.pad(resized(found, height, width), 20)
    views = []
    for pen in PENS:
        drawn = _drawn(digit, pen)
        for turn in TURNS:
            turned = Image.fromarray(drawn.astype(np.float32)).rotate(turn, Image.Resampling.BILINEAR)
            views.append(_like_mnist(255 * np.asarray(turned, dtype=np.float64)))
    return views


def _drawn(digit: Map, pen: float) -> Map:
    """With strokes that are thicker by twice this part of the digit's size."""
    grown_by = round(abs(pen) * max(digit.shape))
    if grown_by == 0:
        return digit
    drawn = highest(digit, grown_by, grown_by) if pen > 0 else -highest(-digit, grown_by, grown_by)
    return drawn if (drawn > 0.5).any() else digit


def _stretch(ink: Map) -> Map:
    """Scale so that full strokes reach 255, without letting a single bright pixel decide."""
    strokes = ink[ink > ink.max() / 2]
    return np.clip(ink * (255 / np.quantile(strokes, 0.8)), 0, 255)


def _like_mnist(ink: Map) -> Map:
    """Crop to the ink, scale the longer side to 20 pixels, and place it in 28x28 by its center of mass."""
    top, left, bottom, right = box_of(ink > FAINT)
    digit = ink[top:bottom, left:right]
    scale = DIGIT_SIDE / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    digit = _stretch(resized(digit, height, width))
    top, left = (
        int(np.clip(round(CENTER - (digit.sum(axis=1 - axis) @ np.arange(side)) / digit.sum()), 0, SIDE - side))
        for axis, side in enumerate(digit.shape)
    )
    canvas = np.zeros((SIDE, SIDE))
    canvas[top : top + height, left : left + width] = digit
    return canvas


def resized(grey: Map, height: int, width: int) -> Map:
    """Resample with antialiasing."""
    image = Image.fromarray(grey.astype(np.float32)).resize((width, height), Image.Resampling.HAMMING)
    return np.asarray(image, dtype=np.float64)


def as_bytes(grey: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).flatten()
