"""Digits in pictures of the user's own: frames, paper, light, pens, and what is no single digit."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from benchmarks.pictures import SETTINGS
from tests.support.refusals import refused
from training.data import load, read_picture

DIGITS = [Image.fromarray(x.view(28, 28).numpy()) for x in load("sample").test.x[:20]]
ZERO, FOUR = DIGITS[3], DIGITS[4]


@pytest.fixture
def read(tmp_path):
    def read(image, suffix="png", **options):
        image.save(tmp_path / f"p.{suffix}", **options)
        return read_picture(tmp_path / f"p.{suffix}", "digit")

    return read


def likeness(reading, digit):
    own, seen = np.asarray(digit, dtype=float).ravel(), reading.views[0].double().numpy()
    return own @ seen / np.sqrt((own @ own) * (seen @ seen))


def sheet(*digits, pen=lambda draw, box: None, side=280):
    """The digits beside each other, black on white, and what `pen` draws with them."""
    page = Image.new("L", (side * max(1, len(digits)), side), 255)
    for i, digit in enumerate(digits):
        page.paste(ImageOps.invert(digit.resize((side, side), Image.Resampling.BICUBIC)), (i * side, 0))
    pen(ImageDraw.Draw(page), (0, 0, page.width - 1, page.height - 1))
    return page


@pytest.mark.sweep(3)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_digit_comes_back_from_each_setting_of_the_benchmark(setting, read):
    draw, suffix = SETTINGS[setting]
    readings = [read(draw(digit, np.random.default_rng(i)), suffix) for i, digit in enumerate(DIGITS[1:3])]
    alike = [likeness(reading, digit) for reading, digit in zip(readings, DIGITS[1:3], strict=True)]
    assert min(alike) > 0.65, alike
    assert [reading.doubts for reading in readings] == [()] * 2


def rules(draw, box):
    for y in range(9, box[3], 40):
        draw.line((0, y, box[2], y), fill=40, width=3)
        draw.line((y, 0, y, box[3]), fill=40, width=2)


NO_INK = {
    "a frame": sheet(pen=lambda draw, box: draw.rectangle(box, width=9)),
    "a rounded frame": sheet(pen=lambda draw, box: draw.rounded_rectangle(box, 40, width=6)),
    "squared paper": sheet(pen=rules),
    "nothing opaque": Image.new("RGBA", (60, 60), (0, 0, 0, 0)),
    "grain": Image.fromarray(np.random.default_rng(0).normal(220, 8, (200, 200)).astype(np.uint8)),
}


@pytest.mark.parametrize("image", NO_INK.values(), ids=NO_INK)
def test_a_sheet_without_a_digit_is_refused(image, read):
    with refused("p.png", "nothing that stands out"):
        read(image)


DOUBTFUL = {
    "two": (sheet(ZERO, FOUR), "two digits"),
    "two in a frame": (sheet(FOUR, ZERO, pen=lambda draw, box: draw.rectangle(box, width=5)), "two digits"),
    "two, one below the other": (sheet(FOUR, FOUR).rotate(90, expand=True), "two digits"),
    "three": (sheet(ZERO, FOUR, ZERO), "3 digits"),
    "a black square": (sheet(pen=lambda draw, box: draw.rectangle((90, 90, 190, 190), fill=0)), "a sheet or a box"),
    "a long line": (sheet(pen=lambda draw, box: draw.line((60, 130, 220, 150), width=12)), "wider than a digit"),
    "a frame over it": (sheet(FOUR, pen=lambda draw, box: draw.rectangle((60, 30, 225, 250), width=6)), "a frame"),
}


@pytest.mark.parametrize(("image", "doubt"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_is_no_single_digit_is_doubted(image, doubt, read):
    assert any(doubt in said for said in read(image).doubts)


def test_strokes_that_cross_a_line_stay_whole(read):
    ruled = sheet(FOUR, pen=lambda draw, box: [draw.line((0, y, 280, y), fill=0, width=4) for y in range(20, 280, 30)])
    assert likeness(read(ruled), FOUR) > 0.85


def test_only_a_picture_like_mnists_is_taken_as_it_is(read):
    assert read(ZERO).views.shape == (1, 784)
    framed = ImageOps.expand(ZERO.crop((1, 1, 27, 27)), 1, 255)
    assert read(framed).views.shape == (9, 784)
    assert likeness(read(framed), ZERO) > 0.9


def test_an_animation_shows_its_fullest_frame_and_a_sticker_its_sheet(read):
    growing = [sheet(FOUR).crop((0, 0, 280, 70 * rows)) for rows in range(5)]
    frames = [Image.new("L", (280, 280), 255) for _ in growing]
    for page, part in zip(frames[1:], growing[1:], strict=True):
        page.paste(part)
    moving = read(frames[0], "gif", save_all=True, append_images=[*frames[1:], frames[0]])
    sticker = Image.new("RGBA", (360, 360), (0, 0, 0, 0))
    sticker.paste(sheet(FOUR).convert("RGBA"), (40, 40))
    assert min(likeness(moving, FOUR), likeness(read(sticker), FOUR)) > 0.9
