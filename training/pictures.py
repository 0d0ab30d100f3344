"""Pictures drawn by NumPy and Pillow alone, fast enough to be drawn during training.

In all of them blue is negative, white zero, red positive and black not finite.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELLS = 100  # that a grid shows at most
GRID_PIXELS = 400  # about the side of a grid
MAPS = 16  # that a layer shows at most
MAP_PIXELS, INPUT_PIXELS = 64, 128  # at most the side of a map, and of the picture it was made of
LABEL_PIXELS = 24  # the height of a line of text

# The palette: LEVELS shades to blue, white, LEVELS shades to red, then gray and black.
LEVELS = 126
BLUE, WHITE, RED = np.array([[33, 102, 172], [255, 255, 255], [178, 24, 43]])
SHADES = np.linspace(0, 1, LEVELS + 1)[1:, None]
PALETTE = (
    np.vstack([(WHITE + SHADES * (BLUE - WHITE))[::-1], WHITE, WHITE + SHADES * (RED - WHITE), [190] * 3, [0] * 3])
    .round()
    .astype(np.uint8)
)
GRAY, BLACK = len(PALETTE) - 2, len(PALETTE) - 1

CURVES = ("#0072B2", "#D55E00")  # two colors of Okabe and Ito's


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


def chart_by_layer(title: str, layers: Sequence[str], curves: Mapping[str, Mapping[str, float]]) -> Image.Image:
    """At most two curves over the layers on a logarithmic scale, each a mapping from some of the layers to values ≥ 0.

    What has no place on the scale (zero, NaN, ∞) stands as text at the bottom, and interrupts its curve.
    """
    logs = [math.log10(value) for curve in curves.values() for value in curve.values() if _on_scale(value)]
    low, high = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (-1, 0)
    high = max(high, low + 1)

    scale = 2  # drawn so many times larger, because Pillow draws edges without smoothing
    font, left, top, height = _font(13 * scale), 60 * scale, 62 * scale, 240 * scale
    gap = max(26, 420 // len(layers)) * scale
    names = max(int(font.getlength(layer)) for layer in layers) + 10 * scale
    bottom, right = top + height, left + gap * len(layers)
    unplaced = bottom + 4 * scale  # where the text for zero, NaN and ∞ begins; the names are below it
    foot = unplaced + 18 * scale * sum(not all(map(_on_scale, curve.values())) for curve in curves.values())
    width = max(right + 14 * scale, left + 420 * scale)
    canvas = Image.new("RGB", (width + width % 2, (foot + names) + (foot + names) % 2), "white")
    draw = ImageDraw.Draw(canvas)

    draw.text((left, 8 * scale), title, "black", font)
    every = math.ceil((high - low) / 8)
    for power in range(low, high + 1, every):
        y = bottom - height * (power - low) / (high - low)
        draw.line([(left, y), (right, y)], "#d0d0d0", scale)
        draw.text((left - 6 * scale, y), f"1e{power}", "black", font, anchor="rm")
    centers = {layer: left + gap * (i + 0.5) for i, layer in enumerate(layers)}
    for layer, x in centers.items():
        text = Image.new("RGB", (names, 18 * scale), "white")
        ImageDraw.Draw(text).text((names - 4 * scale, 9 * scale), layer, "black", font, anchor="rm")
        canvas.paste(text.rotate(90, expand=True), (round(x) - 9 * scale, foot))
    place = left
    for (name, curve), color in zip(curves.items(), CURVES, strict=False):
        draw.ellipse(_around(place + 5 * scale, 41 * scale, 4 * scale), color)
        draw.text((place + 14 * scale, 41 * scale), name, "black", font, anchor="lm")
        place += int(font.getlength(name)) + 40 * scale
        last = None
        for layer, x in centers.items():
            if layer not in curve:
                continue
            if not _on_scale(curve[layer]):
                draw.text((x, unplaced), f"{curve[layer]:g}", color, font, anchor="ma")
                last = None
                continue
            point = x, bottom - height * (math.log10(curve[layer]) - low) / (high - low)
            if last is not None:
                draw.line([last, point], color, 2 * scale)
            draw.ellipse(_around(*point, 4 * scale), color)
            last = point
        if not all(map(_on_scale, curve.values())):
            unplaced += 18 * scale
    return canvas.reduce(scale)


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


def _on_scale(value: float) -> bool:
    return 0 < value < math.inf


def _around(x: float, y: float, radius: int) -> tuple[float, float, float, float]:
    return x - radius, y - radius, x + radius, y + radius


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which has no Greek."""
    return ImageFont.load_default(size)
