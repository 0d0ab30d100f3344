"""A picture of the user's own, as a network reads it."""

from pathlib import Path

import numpy as np

from training.errors import UserError
from training.pictures import SIDE, Reading, as_bytes, on_white, open_picture, read_digit, resized

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
PREPARATIONS = {"mnist": "digit", "sample": "digit", "fashion-mnist": "picture", "images": "picture"}


def preparation_of(dataset_name: str) -> str:
    """How `read_picture` must prepare a picture for a network that was trained on this data set.

    Raises ValueError for a data set that is not one of pictures.
    """
    if dataset_name not in PREPARATIONS:
        raise UserError(
            f"a network trained on {dataset_name!r} reads no pictures; only those trained on "
            f"{', '.join(PREPARATIONS)} do, for others evaluate a data set"
        )
    return PREPARATIONS[dataset_name]


def read_picture(path: Path, preparation: str) -> Reading:
    """The picture at `path`, of any size and color, as a network reads it: 28x28 bytes, row by row.

    "digit" finds the digit and prepares it as MNIST's authors did (training/pictures/digit.py). "picture" lays
    transparency on white, turns it grey and resizes it. A camera's rotation is obeyed.

    Raises UserError if the file is no picture, or for a digit if there is nothing on it; ValueError for another
    `preparation`.
    """
    if preparation not in ("digit", "picture"):
        raise ValueError(f"preparation is {preparation!r}; use 'digit' or 'picture'")
    if preparation == "digit":
        return read_digit(path)
    grey = np.asarray(on_white(open_picture(path)).convert("L"), dtype=np.float64)
    return Reading(as_bytes(resized(grey, SIDE, SIDE))[None])
