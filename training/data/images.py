"""A picture of the user's own, as a network reads it."""

import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from training.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
PREPARATIONS = {"mnist": "digit", "sample": "digit", "fashion-mnist": "picture", "images": "picture"}
SIDE, DIGIT_SIDE, CENTER = 28, 20, 14  # MNIST's digits fill 20x20 pixels, their center of mass is in row and column 14
FAINT = 64  # of 255: fainter ink, such as JPEG's noise around a stroke, does not count for the bounding box
LARGE = 512  # pixels: a photograph's grain averages out when it is first scaled down to this
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, TypeError, MemoryError)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Grey = NDArray[np.float64]  # (height, width), 0 black to 255 white


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


def read_picture(path: Path, preparation: str) -> Tensor:
    """The picture at `path`, of any size and color, as the (784,) bytes that a network reads: 28x28, row by row.

    "digit" does what MNIST's authors did: the paper becomes 0 and the ink up to 255, whichever of them is the brighter;
    the ink's bounding box is scaled to 20 pixels on its longer side and its center of mass put in the middle.
    "picture" turns it grey and resizes it to 28x28.

    Transparency is laid on white and a camera's rotation is obeyed. Raises UserError if the file is no picture, or for
    a digit if there is nothing on it; ValueError for another `preparation`.
    """
    if preparation not in ("digit", "picture"):
        raise ValueError(f"preparation is {preparation!r}; use 'digit' or 'picture'")
    grey = _read_grey(path)
    if preparation == "digit":
        return _bytes(_like_mnist(_ink(grey, path)))
    return _bytes(_resize(grey, SIDE, SIDE))


def _read_grey(path: Path) -> Grey:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files: what it can read is good enough
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                image = ImageOps.exif_transpose(file)
                if image.mode.startswith("I"):  # 16 bits per pixel
                    return np.asarray(image, dtype=np.float64) / 257
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                return np.asarray(image.convert("L"), dtype=np.float64)
    except BOMB:
        raise UserError(f"{path} is too large a picture to open; scale it down to less than 80 megapixels") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a picture ({', '.join(FORMATS)})") from None
    except BROKEN as error:
        raise UserError(
            f"{path} cannot be read as a picture ({error}); use a sound {', '.join(FORMATS)} file"
        ) from error


def _ink(grey: Grey, path: Path) -> Grey:
    """How much ink is at each pixel, 0 to 255: the distance from the paper, less the paper's own unevenness.

    The paper is the plane that fits most of the border's pixels, so light may fall off to one side; the ink is what
    lies far on one side of that plane, which the sign of the third moment tells.
    """
    shrink = min(1, LARGE / max(grey.shape))
    height, width = (max(1, round(side * shrink)) for side in grey.shape)
    grey = _resize(grey, height, width)
    y, x = np.indices(grey.shape)
    border = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    plane = np.stack([np.ones(grey.shape), y / height, x / width], axis=-1)

    level, spread = _level_and_spread(grey[border])
    paper = border & (abs(grey - level) <= spread)
    coefficients, *_ = np.linalg.lstsq(plane[paper], grey[paper], rcond=None)
    ink = grey - plane @ coefficients
    if (ink**3).mean() < 0:
        ink = -ink
    _, noise = _level_and_spread(ink[border])
    if ink.max() < noise + 8:
        raise UserError(f"{path} shows nothing that stands out from its background; use a picture of a digit")
    return _stretch(np.clip(ink - noise, 0, None))


def _level_and_spread(values: Grey) -> tuple[float, float]:
    """The median, and the robust counterpart of three standard deviations: at least half of the values are within."""
    level = np.median(values)
    return float(level), float(3 * 1.4826 * np.median(abs(values - level)))


def _stretch(ink: Grey) -> Grey:
    """Scale so that full strokes reach 255, without letting a single bright pixel decide."""
    strokes = ink[ink > ink.max() / 2]
    return np.clip(ink * (255 / np.quantile(strokes, 0.8)), 0, 255)


def _like_mnist(ink: Grey) -> Grey:
    """Crop to the ink, scale the longer side to 20 pixels, and place it in 28x28 by its center of mass."""
    rows = np.flatnonzero((ink > FAINT).any(axis=1))
    columns = np.flatnonzero((ink > FAINT).any(axis=0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = DIGIT_SIDE / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    digit = _stretch(_resize(digit, height, width))

    top, left = (
        int(np.clip(round(CENTER - (digit.sum(axis=1 - axis) @ np.arange(side)) / digit.sum()), 0, SIDE - side))
        for axis, side in enumerate(digit.shape)
    )
    canvas = np.zeros((SIDE, SIDE))
    canvas[top : top + height, left : left + width] = digit
    return canvas


def _resize(grey: Grey, height: int, width: int) -> Grey:
    """Resample with antialiasing."""
    image = Image.fromarray(grey.astype(np.float32)).resize((width, height), Image.Resampling.HAMMING)
    return np.asarray(image, dtype=np.float64)


def _bytes(grey: Grey) -> Tensor:
    return torch.from_numpy(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).flatten()
