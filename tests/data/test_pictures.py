"""Files of one's own: pictures, a folder of them for every class, and arrays of --dataset npz."""

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
    assert torch.stack(paper).mean() < 2  # of 255: the paper's grain and shade are gone


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


X, Y = np.arange(60, dtype=np.float32).reshape(10, 2, 3), np.arange(10) % 4
WITH_NAN = np.where(np.arange(60).reshape(10, 2, 3) == 28, np.float32("nan"), X)  # in row 4


@pytest.fixture
def npz(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "arrays.npz", **arrays)
        return tmp_path / "arrays.npz"

    return save


def test_npz_without_a_test_set_tests_on_the_last_fifth(npz):
    dataset = load("npz", npz(x=X, y=Y))
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (8, 2, (2, 3))
    assert dataset.classes == ("0", "1", "2", "3")
    assert torch.equal(torch.cat([dataset.train.x, dataset.test.x]), torch.arange(60.0).view(10, 6))
    assert torch.cat([dataset.train.y, dataset.test.y]).tolist() == Y.tolist()
    assert len(load("npz", npz(x=np.ones((19, 1)), y=np.arange(19) % 2)).test) == 3
    assert len(load("npz", npz(x=np.ones((3, 1)), y=np.arange(3))).test) == 1


def test_npz_with_a_test_set_counts_its_classes_too(npz):
    dataset = load("npz", npz(x=X, y=Y, x_test=X[:3], y_test=np.array([0, 6, 1], dtype=np.uint8)))
    assert (len(dataset.train), len(dataset.test), len(dataset.classes)) == (10, 3, 7)
    assert dataset.test.y.tolist() == [0, 6, 1]


@pytest.mark.parametrize(
    ("saved", "kept"),
    [("uint8", torch.uint8), ("float16", torch.float32), (">f4", torch.float32), ("float64", torch.float64)],
)
def test_npz_keeps_bytes_and_doubles(saved, kept, npz):
    x = load("npz", npz(x=X.astype(saved), y=Y)).train.x
    assert x.dtype == kept
    assert x[7].tolist() == [42, 43, 44, 45, 46, 47]


BAD_ARRAYS = {
    "no y": (dict(x=X), ["no array 'y'"]),
    "no x": (dict(y=Y), ["no array 'x'"]),
    "half a test set": (dict(x=X, y=Y, x_test=X), ["only one of x_test and y_test"]),
    "lengths differ": (dict(x=X, y=Y[:9]), ["(9,)", "10 rows", "one label a row"]),
    "labels in columns": (dict(x=X, y=Y[:, None]), ["(10, 1)"]),
    "labels are floats": (dict(x=X, y=Y.astype(float)), ["float64", "int64"]),
    "labels are bools": (dict(x=X, y=Y > 1), ["bool"]),
    "negative label": (dict(x=X, y=Y - 1), ["label -1 at row 0"]),
    "one class": (dict(x=X, y=Y * 0), ["1 class"]),
    "a giant label": (dict(x=X, y=np.array([2**64 - 1] * 10, dtype=np.uint64)), ["10,000"]),
    "not finite": (dict(x=WITH_NAN, y=Y), ["not finite in row 4"]),
    "not finite for testing": (dict(x=X, y=Y, x_test=WITH_NAN, y_test=Y), ["x_test", "row 4"]),
    "x is int64": (dict(x=X.astype(np.int64), y=Y), ["int64", "uint8"]),
    "x is flat": (dict(x=X.ravel()[:10], y=Y), ["(10,)"]),
    "no features": (dict(x=X[:, :0], y=Y), ["(10, 0, 3)"]),
    "no rows": (dict(x=X[:0], y=Y[:0]), ["(0, 2, 3)"]),
    "one row": (dict(x=X[:1], y=Y[1:2]), ["1 example"]),
    "another shape for testing": (dict(x=X, y=Y, x_test=X[:, :1], y_test=Y), ["(1, 3)", "(2, 3)"]),
    "pickled objects": (dict(x=np.array([{}] * 10), y=Y), ["plain arrays"]),
}


@pytest.mark.parametrize(("arrays", "words"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(arrays, words, npz):
    path = npz(**arrays)
    with refused(str(path), *words):
        load("npz", path)


@pytest.mark.parametrize("name", ["single.npy", "text.npz", "empty.npz", "cut.npz", "missing.npz", "."])
def test_files_that_are_no_npz_are_refused(name, tmp_path, npz):
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "text.npz").write_text("x, y")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(npz(x=X, y=Y).read_bytes()[:-50])
    with refused(str(tmp_path / name), "npz"):
        load("npz", tmp_path / name)
