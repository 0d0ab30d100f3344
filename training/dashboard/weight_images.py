"""Pictures drawn by NumPy and Pillow alone, fast enough to be drawn during training.

In all of them vermilion is negative, white zero, blue positive and black not finite.
"""

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from training.dashboard.figures import BLUE, VERMILION

CELLS = 100  # that a grid shows at most
GRID_PIXELS = 400  # about the side of a grid
MAPS = 16  # that a layer shows at most
MAP_PIXELS, INPUT_PIXELS = 64, 128  # at most the side of a map, and of the picture it was made of
LABEL_PIXELS = 24  # the height of a line of text

# The palette: LEVELS shades to vermilion, white, LEVELS shades to blue, then gray and black.
LEVELS = 126
DOWN, WHITE, UP = (np.array(ImageColor.getrgb(color)) for color in (VERMILION, "white", BLUE))
SHADES = np.linspace(0, 1, LEVELS + 1)[1:, None]
PALETTE = (
    np.vstack([(WHITE + SHADES * (DOWN - WHITE))[::-1], WHITE, WHITE + SHADES * (UP - WHITE), [190] * 3, [0] * 3])
    .round()
    .astype(np.uint8)
)
GRAY, BLACK = len(PALETTE) - 2, len(PALETTE) - 1


def weight_pictures(weights: Tensor, shape: tuple[int, ...], columns: int | None = None, line: int = 2) -> Image.Image:
    """Weights (neurons, height·width) as one picture: a grid of the first 100 neurons' weights.

    One scale for all. Without `columns` the grid has about as many as it has rows. Lines have `line` pixels.
    """
    w = _floats(weights[:CELLS]).reshape(-1, *shape)
    shades, _ = _shades(w)
    columns = columns or math.ceil(math.sqrt(len(w)))
    rows = math.ceil(len(w) / columns)
    zoom = max(1, GRID_PIXELS // (columns * max(shape)))
    height, width = (side * zoom + line for side in shape)
    cells = np.full((rows * columns, height, width), GRAY, np.uint8)
    cells[: len(w), line:, line:] = shades.repeat(zoom, axis=1).repeat(zoom, axis=2)
    grid = cells.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    picture = Image.fromarray(np.pad(grid, (0, line), constant_values=GRAY))
    picture.putpalette(PALETTE.tobytes())
    return picture


def filter_pictures(kernels: Tensor) -> Image.Image:
    """Kernels (C_out, C_in, height, width) as one picture: a grid with a cell for each output and input channel.

    The C_in cells of an output lie side by side, and outputs are shown whole: as many as 100 cells hold.
    """
    _, inputs, height, width = kernels.shape
    shown = kernels[: max(1, CELLS // inputs), :CELLS].flatten(0, 1)
    columns = min(inputs, CELLS) * math.ceil(math.sqrt(len(shown)) / inputs)
    return weight_pictures(shown.flatten(1), (height, width), columns, line=6)  # kernels have few, large pixels


def feature_maps(picture: Tensor, maps: Mapping[str, Tensor]) -> Image.Image:
    """A picture (channels, height, width), and under it, for each layer, a row of the first 16 of its maps (C, H, W).

    A layer's maps have one scale, which its label names. The picture is shown in its own colors: three channels as
    red, green and blue, any other number side by side in gray; bytes as they are, other numbers from the least to the
    greatest.
    """
    rows = [("the first test example", _as_seen(picture), INPUT_PIXELS)]
    for name, tensor in maps.items():
        shown = _floats(tensor[:MAPS])
        shades, full = _shades(shown)
        channels, height, width = tensor.shape
        which = f"{len(shown)} of {channels} channels" if channels > len(shown) else f"{channels} channels"
        rows.append((f"{name}:  {which}, {height}x{width}, full color at {full:.3g}", PALETTE[shades], MAP_PIXELS))
    strips = [(label, _cells(colors, side)) for label, colors, side in rows]

    font, top, gray = _font(15), 0, tuple(PALETTE[GRAY].tolist())
    widths = [max(len(cells) * (cells[0].width + 2) + 2, int(font.getlength(label)) + 4) for label, cells in strips]
    height = sum(LABEL_PIXELS + cells[0].height + 4 for _, cells in strips)
    canvas = Image.new("RGB", (max(widths), height), "white")
    draw = ImageDraw.Draw(canvas)
    for label, cells in strips:
        draw.text((2, top + 4), label, "black", font)
        top += LABEL_PIXELS
        width, height = cells[0].size
        draw.rectangle((0, top, len(cells) * (width + 2) + 1, top + height + 3), gray)
        for i, cell in enumerate(cells):
            canvas.paste(cell, (i * (width + 2) + 2, top + 2))
        top += height + 4
    return canvas


def _shades(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Indices into PALETTE, and what has the full color: the 99th percentile of |value|, so that a few extremes do not
    leave the rest pale, or where that is zero the maximum. The scale is symmetric about zero.
    """
    finite = np.isfinite(values)
    sizes = np.abs(values[finite]) if finite.any() else np.zeros(1)
    full = float(np.quantile(sizes, 0.99) or sizes.max())
    with np.errstate(over="ignore"):
        depth = np.clip(np.where(finite, values, 0) / (full or 1), -1, 1)
    return np.where(finite, LEVELS + np.round(LEVELS * depth), BLACK).astype(np.uint8), full


def _as_seen(picture: Tensor) -> np.ndarray:
    """(channels, height, width) as colors (pictures, height, width, 3): one picture if there are three channels."""
    values = _floats(picture)
    if picture.is_floating_point():
        finite = np.isfinite(values)
        least = values[finite].min() if finite.any() else 0.0
        values = np.clip(np.where(finite, values, least), -1e38, 1e38)
        values = 255 * (values - values.min()) / (np.ptp(values) or 1)
        values[~finite] = 0
    colors = values.round().astype(np.uint8)
    return colors.transpose(1, 2, 0)[None] if len(colors) == 3 else colors[..., None].repeat(3, axis=3)


def _cells(colors: np.ndarray, side: int) -> list[Image.Image]:
    """Colors (n, height, width, 3) as n pictures, enlarged or thinned out to about `side` pixels."""
    step = math.ceil(max(colors.shape[1:3]) / side)
    colors = colors[:, ::step, ::step]
    height, width = colors.shape[1:3]
    zoom = side // max(height, width)
    return [Image.fromarray(c).resize((width * zoom, height * zoom), Image.Resampling.NEAREST) for c in colors]


def _floats(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which has no Greek."""
    return ImageFont.load_default(size)
