"""What hangs together in a mask."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """Pixels that hang together, also at corners: `mask` is as large as the picture."""

    mask: Mask
    top: int
    left: int
    bottom: int  # the first row below
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @property
    def size(self) -> int:
        return max(self.height, self.width)

    @property
    def cut(self) -> Mask:
        """The mask within the bounding box."""
        return self.mask[self.top : self.bottom, self.left : self.right]

    @property
    def at_edge(self) -> bool:
        """Whether it goes to the edge of the picture."""
        return 0 in (self.top, self.left) or self.bottom == len(self.mask) or self.right == self.mask.shape[1]

    def holds(self, other: "Part") -> bool:
        """Whether the bounding box has the other's inside."""
        rows = self.top < other.top and other.bottom < self.bottom
        return rows and self.left < other.left and other.right < self.right


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def parts_of(mask: Mask, least: int = 1) -> list[Part]:
    """The parts of at least so many pixels, the largest first."""
    numbers = _numbered(mask)
    found, counts = np.unique(numbers[mask], return_counts=True)
    largest_first = [
        n for count, n in sorted(zip(counts.tolist(), found.tolist(), strict=True))[::-1] if count >= least
    ]
    return [Part(part, *box_of(part)) for part in (numbers == n for n in largest_first)]


def _numbered(mask: Mask) -> NDArray[np.int64]:
    """A number above 0 for each part, at its pixels.

    Every set pixel has a number of its own at first. Of two neighbors both take the larger number, and so do the
    pixels whose numbers they had, until nothing changes.
    """
    number = np.full((mask.shape[0] + 1, mask.shape[1] + 2), -1)  # a margin below and at the sides
    number[:-1, 1:-1][mask] = np.arange(mask.sum())
    here = number[:-1, 1:-1][mask]
    around = ((0, 1), (1, -1), (1, 0), (1, 1))
    there = [number[y : y + mask.shape[0], 1 + x : 1 + x + mask.shape[1]][mask] for y, x in around]
    a, b = np.concatenate([here] * len(there)), np.concatenate(there)
    a, b = a[b >= 0], b[b >= 0]
    of = np.arange(len(here))
    while True:
        before, larger = of.copy(), np.maximum(of[a], of[b])
        np.maximum.at(of, before[a], larger)
        np.maximum.at(of, before[b], larger)
        while not np.array_equal(of, of[of]):
            of = of[of]
        if np.array_equal(of, before):
            numbers = np.zeros(mask.shape, np.int64)
            numbers[mask] = of + 1
            return numbers
