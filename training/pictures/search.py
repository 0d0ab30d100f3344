"""Where in a picture a digit is."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from training.pictures.lines import is_box, without_lines
from training.pictures.paper import Map, brightness_of, highest, ink_of
from training.pictures.parts import Mask, Part, box_of, parts_of

SMALLEST, LARGEST = 160, 256  # pixels of the longer side at which a picture is looked at
MOST = 0.45  # of the picture is ink: more may be the paper
FULL = 0.6  # of black: less may be light on dark paper, not ink
NEAR = 0.45  # of the picture: a smaller digit is looked at from near
FAINTEST = 0.04  # of black: less is no ink
BOX = "this looks like a sheet or a box"


@dataclass(frozen=True)
class Found:
    """A digit's ink and its pixels in the picture it was found in."""

    ink: Map
    digit: Mask
    doubts: tuple[str, ...]
    touched: bool  # a frame that was taken away

    @property
    def size(self) -> int:
        top, left, bottom, right = box_of(self.digit)
        return max(bottom - top, right - left)

    @property
    def level(self) -> float:
        return _level(np.where(self.digit, self.ink, 0))

    @property
    def is_plain(self) -> bool:
        """Whether it is as a digit should be, with paper around it."""
        return not self.doubts and not self.at_edge and float(self.digit.mean()) <= MOST

    @property
    def at_edge(self) -> bool:
        """Whether it goes to the edge of the picture."""
        return bool(self.digit[[0, -1]].any() or self.digit[:, [0, -1]].any())

    def may_replace(self, other: "Found") -> bool:
        """Whether it is no hole in what was found with paper and ink the other way round."""
        within = box_of(self.digit | other.digit) == box_of(other.digit)
        apart = not within and (other.at_edge or self.level > 2 * other.level)
        least = 0.1 if BOX in other.doubts else 0.6 if other.digit.mean() > MOST or apart else 0.9
        darker = 1.0 if other.is_plain else 0.5
        return self.size > least * other.size and self.level > darker * other.level

    @property
    def cut(self) -> Map:
        """The bounding box's ink, from 0 to 1."""
        top, left, bottom, right = box_of(self.digit)
        around = np.where(highest(self.digit, 2, 2), self.ink, 0)[top:bottom, left:right]
        return np.clip(around / _level(around), 0, 1)


def find(image: Image.Image) -> Found | None:
    """From afar, and then, if the digit is small there, once more from near."""
    found, scale = _look(image)
    if found is None:
        return None
    top, left, bottom, right = box_of(found.digit)
    size = found.size
    if scale < 0.9 and size < NEAR * max(found.digit.shape) and not found.doubts:
        box = (left - size / 4, top - size / 4, right + size / 4, bottom + size / 4)
        limits = image.size * 2
        whole = [int(np.clip(edge / scale, 0, limit)) for edge, limit in zip(box, limits, strict=True)]
        near, _ = _look(image.crop((whole[0], whole[1], whole[2], whole[3])))
        return near if near is not None and not near.doubts else found
    return found


def _look(image: Image.Image) -> tuple[Found | None, float]:
    """What is found in the picture as a whole, and by how much it was scaled for that."""
    scale = float(np.clip(1, SMALLEST / max(image.size), LARGEST / max(image.size)))
    width, height = (max(1, round(side * scale)) for side in image.size)
    method = Image.Resampling.HAMMING if scale < 1 else Image.Resampling.BICUBIC
    small = image.convert("RGB").resize((width, height), method)
    if scale <= 1:  # else the scaling was blur enough
        small = small.filter(ImageFilter.BoxBlur(1))
    brightness = brightness_of(np.asarray(small, dtype=np.float64) / 255)
    likely = _seen(brightness)
    if likely is None or not likely.is_plain or likely.level < FULL:  # is the ink what was taken for paper?
        other = _seen(-brightness)
        if other is not None and other.is_plain and (likely is None or other.may_replace(likely)):
            return other, scale
    return likely, scale


def _seen(brightness: Map) -> Found | None:
    """The digit of dark ink, if there is one."""
    ink, noise = ink_of(brightness)
    level = _level(ink)
    if level < max(6 * noise, FAINTEST):
        return None
    ink, touched = without_lines(ink, max(4 * noise, 0.2 * level, FAINTEST / 2))
    pieces = _pieces(ink, noise)
    if not pieces:
        return None
    digit, doubts = _choose(pieces)
    return Found(ink, digit, doubts, touched)


def _level(ink: Map) -> float:
    """How much ink a full stroke has."""
    top = float(np.quantile(ink, 0.999))
    strokes = ink[ink >= 0.5 * top]
    return float(np.quantile(strokes, 0.7)) if strokes.size else 0.0


def _pieces(ink: Map, noise: float) -> list[Part]:
    """The parts that are dark somewhere, without specks, frames and what lies along the edge."""
    for _ in range(2):
        level = _level(ink)
        weak, strong = ink > max(0.35 * level, 4 * noise), ink > max(0.6 * level, 5 * noise)
        parts = [part for part in parts_of(weak, least=8) if (part.mask & strong).any()]
        no_rings = [part for part in parts if not _is_ring(part, parts)]
        kept = [part for part in no_rings if not _along_edge(part)]
        if not kept:
            return no_rings
        if len(kept) == len(parts):
            return kept
        ink = np.where(np.any([part.mask for part in kept], axis=0), ink, 0)
    return kept


def _is_ring(part: Part, parts: list[Part]) -> bool:
    """Whether there is something large inside."""
    return any(part.holds(other) and other.height > 0.3 * part.height for other in parts)


def _along_edge(part: Part) -> bool:
    """Whether it lies in the picture's margin."""
    height, width = part.mask.shape
    if not part.at_edge:
        return False
    ring = round(0.12 * max(height, width))
    inner = part.mask[ring : height - ring, ring : width - ring]
    return bool(inner.sum() < 0.25 * part.area)


def _choose(pieces: list[Part]) -> tuple[Mask, tuple[str, ...]]:
    """The digit's pixels, and what speaks against there being just one digit."""
    main = pieces[0]
    digit, others = main.mask.copy(), 0
    for piece in pieces[1:]:
        apart = max(piece.left - main.right, main.left - piece.right, piece.top - main.bottom, main.top - piece.bottom)
        if piece.height > 0.5 * main.height and apart > 0.015 * main.size:
            others += 1
        elif apart < 0.2 * main.size and piece.area > 0.02 * main.area and (main.at_edge or not piece.at_edge):
            digit |= piece.mask
    doubts: tuple[str, ...] = ()
    if others:
        doubts = (f"this looks like {'two' if others == 1 else others + 1} digits",)
    elif main.width > 1.6 * main.height:
        doubts = ("this is wider than a digit",)
    elif is_box(main):
        doubts = (BOX,)
    return digit, doubts
