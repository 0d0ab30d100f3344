"""Ink on paper: how much of it is at each pixel, whatever its color, the paper's, and the light on it."""

from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

T = TypeVar("T", np.float32, np.float64, np.bool_)
Map = NDArray[np.float64]  # (height, width)
STROKE = 0.4  # of the longer side: no stroke is as thick, and the paper is seen through a window of that size
GRAIN = 4  # pixels after which grain has nothing to do with itself
FAR = 32  # pixels of the longer side where only light and paper are to be seen
COARSE = 4  # pixels that count as one where the paper is looked at
SAMPLE = 2000  # pixels that the surface is fitted to


def brightness_of(rgb: NDArray[np.float64]) -> Map:
    """The colors of (height, width, 3), from 0 to 1, as one number, by which the ink differs most from the paper. The
    ink is probably what has the lower number; to look for light ink on dark paper the numbers are then negative."""
    away = rgb - _surface(rgb)
    strength = np.linalg.norm(away, axis=-1)
    strong = away[strength >= 0.6 * np.quantile(strength, 0.995)]
    axis = np.linalg.svd(strong, full_matrices=False)[2][0]
    axis *= np.sign(axis[abs(axis).argmax()]) / abs(axis).sum()
    value = rgb @ axis
    light_ink = _skewness(away @ axis) + _skewness(_from_median(value)) > 0
    return -value if light_ink else value


def ink_of(brightness: Map) -> tuple[Map, float]:
    """How much darker each pixel is than the paper around it, and the grain's standard deviation in the same unit."""
    paper = _closed(brightness, round(STROKE * max(brightness.shape)))
    ink = paper - brightness
    if brightness.min() >= 0:  # dark on light: shadows multiply
        ink = ink / np.maximum(paper, 0.1)
    differences = [np.median(abs(a[GRAIN:] - a[:-GRAIN])) for a in (ink, ink.T) if len(a) > GRAIN]
    return ink - np.quantile(ink, 0.25), float(1.4826 / np.sqrt(2) * min(differences))


def _skewness(off: Map) -> float:
    """Of what lies off the paper; the edge counts most, as there is paper all around a digit."""
    y, x = (abs(np.linspace(-1, 1, n)) for n in off.shape)
    weight = np.maximum(y[:, None], x[None, :])
    return float((weight * off**3).sum() / max((weight * off**2).sum(), 1e-12) ** 1.5 * weight.sum() ** 0.5)


def _from_median(value: Map) -> Map:
    """Each pixel less the median of the large window around it, which knows a shadow's edge; from afar."""
    scale = FAR / max(value.shape)
    far = tuple(max(1, round(side * scale)) for side in value.shape[::-1])
    small = np.asarray(Image.fromarray(value.astype(np.float32)).resize(far, Image.Resampling.BOX))
    size = tuple(max(1, round(0.6 * side)) for side in small.shape)
    medians = np.median(sliding_window_view(small, size), axis=(2, 3))
    rows, columns = (
        np.clip(np.arange(side) - window // 2, 0, side - window) for side, window in zip(small.shape, size, strict=True)
    )
    return (small - medians[np.ix_(rows, columns)]).astype(np.float64)


def _surface(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quadratic surface that most pixels lie on, for each color: light that falls off, or a lens."""
    height, width, _ = rgb.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    every = max(1, len(terms) // SAMPLE)
    known, values = terms[::every], rgb.reshape(-1, 3)[::every]
    distance = np.linalg.norm(values - np.median(values, axis=0), axis=1)
    for _ in range(10):
        scale = max(2 * float(np.median(distance)), 0.01)
        weight = 1 / (1 + (distance / scale) ** 2)[:, None]
        damped = known.T @ (weight * known) + np.diag([0, 1, 1, 1, 1, 1]) * 1e-3 * len(known)
        found = np.linalg.solve(damped, known.T @ (weight * values))
        distance = np.linalg.norm(values - known @ found, axis=1)
    return (terms @ found).reshape(rgb.shape)


def _closed(value: Map, window: int) -> Map:
    """What is dark and narrower than `window` filled with what is around it; from afar, as paper is smooth."""
    height, width = value.shape
    far = tuple(max(1, side // COARSE) for side in (width, height))
    small = np.asarray(Image.fromarray(value.astype(np.float32)).resize(far, Image.Resampling.BOX))
    half = max(1, window // COARSE // 2)
    closed = -highest(-highest(small, half, half), half, half)
    smooth = Image.fromarray(closed).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(smooth, dtype=np.float64)


def highest(values: NDArray[T], rows: int, columns: int) -> NDArray[T]:
    """The largest value that is at most so many rows and columns away from each pixel."""
    for axis, reach in enumerate((rows, columns)):
        least = -np.inf if np.issubdtype(values.dtype, np.floating) else False
        edge = [(reach, reach) if axis == i else (0, 0) for i in range(2)]
        values = np.moveaxis(np.pad(values, edge, constant_values=least), axis, 0)
        seen = 1
        while seen < 2 * reach + 1:
            more = min(seen, 2 * reach + 1 - seen)
            values = np.maximum(values[:-more], values[more:])
            seen += more
        values = np.moveaxis(values, 0, axis)
    return values
