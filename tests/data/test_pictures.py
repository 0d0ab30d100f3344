"""Pictures: what a network gets of a picture of any size, and a folder of pictures for every class."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from tests.support.refusals import refused
from training.data import Split, load, preparation_of, read_picture
from training.errors import UserError


def test_preparation_follows_the_data_set():
    assert preparation_of("mnist") == preparation_of("sample") == "digit"
    assert preparation_of("fashion-mnist") == preparation_of("images") == "picture"
    with pytest.raises(ValueError, match="'points' reads no pictures"):
        preparation_of("points")
    with pytest.raises(ValueError, match="'number'; use 'digit' or 'picture'"):
        read_picture(Path("any.png"), "number")


def digit_image(i: int) -> Image.Image:
    return Image.fromarray(load_sample_test().x[i].view(28, 28).numpy())


@functools.cache
def load_sample_test() -> Split:
    return load("sample").test


def enlarged(image: Image.Image) -> Image.Image:
    return image.resize((280, 280), Image.Resampling.BICUBIC)


def on_colored_paper(image: Image.Image) -> Image.Image:
    return ImageOps.colorize(enlarged(image), black=(250, 220, 90), white=(20, 40, 160))


def faint(image: Image.Image) -> Image.Image:
    return enlarged(image).point(lambda v: 100 + 0.15 * v)


def small_on_a_large_page(image: Image.Image) -> Image.Image:
    page = Image.new("L", (1000, 800), 255)
    page.paste(ImageOps.invert(enlarged(image)), (690, 100))
    return page


def photographed(image: Image.Image) -> Image.Image:
    """Grey paper, light falling off to the right, grain."""
    paper = 240 - 0.7 * np.asarray(enlarged(image), dtype=float)
    shade = np.linspace(1, 0.6, 280)
    grain = np.random.default_rng(0).normal(0, 6, (280, 280))
    return Image.fromarray(np.clip(paper * shade + grain, 0, 255).astype(np.uint8))


VARIANTS = {
    "as it is": (lambda image: image, ".png"),
    "dark on light": (ImageOps.invert, ".png"),
    "enlarged": (enlarged, ".png"),
    "enlarged, dark on light": (lambda image: ImageOps.invert(enlarged(image)), ".bmp"),
    "cut close": (lambda image: enlarged(image).crop(enlarged(image).getbbox()), ".png"),
    "on colored paper": (on_colored_paper, ".webp"),
    "coarse JPEG": (on_colored_paper, ".jpg"),
    "coarse JPEG, tiny": (ImageOps.invert, ".jpg"),
    "faint": (faint, ".png"),
    "small on a large page": (small_on_a_large_page, ".gif"),
    "photographed": (photographed, ".jpg"),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_digit_comes_back_from_a_picture_of_it(variant, tmp_path):
    change, suffix = VARIANTS[variant]
    similarity, paper = [], []
    for i in range(20):
        path = tmp_path / f"digit{suffix}"
        change(digit_image(i)).save(path, **({"quality": 40} if suffix == ".jpg" else {}))
        picture = read_picture(path, "digit")
        assert (picture.shape, picture.dtype, picture.max()) == ((784,), torch.uint8, 255)
        original = load_sample_test().x[i]
        similarity.append(torch.cosine_similarity(picture.float(), original.float(), dim=0))
        paper.append(picture[original == 0].float().mean())
    assert torch.stack(similarity).mean() > (0.995 if variant in ("as it is", "dark on light") else 0.94)
    assert min(similarity) > 0.75
    assert torch.stack(paper).mean() < 1.8  # of 255: the paper's grain and shade are gone


def drawing(mode: str = "L", paper: object = 255, ink: object = 0) -> Image.Image:
    """A seven, 200 wide and 300 high."""
    image = Image.new(mode, (200, 300), paper)
    ImageDraw.Draw(image).line([(40, 40), (160, 40), (80, 260)], fill=ink, width=12)
    return image


def test_a_digit_is_placed_as_mnists_are(tmp_path):
    drawing().save(tmp_path / "seven.png")
    picture = read_picture(tmp_path / "seven.png", "digit").view(28, 28).double()
    rows, columns = picture.amax(1).nonzero().flatten(), picture.amax(0).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 20
    assert 9 <= columns[-1] - columns[0] + 1 <= 13  # the aspect of 130 to 230
    grid = torch.arange(28.0, dtype=torch.float64)
    for marginal in (picture.sum(1), picture.sum(0)):
        assert abs(marginal @ grid / marginal.sum() - 14) <= 0.5


def test_the_grain_of_a_large_photograph_averages_out(tmp_path):
    """Thin strokes of 1,200 x 1,800 pixels, less than four times the grain's standard deviation above the paper."""
    page = Image.new("L", (1200, 1800), 190)
    ImageDraw.Draw(page).line([(240, 240), (960, 240), (480, 1560)], fill=110, width=30)
    page.save(tmp_path / "clean.png")
    grain = np.random.default_rng(0).normal(0, 22, (1800, 1200))
    Image.fromarray(np.clip(np.asarray(page) + grain, 0, 255).astype(np.uint8)).save(tmp_path / "grainy.png")
    clean, grainy = (read_picture(tmp_path / f"{name}.png", "digit").float() for name in ("clean", "grainy"))
    assert torch.cosine_similarity(clean, grainy, dim=0) > 0.98


@pytest.mark.parametrize("preparation", ["digit", "picture"])
@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        (drawing("1", 1), ".png"),
        (drawing().convert("P"), ".gif"),
        (drawing("RGB", "white"), ".bmp"),
        (drawing("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), ".png"),
        (drawing("LA", (0, 0), (0, 255)), ".png"),
        (drawing("I;16", 65535), ".png"),
    ],
    ids=["bilevel", "palette", "color", "transparent", "transparent grey", "16 bits"],
)
def test_every_mode_reads_alike(image, suffix, preparation, tmp_path):
    drawing().save(tmp_path / "plain.png")
    image.save(tmp_path / f"other{suffix}")
    other = read_picture(tmp_path / f"other{suffix}", preparation)
    assert torch.equal(other, read_picture(tmp_path / "plain.png", preparation))


@pytest.mark.parametrize("preparation", ["digit", "picture"])
def test_the_cameras_rotation_is_obeyed(preparation, tmp_path):
    drawing().save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    drawing().rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(
        read_picture(tmp_path / "turned.png", preparation), read_picture(tmp_path / "upright.png", preparation)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 900), (2000, 1), (2, 2), (2500, 1800)], ids=str)
def test_any_size_is_read_or_refused_kindly(size, tmp_path):
    image = Image.new("L", size, 0)
    image.putpixel((0, 0), 255)
    image.save(tmp_path / "p.png")
    assert read_picture(tmp_path / "p.png", "picture").shape == (784,)
    try:
        assert read_picture(tmp_path / "p.png", "digit").max() == 255
    except UserError as error:
        assert "nothing that stands out" in str(error)  # noqa: PT017


def test_a_picture_of_28_by_28_is_taken_as_it_is(tmp_path):
    digit_image(0).save(tmp_path / "p.png")
    assert torch.equal(read_picture(tmp_path / "p.png", "picture"), load_sample_test().x[0])


@pytest.mark.parametrize("color", [0, 90, 255])
def test_an_empty_page_is_refused(color, tmp_path):
    Image.new("L", (64, 48), color).save(tmp_path / "page.png")
    with refused("page.png", "nothing that stands out"):
        read_picture(tmp_path / "page.png", "digit")
    assert read_picture(tmp_path / "page.png", "picture").unique().tolist() == [color]


@pytest.mark.parametrize("name", ["text.png", "empty.png", "cut.png", "missing.png", "."])
def test_what_is_no_picture_is_refused(name, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    drawing().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-300])
    with refused(str(tmp_path / name)):
        read_picture(tmp_path / name, "digit")


@pytest.mark.parametrize("limit", [50_000, 20_000])
def test_a_decompression_bomb_is_refused(limit, tmp_path, monkeypatch):
    """Pillow warns above its limit and refuses above twice that; both are refused here."""
    drawing().save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with refused("p.png", "too large"):
        read_picture(tmp_path / "p.png", "digit")


# A folder for every class


@pytest.fixture
def folders(tmp_path):
    """Seven black-ish cats, two white-ish dogs, and things that are no examples."""
    root = tmp_path / "pets"
    for name, count, base in (("dog", 2, 200), ("cat", 7, 10)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (base + i,) * 3).save(root / name / f"{i}.{'PNG' if i % 2 else 'bmp'}")
    (root / ".git").mkdir()
    (root / "cat" / ".hidden.png").write_text("no picture")
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "notes.txt").write_text("no folder")
    return root


def test_images_takes_a_class_from_each_folder(folders):
    dataset = load("images", folders)
    assert (dataset.classes, dataset.shape) == (("cat", "dog"), (28, 28))
    train, test = ([*zip(s.x[:, 0].tolist(), s.y.tolist(), strict=True)] for s in (dataset.train, dataset.test))
    assert sorted(train) == [(11, 0), (12, 0), (13, 0), (14, 0), (16, 0), (201, 1)]
    assert test == [(10, 0), (15, 0), (200, 1)]
    assert dataset.train.x.dtype == torch.uint8
    assert torch.equal(load("images", folders).train.x, dataset.train.x)
    assert "6 training and 3 test pictures of 2 classes" in dataset.source


def test_folders_that_do_not_fit_are_refused(folders, tmp_path):
    (folders / "cat" / "3.PNG").write_text("no picture")
    with refused(str(folders / "cat" / "3.PNG")):
        load("images", folders)
    (folders / "dog" / "1.PNG").unlink()
    with refused(str(folders / "dog"), "1 picture", "at least 2"):
        load("images", folders)
    with refused("0 class folder", "at least 2"):
        load("images", folders / "cat")
    with refused("nowhere", "folder per class"):
        load("images", tmp_path / "nowhere")
