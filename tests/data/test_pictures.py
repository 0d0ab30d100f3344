"""Pictures of one's own, as a network reads them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from tests.support.refusals import refused
from training.data import load, preparation_of, read_picture
from training.errors import UserError

DIGITS = load("sample").test.x[:20]
each_preparation = pytest.mark.parametrize("preparation", ["digit", "picture"])


def test_preparation_follows_the_data_set(tmp_path):
    assert preparation_of("mnist") == preparation_of("sample") == "digit"
    assert preparation_of("fashion-mnist") == preparation_of("images") == "picture"
    with pytest.raises(ValueError, match="'points' reads no pictures"):
        preparation_of("points")
    with pytest.raises(ValueError, match="'number'; use 'digit' or 'picture'"):
        read_picture(tmp_path / "any.png", "number")


@pytest.fixture
def read(tmp_path):
    """What is read of a picture that is saved as this file."""

    def read(image, preparation="digit", file="p.png", **options):
        image.save(tmp_path / file, **options)
        return read_picture(tmp_path / file, preparation).views[0]

    return read


def enlarged(image):
    return image.resize((280, 280), Image.Resampling.BICUBIC)


def on_colored_paper(image):
    return ImageOps.colorize(enlarged(image), black=(250, 220, 90), white=(20, 40, 160))


def with_grain(gray, sigma):
    grain = np.random.default_rng(0).normal(0, sigma, gray.shape)
    return Image.fromarray(np.clip(gray + grain, 0, 255).astype(np.uint8))


VARIANTS = {
    "as it is": (lambda image: image, ".png"),
    "dark on light": (ImageOps.invert, ".png"),
    "enlarged": (enlarged, ".png"),
    "enlarged, dark on light": (lambda image: ImageOps.invert(enlarged(image)), ".bmp"),
    "cut close": (lambda image: enlarged(image).crop(enlarged(image).getbbox()), ".png"),
    "on colored paper": (on_colored_paper, ".webp"),
    "coarse JPEG": (on_colored_paper, ".jpg"),
    "coarse JPEG, tiny": (ImageOps.invert, ".jpg"),
    "faint": (lambda image: enlarged(image).point(lambda v: 100 + 0.15 * v), ".png"),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_digit_comes_back_from_a_picture_of_it(variant, read):
    (change, suffix), similarity, paper = VARIANTS[variant], [], []
    for original in DIGITS:
        image = change(Image.fromarray(original.view(28, 28).numpy()))
        picture = read(image, file=f"digit{suffix}", **({"quality": 40} if suffix == ".jpg" else {}))
        assert (picture.shape, picture.dtype, picture.max()) == ((784,), torch.uint8, 255)
        similarity.append(torch.cosine_similarity(picture.float(), original.float(), dim=0))
        paper.append(picture[original == 0].float().mean())
    assert torch.stack(similarity).mean() > (0.995 if variant in ("as it is", "dark on light") else 0.94)
    assert min(similarity) > 0.75
    # of 255: the paper's grain and shade are gone; what is first scaled up, from 28x28, has strokes with blurred edges
    assert torch.stack(paper).mean() < (2 if variant == "coarse JPEG, tiny" else 1.8)


def drawing(mode="L", paper=255, ink=0):
    """A seven, 200 wide and 300 high."""
    image = Image.new(mode, (200, 300), paper)
    ImageDraw.Draw(image).line([(40, 40), (160, 40), (80, 260)], fill=ink, width=12)
    return image


def test_a_digit_is_placed_as_mnists_are(read):
    picture = read(drawing()).view(28, 28).double()
    rows, columns = picture.amax(1).nonzero().flatten(), picture.amax(0).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 20
    assert 9 <= columns[-1] - columns[0] + 1 <= 13  # the aspect of 130 to 230
    grid = torch.arange(28.0, dtype=torch.float64)
    for marginal in (picture.sum(1), picture.sum(0)):
        assert abs(marginal @ grid / marginal.sum() - 14) <= 0.5


def test_the_grain_of_a_large_photograph_averages_out(read):
    """Thin strokes of 1,200 x 1,800 pixels, less than four times the grain's standard deviation above the paper."""
    page = Image.new("L", (1200, 1800), 190)
    ImageDraw.Draw(page).line([(240, 240), (960, 240), (480, 1560)], fill=110, width=30)
    clean, grainy = (read(image).float() for image in (page, with_grain(np.asarray(page), 22)))
    assert torch.cosine_similarity(clean, grainy, dim=0) > 0.98


MODES = {
    "bilevel": (drawing("1", 1), "png"),
    "palette": (drawing().convert("P"), "gif"),
    "color": (drawing("RGB", "white"), "bmp"),
    "transparent": (drawing("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), "png"),
    "transparent grey": (drawing("LA", (0, 0), (0, 255)), "png"),
    "16 bits": (drawing("I;16", 65535), "png"),
}


@each_preparation
@pytest.mark.parametrize(("image", "suffix"), MODES.values(), ids=MODES)
def test_every_mode_reads_alike(image, suffix, preparation, read):
    assert torch.equal(read(image, preparation, f"other.{suffix}"), read(drawing(), preparation))


@each_preparation
def test_the_cameras_rotation_is_obeyed(preparation, read):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    turned = read(drawing().rotate(90, expand=True), preparation, exif=exif)
    assert torch.equal(turned, read(drawing(), preparation))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 900), (2000, 1), (2, 2), (2500, 1800)], ids=str)
def test_any_size_is_read_or_refused_kindly(size, read):
    image = Image.new("L", size, 0)
    image.putpixel((0, 0), 255)
    assert read(image, "picture").shape == (784,)
    try:
        assert read(image).max() == 255
    except UserError as error:
        assert "nothing that stands out" in str(error)  # noqa: PT017


def test_a_picture_of_28_by_28_is_taken_as_it_is(read):
    assert torch.equal(read(Image.fromarray(DIGITS[0].view(28, 28).numpy()), "picture"), DIGITS[0])


@pytest.mark.parametrize("color", [0, 90, 255])
def test_an_empty_page_is_refused(color, read):
    page = Image.new("L", (64, 48), color)
    with refused("p.png", "nothing that stands out"):
        read(page)
    assert read(page, "picture").unique().tolist() == [color]


@pytest.mark.parametrize("name", ["text.png", "empty.png", "cut.png", "missing.png", "."])
def test_what_is_no_picture_is_refused(name, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    drawing().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-300])
    with refused(str(tmp_path / name)):
        read_picture(tmp_path / name, "digit")


@pytest.mark.parametrize("limit", [50_000, 20_000])
def test_a_decompression_bomb_is_refused(limit, read, monkeypatch):
    """Pillow warns above its limit and refuses above twice that; both are refused here."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with refused("p.png", "too large"):
        read(drawing())
