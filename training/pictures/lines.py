"""Frames, ruled and squared paper: lines that are no strokes, taken away without what crosses them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.pictures.paper import Map, highest
from training.pictures.parts import Mask, Part, box_of, parts_of

SPANS = 0.8  # of the picture: no stroke of a digit with paper around it is as long
THIN = 0.06  # of the picture's height, or width
ANGLES = np.arange(-6, 6.1, 0.5)  # degrees by which a sheet may lie askew
UNEASY = 0.04  # a degree: so much more of the picture's width must the lines span, to be turned by it
TOUCHING = 3  # times as dark as the faintest ink is what joins a stroke to a frame
WALL = 0.3  # of a frame's side


def without_lines(ink: Map, least: float) -> tuple[Map, bool]:
    """`ink` without frames and lines, where what is above `least` is taken for ink, and whether a frame that touches
    strokes was taken away."""
    ink, touched = _straightened(ink, least), False
    for part in parts_of(ink > least, least=ink.size // 500):
        if (walls := _walls(part)) is not None:
            inside = _inside(part, walls)
            joined = parts_of(ink > TOUCHING * least, least=part.size)
            touched |= any(dark.size > 0.9 * part.size and bool((dark.mask & inside).any()) for dark in joined)
            ink = np.where(highest(part.mask, 2, 2) & ~highest(inside, 1, 1), np.minimum(ink, 0), ink)
    mask = ink > least
    rows = _lines(mask)
    columns = _lines(mask.T).T
    lines = highest(rows, 1, 0) | highest(columns, 0, 1)
    strokes = mask & ~lines
    crossed = (_kept(strokes, rows) | _kept(strokes.T, columns.T).T) & mask
    return np.where(lines & ~crossed, np.minimum(ink, 0), ink), touched


def is_box(part: Part) -> bool:
    """Whether all four sides are straight."""
    return min(part.cut.shape) >= 12 and all(_straight(side).mean() >= 0.55 for side in _sides(part))


def _sides(part: Part) -> list[Mask]:
    """The part with its top, left, bottom and right side on top."""
    return [np.rot90(part.cut, -turns) for turns in range(4)]


def _straight(side: Mask) -> Mask:
    """Which of its columns begin at the top."""
    return side[: max(1, round(0.03 * len(side))) + 1].max(axis=0)


def _walls(part: Part) -> list[int] | None:
    """How thick the part is at the top, left, bottom and right, if it is a frame: hollow, with four straight sides."""
    if not is_box(part) or part.cut.mean() > 0.75:
        return None
    walls = []
    for side in _sides(part):
        depth = max(1, round(0.03 * len(side)))
        below = side[depth:, _straight(side)]
        ends = np.where(below.all(axis=0), len(below), (~below).argmax(axis=0)) + depth
        walls.append(int(np.quantile(ends, 0.4)))
        if walls[-1] > WALL * len(side):
            return None
    return walls


def _inside(part: Part, walls: list[int]) -> Mask:
    """What of a frame's part lies inside of its walls, and is no rest of its corners."""
    top, left, bottom, right = (wall + 3 for wall in walls)  # the blur of its edge too
    hole = np.zeros_like(part.mask)
    hole[part.top + top : part.bottom - bottom, part.left + left : part.right - right] = True
    found = np.zeros_like(part.mask)
    for rest in parts_of(part.mask & hole):
        corner = rest.size < 0.4 * min(part.height, part.width)
        if rest.size > 0.15 * max(part.height, part.width) and not corner:
            found |= rest.mask
    return found


def _straightened(ink: Map, least: float) -> Map:
    """Turned so that long straight lines lie level, if there are any."""
    mask = ink > least
    if not mask.any():
        return ink
    top, left, bottom, right = box_of(mask)
    small = Image.fromarray((mask[top:bottom, left:right] * 255).astype(np.uint8))
    valid = Image.new("L", small.size, 255)
    best, best_score = 0.0, 0.0
    for angle in sorted(ANGLES, key=abs):
        turned, there = (np.asarray(i.rotate(angle, Image.Resampling.NEAREST)) > 0 for i in (small, valid))
        spanned = max(_spanned(turned, there), _spanned(turned.T, there.T))
        score = spanned - UNEASY * abs(angle)
        if angle == 0 or (spanned >= SPANS and score > best_score):
            best, best_score = float(angle), score
    if best == 0:
        return ink
    return np.asarray(Image.fromarray(ink.astype(np.float32)).rotate(best, Image.Resampling.BILINEAR), dtype=np.float64)


def _spanned(mask: Mask, there: Mask) -> float:
    """How much of the picture's width the fullest of its rows has."""
    wide = there.sum(axis=1)
    return float((mask.sum(axis=1) / np.maximum(wide, 1))[wide > 0.7 * mask.shape[1]].max(initial=0))


def _lines(mask: Mask) -> Mask:
    """The rows of the mask that are lines from one side of the picture to the other, and thin."""
    ends = max(1, mask.shape[1] // 16)
    full = highest(mask, 1, 1).mean(axis=1) >= SPANS
    full &= (highest(mask[:, :ends], 1, ends) & highest(mask[:, -ends:], 1, ends)).max(axis=1)
    limit = max(3, round(THIN * len(mask)) + 2)
    lines = np.zeros_like(mask)
    for first, stop in _spans(full):
        at_edge = first == 0 or stop == len(mask)
        if stop - first <= limit * (2 if at_edge else 1):
            lines[first:stop] = True
    return lines


def _spans(rows: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The first row of each group that is set, and the one behind it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _kept(strokes: Mask, lines: NDArray[np.bool_]) -> Mask:
    """Where strokes go through a line: there are some above it and below."""
    kept = np.zeros_like(strokes)
    for first, stop in _spans(lines.max(axis=1)):
        reach = stop - first
        if first < 3 or stop + 3 > len(strokes):
            continue  # there is nothing on the other side
        above, below = strokes[first - 3 : first - 1].max(axis=0), strokes[stop + 1 : stop + 3].max(axis=0)
        both = highest(above[None], 0, reach) & highest(below[None], 0, reach)
        kept[first - 1 : stop + 1] = both
    return kept
