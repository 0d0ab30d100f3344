"""How well predict.py reads digits as people draw, scan and photograph them: docs/pictures.md.

    python train.py --preset lenet5 --run-dir runs/lenet5
    python -m benchmarks.pictures --checkpoint runs/lenet5

Some minutes on one core. The digits are the first of MNIST's test set, which the project has with it.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from rich.progress import track

from benchmarks.readme import machine
from training.data import load, read_picture
from training.prediction import Trained, answer, load_trained
from training.terminal.output import command

DIGITS = 200
HIGH = 0.95
PAGE = Path(__file__).parent.parent / "docs" / "pictures.md"
HAND_MADE = "<!-- measured -->\n"  # what stands above it is written by hand

Pixels = NDArray[Any]
Color = tuple[int, int, int]
Draw = Callable[[Image.Image, np.random.Generator], Image.Image]


def written(digit: Image.Image, page: Image.Image, color: Color | int, at: tuple[int, int], side: int) -> Image.Image:
    """The page with the digit on it, in this color, so many pixels wide with MNIST's margin."""
    ink = digit.resize((side, side), Image.Resampling.BICUBIC)
    page.paste(Image.new(page.mode, ink.size, color), at, ink)
    return page


def lit(page: Image.Image, rng: np.random.Generator, light: Pixels, grain: float) -> Image.Image:
    """Photographed in this light, (height, width) from 0 to 1."""
    pixels = np.asarray(page.convert("RGB"), dtype=np.float64) * light[..., None]
    return Image.fromarray(np.clip(pixels + rng.normal(0, grain, pixels.shape), 0, 255).astype(np.uint8))


def across(page: Image.Image, rng: np.random.Generator) -> Pixels:
    """Pixels from the middle in some direction, as a part of the picture's width."""
    y, x = np.mgrid[0 : page.height, 0 : page.width] / page.width
    angle = rng.uniform(0, 2 * np.pi)
    along: Pixels = (x - x.mean()) * np.cos(angle) + (y - y.mean()) * np.sin(angle)
    return along


def frame(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    page = written(digit, Image.new("L", (280, 280), 255), 0, (0, 0), 280)
    box = (0, 0, 279, 279)
    ImageDraw.Draw(page).rectangle(box, outline=int(rng.integers(0, 120)), width=int(rng.integers(1, 20)))
    return page


def rounded_frame(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    page = written(digit, Image.new("RGB", (300, 300), "white"), (20, 20, 20), (30, 30), 240)
    off, radius, width = (int(rng.integers(*span)) for span in ((0, 12), (10, 70), (2, 14)))
    color = tuple(rng.integers(0, 200, 3).tolist())
    ImageDraw.Draw(page).rounded_rectangle((off, off, 299 - off, 299 - off), radius, outline=color, width=width)
    return page


def ruled(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    page = Image.new("RGB", (420, 380), (252, 252, 250))
    pen = ImageDraw.Draw(page)
    for y in range(int(rng.integers(0, 30)), 380, int(rng.integers(30, 90))):
        pen.line((0, y, 420, y), fill=(120, 150, 220), width=int(rng.integers(1, 4)))
    pen.line((50, 0, 50, 380), fill=(220, 90, 90), width=2)
    return written(digit, page, (25, 25, 60), (90, int(rng.integers(20, 100))), 260)


def squared(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    page = Image.new("RGB", (420, 420), (250, 250, 250))
    pen, gap, color = ImageDraw.Draw(page), int(rng.integers(14, 45)), tuple(rng.integers(120, 210, 3).tolist())
    for at in range(5, 420, gap):
        pen.line((0, at, 420, at), fill=color)
        pen.line((at, 0, at, 420), fill=color)
    return written(digit, page, (20, 30, 140), (60, 60), 300)


def photograph(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    page = Image.new("RGB", (600, 800), (225, 222, 215))
    written(digit, page, (60, 60, 70), (int(rng.integers(20, 220)), int(rng.integers(20, 420))), 360)
    page = page.rotate(float(rng.uniform(-5, 5)), Image.Resampling.BICUBIC, fillcolor=(225, 222, 215))
    return lit(page, rng, 0.75 - 0.35 * across(page, rng), 9)


def shadow(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    page = written(digit, Image.new("RGB", (600, 600), (230, 228, 220)), (40, 40, 50), (100, 100), 400)
    edge = across(page, rng) - rng.uniform(-0.25, 0.25)
    return lit(page, rng, 1 - 0.45 / (1 + np.exp(-edge / rng.uniform(0.003, 0.05))), 5)


def colored_pen(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    colors = ((30, 60, 220), (220, 30, 40), (30, 160, 60), (240, 150, 0), (150, 40, 170))
    paper = ((255, 255, 255), (250, 240, 200), (200, 225, 250))
    page = Image.new("RGB", (320, 320), paper[int(rng.integers(3))])
    return written(digit, page, colors[int(rng.integers(5))], (20, 20), 280)


def pencil(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    page = written(digit, Image.new("RGB", (500, 500), (238, 238, 236)), (188, 188, 190), (60, 60), 380)
    return lit(page, rng, np.ones((500, 500)), 5)


def transparent(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light ink or dark."""
    low = int(rng.choice([0, 170]))
    page = Image.new("RGBA", (280, 280), (*rng.integers(low, low + 86, 3).tolist(), 0))
    page.putalpha(digit.resize((280, 280), Image.Resampling.BICUBIC))
    return page


def small(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(rng.integers(70, 160))
    at = int(rng.integers(0, 1000 - side)), int(rng.integers(0, 1400 - side))
    return written(digit, Image.new("L", (1000, 1400), 255), 0, at, side)


def broad_pen(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    ink = digit.resize((280, 280), Image.Resampling.BICUBIC).point(lambda v: 255 * (v > 110))
    return ImageOps.invert(ImageOps.expand(ink.filter(ImageFilter.MaxFilter(int(rng.choice([7, 9, 11])))), 20))


def bilevel(digit: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scanned as black and white, white ink or black."""
    side = int(rng.integers(60, 400))
    ink = digit.resize((side, side), Image.Resampling.BICUBIC).point(lambda v: 255 * (v > 128))
    return (ink if rng.random() < 0.5 else ImageOps.invert(ink)).convert("1")


SETTINGS: dict[str, tuple[Draw, str]] = {
    "a frame at the edge": (frame, "png"),
    "a rounded, colored frame": (rounded_frame, "png"),
    "ruled paper": (ruled, "png"),
    "squared paper, JPEG": (squared, "jpg"),
    "a photograph, askew": (photograph, "jpg"),
    "a shadow across it": (shadow, "jpg"),
    "colored pens and paper": (colored_pen, "webp"),
    "pencil, with grain": (pencil, "jpg"),
    "transparent, light or dark ink": (transparent, "png"),
    "small on a large sheet": (small, "gif"),
    "a broad pen": (broad_pen, "png"),
    "black and white": (bilevel, "png"),
}


@dataclass
class Count:
    right: int = 0
    unsure: int = 0  # right or not
    wrong: int = 0
    wrong_and_high: int = 0


def measure(trained: Trained, draw: Draw, suffix: str, folder: Path) -> Count:
    """Of the first digits of the test set, each drawn with a seed of its own."""
    test, count = load("sample").test.first(DIGITS), Count()
    pixels, labels = test.stored(torch.arange(DIGITS)), test.batch(torch.arange(DIGITS), torch.float32)[1]
    for seed, (digit, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        path = folder / f"digit.{suffix}"
        draw(Image.fromarray(digit.view(28, 28).numpy()), np.random.default_rng(seed)).save(path)
        said = answer(trained, read_picture(path, "digit"))
        count.unsure += bool(said.doubts)
        if said.best == str(label):
            count.right += 1
        else:
            count.wrong += 1
            count.wrong_and_high += said.values[said.best] > HIGH
    return count


def page(counts: dict[str, Count], trained: Trained) -> str:
    lines = [
        "",
        f'| {DIGITS} digits with | right | wrong | of these above {HIGH:.0%} | "not sure" |',
        "|---|---|---|---|---|",
    ]
    for setting, count in counts.items():
        right = f"{count.right / DIGITS:.1%}"
        lines.append(f"| {setting} | {right} | {count.wrong} | {count.wrong_and_high} | {count.unsure} |")
    config = trained.config
    lines += [
        "",
        f"The network: {config.model}, {config.epochs} epochs of {trained.data.name}, seed {config.seed}. The digits: "
        f"the first {DIGITS} of MNIST's test set, each drawn with a seed of its own, from 0. {machine()}. Measured by "
        "`python -m benchmarks.pictures`.",
    ]
    return "\n".join(lines) + "\n"


def main(checkpoint: Annotated[Path, tyro.conf.arg(metavar="RUN_OR_PT")]) -> None:
    """Measure everything again, and write docs/pictures.md.

    Args:
        checkpoint: A run on digits, such as one of the preset lenet5.
    """
    torch.set_num_threads(1)
    trained = load_trained(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        counts = {
            setting: measure(trained, draw, suffix, Path(folder))
            for setting, (draw, suffix) in track(SETTINGS.items(), description="settings")
        }
    above, mark, _ = PAGE.read_text(encoding="utf-8").partition(HAND_MADE)
    PAGE.write_text(above + mark + page(counts, trained), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(command("benchmarks.pictures")(tyro.cli)(main))
