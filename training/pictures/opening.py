"""Files of phones, scanners and drawing programs, as pixels."""

import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, ImageStat

from training.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, TypeError, MemoryError)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
FRAMES = 100  # of an animation: what comes later is left out
TWO_TONED = 40  # of 255: the spread of grey from which what is opaque is a sheet with ink, not ink alone

Grey = NDArray[np.float64]  # (height, width), 0 black to 255 white


def open_picture(path: Path, richest: bool = False) -> Image.Image:
    """The picture at `path`, turned as the camera says; mode L, RGB, LA or RGBA. With `richest` an animation's frame
    that shows most, else its first.

    Raises UserError if the file is no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files: what it can read is good enough
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                # A phone's JPEG may hold a preview too (MPO): that is no animation.
                animated = richest and file.format != "MPO" and getattr(file, "n_frames", 1) > 1
                return _plain(_richest(file) if animated else file)
    except BOMB:
        raise UserError(f"{path} is too large a picture to open; scale it down to less than 80 megapixels") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a picture ({', '.join(FORMATS)})") from None
    except BROKEN as error:
        raise UserError(
            f"{path} cannot be read as a picture ({error}); use a sound {', '.join(FORMATS)} file"
        ) from error


def _richest(file: Image.Image) -> Image.Image:
    """The frame of most contrast: a drawing that grows is whole there, and a page that was left blank is not it."""
    frames = (frame.copy() for frame, _ in zip(ImageSequence.Iterator(file), range(FRAMES), strict=False))
    return max(frames, key=lambda frame: ImageStat.Stat(on_paper(_plain(frame)).convert("L")).stddev[0])


def _plain(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 bits per pixel and more
        values = np.asarray(image, dtype=np.float64)
        whole = 65535 if image.mode.startswith("I") else 255
        if values.max() > whole or (image.mode == "F" and values.max() <= 1):
            whole = values.max() or 1
        return Image.fromarray(np.clip(values * (255 / whole), 0, 255).astype(np.float32)).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def on_white(image: Image.Image) -> Image.Image:
    """Transparency laid on white."""
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def on_paper(image: Image.Image) -> Image.Image:
    """Transparency laid on what lets the ink be seen.

    What is opaque is the ink, of whatever color, and is then drawn black on white; or it is a sheet with ink of its
    own, and then no more than the sheet is kept.
    """
    if image.mode != "RGBA":
        return image
    alpha = np.asarray(image.getchannel("A"))
    opaque = alpha > alpha.max() / 2
    if alpha.min() == 255 or not opaque.any():
        return on_white(image)
    box = image.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox() or (0, 0, *image.size)
    inside = opaque[box[1] : box[3], box[0] : box[2]]
    grey = np.asarray(image.convert("L"))[opaque]
    low, high = np.quantile(grey, [0.01, 0.99])
    if inside.mean() > 0.7 and high - low > TWO_TONED:
        sheet = Image.new("RGBA", image.size, tuple(int(c) for c in np.median(np.asarray(image)[opaque], axis=0)))
        return Image.alpha_composite(sheet, image).crop(box).convert("RGB")
    return ImageOps.invert(image.getchannel("A"))
