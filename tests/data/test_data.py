"""Data sets: what is loaded is what is meant, and whatever is broken is told in one sentence."""

import functools
import gzip
import hashlib
import http.server
import math
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from training.data import DATASETS, Split, load, points_rule, preparation_of, read_picture
from training.data.idx import read_idx, write_idx
from training.data.make_sample import make_sample
from training.data.mnist import FILES, SAMPLE
from training.errors import UserError

ROOT = Path(__file__).parents[2]


def one_sentence(error: pytest.ExceptionInfo, *words: str) -> bool:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return True


def idx_bytes(values: torch.Tensor) -> bytes:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    return header + values.numpy().tobytes()


# MNIST's files


@pytest.fixture(scope="session")
def tiled_dir(tmp_path_factory):
    """A valid MNIST of full size, made of copies of the sample, so that no download is needed."""
    folder = tmp_path_factory.mktemp("tiled") / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file, copies in zip(FILES, (6, 6, 5, 5), strict=True):
        values = read_idx(SAMPLE / f"{file}.gz", 3 if "images" in file else 1, "")
        (folder / file).write_bytes(idx_bytes(values.repeat(copies, *[1] * (values.ndim - 1))))
    return folder.parents[1]


@pytest.fixture
def data_dir(tiled_dir, tmp_path):
    """Links to the tiled set: each test may replace files of its own."""
    for name in ("MNIST", "FashionMNIST"):
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        for file in FILES:
            (folder / file).symlink_to(tiled_dir / "MNIST" / "raw" / file)
    return tmp_path


def replace_file(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_full_sets_have_their_sizes(name, data_dir):
    dataset = load(name, data_dir)
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert dataset.train.x.shape == (60_000, 784)
    assert dataset.train.x.dtype == torch.uint8
    assert dataset.train.y.dtype == torch.int64
    assert (dataset.name, dataset.shape, len(dataset.classes)) == (name, (28, 28), 10)
    assert f"from {data_dir}/: 60,000 training and 10,000 test images" in dataset.source


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_full_sets_equal_torchvisions_reading(name, mnist_dir):
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    if not (mnist_dir / kind.__name__).exists():
        pytest.skip(f"no full {kind.__name__}")
    dataset = load(name, mnist_dir)
    for train, split in ((True, dataset.train), (False, dataset.test)):
        theirs = kind(mnist_dir, train=train)
        assert torch.equal(split.x, theirs.data.flatten(1))
        assert torch.equal(split.y, theirs.targets)


def test_gzipped_files_are_read_where_they_lie(data_dir):
    plain = load("mnist", data_dir)
    for file in FILES[1:]:
        path = data_dir / "MNIST" / "raw" / file
        content = path.read_bytes()
        path.unlink()
        path.with_name(f"{file}.gz").write_bytes(gzip.compress(content, 1))
    gzipped = load("auto", data_dir)
    assert gzipped.name == "mnist"
    assert torch.equal(gzipped.test.x, plain.test.x)
    assert torch.equal(gzipped.train.y, plain.train.y)


def tiled_labels(count: int) -> torch.Tensor:
    return (torch.arange(count) % 10).byte()


def label_77() -> bytes:
    labels = tiled_labels(10_000)
    labels[123] = 77
    return idx_bytes(labels)


BROKEN_FILES = {
    "label 77": ("t10k-labels-idx1-ubyte", label_77, ["label 77 at row 123", "0 to 9"]),
    "labels too few": ("t10k-labels-idx1-ubyte", lambda: idx_bytes(tiled_labels(9_000)), ["9,000 labels", "10,000"]),
    "images too few": ("t10k-images-idx3-ubyte", lambda: idx_bytes(torch.zeros(90, 28, 28).byte()), ["90 images"]),
    "images of another size": (
        "t10k-images-idx3-ubyte",
        lambda: idx_bytes(torch.zeros(10_000, 14, 28).byte()),
        ["14x28 pixels", "28x28"],
    ),
    "cut off in the data": (
        "train-labels-idx1-ubyte",
        lambda: idx_bytes(tiled_labels(60_000))[:-7],
        ["60,001", "60,008"],
    ),
    "longer than announced": ("train-labels-idx1-ubyte", lambda: idx_bytes(tiled_labels(60_000)) + b"\0", ["60,009"]),
    "cut off in the header": ("train-images-idx3-ubyte", lambda: b"\0\0\x08\x03", ["4 bytes", "header"]),
    "empty": ("train-images-idx3-ubyte", lambda: b"", ["0 bytes"]),
    "announces nothing": ("t10k-labels-idx1-ubyte", lambda: idx_bytes(tiled_labels(0)), ["no examples"]),
    "images for labels": (
        "t10k-labels-idx1-ubyte",
        lambda: idx_bytes(torch.zeros(1, 2, 3).byte()),
        ["0x00000803", "0x00000801"],
    ),
    "a web page": ("t10k-labels-idx1-ubyte", lambda: b"<!DOCTYPE html>", ["0x3c21444f"]),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_a_broken_file_is_named_with_what_is_wrong(case, name, data_dir):
    file, content, words = BROKEN_FILES[case]
    replace_file(data_dir / "MNIST" / "raw" / file, content())
    with pytest.raises(UserError) as error:
        load(name, data_dir)
    assert one_sentence(error, file, *words, "delete it and run again")


BROKEN_GZIP = {
    "cut off in the header": lambda content: content[:5],
    "cut off in the data": lambda content: content[:1_000],
    "damaged": lambda content: content[:10] + b"\xff" + content[11:],
    "another checksum": lambda content: content[:-8] + bytes(4) + content[-4:],
    "not compressed": gzip.decompress,
}


@pytest.mark.parametrize("case", BROKEN_GZIP)
def test_a_broken_gzip_file_is_named(case, data_dir):
    path = data_dir / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(BROKEN_GZIP[case](content))
    with pytest.raises(UserError) as error:
        load("mnist", data_dir)
    assert one_sentence(error, "t10k-labels-idx1-ubyte.gz", "cannot be read", "delete it and run again")


def test_idx_round_trip_is_reproducible(tmp_path):
    values = torch.arange(60).byte().view(5, 3, 4)
    write_idx(tmp_path / "a.gz", values)
    write_idx(tmp_path / "b.gz", values)
    assert torch.equal(read_idx(tmp_path / "a.gz", 3, ""), values)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    with pytest.raises(UserError, match=r"c is missing; look elsewhere$"):
        read_idx(tmp_path / "c", 3, "look elsewhere")


# Downloads, by torchvision itself


def test_no_network_is_one_sentence_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    from torchvision import datasets

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{port}/again/"])
    with pytest.raises(UserError) as error:
        load("mnist", tmp_path)
    assert one_sentence(error, "MNIST could not be downloaded", str(tmp_path), "--dataset sample")
    assert list(tmp_path.rglob("*")) == []
    assert capsys.readouterr().out == ""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tiled_dir, tmp_path, monkeypatch):
    """A mirror of the tiled set on this machine, which torchvision takes for Fashion-MNIST's; returns its folder."""
    from torchvision import datasets

    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for file in FILES:
        content = gzip.compress((tiled_dir / "MNIST" / "raw" / file).read_bytes(), 1)
        (folder / f"{file}.gz").write_bytes(content)
        resources.append((f"{file}.gz", hashlib.md5(content, usedforsecurity=False).hexdigest()))
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *args: None  # torchvision hangs up after looking for redirections
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
        yield folder
        server.shutdown()
        thread.join()


def test_what_is_missing_is_downloaded_and_what_is_there_is_kept(mirror, tmp_path, tiled_dir, capsys):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    own = idx_bytes(tiled_labels(10_000))
    (raw / FILES[3]).write_bytes(own)
    dataset = load("fashion-mnist", tmp_path / "data")
    assert torch.equal(dataset.train.x, load("mnist", tiled_dir).train.x)
    assert (raw / FILES[3]).read_bytes() == own
    assert sorted(path.name for path in raw.iterdir()) == sorted(FILES)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["FashionMNIST"]
    assert capsys.readouterr().out == ""


def test_a_cut_off_download_leaves_nothing_behind(mirror, tmp_path):
    path = mirror / f"{FILES[2]}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as error:
        load("fashion-mnist", tmp_path / "data")
    assert one_sentence(error, "Fashion-MNIST could not be downloaded")  # which file, newer torchvisions add
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file() or path.name.startswith(".")] == []


def test_a_data_directory_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        load("mnist", tmp_path / "file")
    assert one_sentence(error, "could not be downloaded", "file")


def test_a_torchvision_that_does_not_fit_torch_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as error:
        load("mnist", tmp_path / "data")
    assert one_sentence(error, "operator torchvision::nms does not exist", "install torch and torchvision together")


# The bundled sample


def test_the_sample_is_the_beginning_of_mnist(mnist_dir):
    sample, full = load("sample"), load("mnist", mnist_dir)
    assert torch.equal(sample.train.x, full.train.x[:10_000])
    assert torch.equal(sample.train.y, full.train.y[:10_000])
    assert torch.equal(sample.test.x, full.test.x[:2_000])
    assert torch.equal(sample.test.y, full.test.y[:2_000])


def test_the_sample_is_small_and_whole():
    sample = load("sample")
    assert (len(sample.train), len(sample.test), sample.shape) == (10_000, 2_000, (28, 28))
    assert sample.classes == tuple("0123456789")
    assert torch.equal(sample.train.y.unique(), torch.arange(10))
    assert sum(path.stat().st_size for path in SAMPLE.glob("*.gz")) < 2_100_000
    assert "Creative Commons Attribution-ShareAlike 3.0" in (SAMPLE / "README.md").read_text()


@pytest.mark.slow
def test_make_sample_makes_what_ships(tiled_dir, tmp_path):
    """The tiled set begins with the sample. Only the header is compared in compressed form: other builds of zlib
    compress the same bytes differently."""
    for path in make_sample(tiled_dir, tmp_path):
        made, shipped = path.read_bytes(), (SAMPLE / path.name).read_bytes()
        assert gzip.decompress(made) == gzip.decompress(shipped)
        assert made[:10] == shipped[:10]


def test_the_sample_needs_no_torchvision():
    program = (
        "import sys; from pathlib import Path; from training.data import load;"
        "load('sample'); load('auto', Path('no-such-directory')); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_auto_is_mnist_where_it_lies_and_else_the_sample(data_dir, tmp_path):
    dataset = load("auto", data_dir)
    assert (dataset.name, dataset.source) == (
        "mnist",
        f"MNIST from {data_dir}/: 60,000 training and 10,000 test images",
    )
    (data_dir / "MNIST" / "raw" / FILES[1]).unlink()
    dataset = load("auto", data_dir)
    assert dataset.name == "sample"
    assert "bundled sample of MNIST: 10,000 training and 2,000 test images" in dataset.source
    assert f"--dataset mnist downloads them into {data_dir}/" in dataset.source


@pytest.mark.parametrize(("name", "hint"), [("mnits", "did you mean 'mnist'?"), ("cifar", "use one of auto, mnist")])
def test_an_unknown_name_is_one_sentence(name, hint):
    with pytest.raises(UserError) as error:
        load(name)
    assert one_sentence(error, repr(name), hint, *DATASETS)


# Splits


def test_a_batch_of_bytes_is_gathered_and_scaled():
    split = Split(torch.tensor([[0, 255, 51], [1, 2, 3]], dtype=torch.uint8), torch.tensor([7, 8]))
    x, y = split.batch(torch.tensor([1, 0, 0]), torch.float64)
    assert x.dtype == torch.float64
    torch.testing.assert_close(
        x, torch.tensor([[1, 2, 3], [0, 255, 51], [0, 255, 51]], dtype=torch.float64) / 255, rtol=1e-15, atol=0
    )
    assert x.max() == 1
    assert y.tolist() == [8, 7, 7]
    assert split.x.tolist() == [[0, 255, 51], [1, 2, 3]]


def test_a_batch_of_floats_is_gathered_and_cast():
    split = Split(torch.tensor([[0.5, -3.0], [2.0, 255.0]]), torch.tensor([0, 1]))
    x, y = split.batch(torch.tensor([1]), torch.float64)
    assert (x.tolist(), x.dtype, y.tolist()) == ([[2.0, 255.0]], torch.float64, [1])
    whole, _ = split.batch(torch.tensor([0, 1]), torch.float32)
    whole.zero_()
    assert split.x[1, 1] == 255


def test_to_moves_everything():
    moved = load("points").to("meta")
    assert {t.device.type for s in (moved.train, moved.test) for t in (s.x, s.y)} == {"meta"}
    assert (moved.name, moved.shape, moved.classes) == ("points", (2,), ("red", "blue"))


@pytest.mark.parametrize("name", ["sample", "points", "spiral"])
def test_validation_holds_out_the_last_training_examples(name):
    whole, held = load(name), load(name, validation=37)
    assert (len(held.train), len(held.test)) == (len(whole.train) - 37, 37)
    assert torch.equal(torch.cat([held.train.x, held.test.x]), whole.train.x)
    assert torch.equal(torch.cat([held.train.y, held.test.y]), whole.train.y)
    assert "last 37 training examples are held out" in held.source
    assert set(held.test.y.tolist()) == set(range(len(whole.classes)))


@pytest.mark.parametrize("count", [-1, 300, 301])
def test_validation_out_of_range_is_one_sentence(count):
    with pytest.raises(UserError) as error:
        load("spiral", validation=count)
    assert one_sentence(error, str(count), "0 to 299")
    assert len(load("spiral", validation=299).train) == 1


@pytest.mark.parametrize("name", ["sample", "spiral"])
def test_examples_keep_the_first_training_examples_behind_which_validation_is_held_out(name):
    whole, few = load(name), load(name, validation=20, examples=70)
    assert (len(few.train), len(few.test)) == (70, 20)
    assert torch.equal(few.train.x, whole.train.x[:70])
    assert torch.equal(few.train.y, whole.train.y[:70])
    assert torch.equal(few.test.x, whole.train.x[-20:])
    assert "of the training examples the first 70" in few.source
    assert torch.equal(load(name, examples=70).test.x, whole.test.x)


@pytest.mark.parametrize("count", [-1, 251])
def test_examples_out_of_range_are_one_sentence(count):
    with pytest.raises(UserError) as error:
        load("spiral", validation=50, examples=count)
    assert one_sentence(error, str(count), "0 to 250")
    assert len(load("spiral", validation=50, examples=250).train) == 250


# Points and spiral


def test_points_follow_the_rule():
    points = load("points")
    assert (len(points.train), len(points.test), points.shape) == (4_000, 2_000, (2,))
    assert points.train.x.dtype == torch.float32
    for split in (points.train, points.test):
        assert -1 <= split.x.min() < -0.99
        assert 0.99 < split.x.max() <= 1
        x, y = (5 * split.x.double() + 5).unbind(1)
        margin = 4 * (x - 5) ** 2 - 4 * (x - 5) * (y - 5) + y**2 - 50
        clear = margin.abs() > 1e-4  # float32 coordinates cannot decide the rest
        assert clear.sum() > len(split) - 5
        assert torch.equal((margin < 0)[clear], split.y.bool()[clear])
        assert 0.35 < split.y.double().mean() < 0.5
    assert points.classes[int(points_rule(torch.tensor([[5.0, 5.0]])))] == "blue"  # 25 < 50
    assert points.classes[int(points_rule(torch.tensor([[5.0, 8.0]])))] == "red"  # 64
    assert points.classes[int(points_rule(torch.tensor([[9.0, 5.0]])))] == "red"  # 64 + 25
    assert points.classes[int(points_rule(torch.tensor([[7.0, 8.0]])))] == "red"  # 16 - 24 + 64 = 56
    assert points.classes[int(points_rule(torch.tensor([[7.0, 7.5]])))] == "red"  # 16 - 20 + 56.25 = 52.25
    assert points.classes[int(points_rule(torch.tensor([[7.0, 7.0]])))] == "blue"  # 16 - 16 + 49 = 49


@pytest.mark.parametrize("name", ["points", "spiral"])
def test_synthetic_sets_depend_on_no_seed_but_their_own(name):
    torch.manual_seed(1)
    first, state = load(name), torch.get_rng_state()
    torch.manual_seed(2)
    second = load(name)
    assert torch.equal(first.train.x, second.train.x)
    assert torch.equal(first.test.y, second.test.y)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nor do they touch the run's generator
    assert not torch.isin(first.test.x, first.train.x).all(dim=1).any() or name == "spiral"


def test_spiral_arms_turn_as_they_should():
    spiral = load("spiral")
    assert not torch.equal(spiral.train.x, spiral.test.x)
    for split in (spiral.train, spiral.test):
        assert split.y.bincount().tolist() == [100, 100, 100]
        for arm in range(3):
            x = split.x[split.y == arm].double()
            r, order = x.norm(dim=1).sort()
            torch.testing.assert_close(r, torch.linspace(0, 1, 100, dtype=torch.float64), rtol=0, atol=1e-6)
            t = torch.linspace(4 * arm, 4 * (arm + 1), 100, dtype=torch.float64)
            angle = torch.atan2(x[order, 0], x[order, 1])
            turn = torch.remainder(angle - 2.5 * t + math.pi, 2 * math.pi) - math.pi
            assert abs(turn[1:].mean()) < 0.2
            assert 0.35 < turn[1:].std() < 0.65  # 2.5 times the noise of 0.2


# Arrays


@pytest.fixture
def npz(tmp_path):
    def save(**arrays) -> Path:
        np.savez(tmp_path / "arrays.npz", **arrays)
        return tmp_path / "arrays.npz"

    return save


X, Y = np.arange(60, dtype=np.float32).reshape(10, 2, 3), np.arange(10) % 4


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


def with_nan() -> np.ndarray:
    x = X.copy()
    x[4, 1, 1] = np.nan
    return x


BAD_ARRAYS = {
    "no y": (dict(x=X), ["no array 'y'"]),
    "no x": (dict(y=Y), ["no array 'x'"]),
    "half a test set": (dict(x=X, y=Y, x_test=X), ["only one of x_test and y_test"]),
    "lengths differ": (dict(x=X, y=Y[:9]), ["(9,)", "10 rows"]),
    "labels in columns": (dict(x=X, y=Y[:, None]), ["(10, 1)"]),
    "labels are floats": (dict(x=X, y=Y.astype(float)), ["float64", "int64"]),
    "labels are bools": (dict(x=X, y=Y > 1), ["bool"]),
    "negative label": (dict(x=X, y=Y - 1), ["label -1 at row 0"]),
    "one class": (dict(x=X, y=Y * 0), ["1 class"]),
    "a giant label": (dict(x=X, y=np.array([2**64 - 1] * 10, dtype=np.uint64)), ["10,000"]),
    "not finite": (dict(x=with_nan(), y=Y), ["not finite in row 4"]),
    "not finite for testing": (dict(x=X, y=Y, x_test=with_nan(), y_test=Y), ["x_test", "row 4"]),
    "x is int64": (dict(x=X.astype(np.int64), y=Y), ["int64", "uint8"]),
    "x is flat": (dict(x=X.ravel()[:10], y=Y), ["(10,)"]),
    "no features": (dict(x=X[:, :0], y=Y), ["(10, 0, 3)"]),
    "no rows": (dict(x=X[:0], y=Y[:0]), ["(0, 2, 3)"]),
    "one row": (dict(x=X[:1], y=Y[1:2]), ["1 example"]),
    "another shape for testing": (dict(x=X, y=Y, x_test=X[:, :1], y_test=Y), ["(1, 3)", "(2, 3)"]),
    "pickled objects": (dict(x=np.array([{}] * 10), y=Y), ["plain arrays"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_one_sentence(case, npz):
    arrays, words = BAD_ARRAYS[case]
    path = npz(**arrays)
    with pytest.raises(UserError) as error:
        load("npz", path)
    assert one_sentence(error, str(path), *words)


def test_files_that_are_no_npz_are_one_sentence(tmp_path, npz):
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "text.npz").write_text("x, y")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(npz(x=X, y=Y).read_bytes()[:-50])
    for name in ("single.npy", "text.npz", "empty.npz", "cut.npz", "missing.npz", "."):
        with pytest.raises(UserError) as error:
            load("npz", tmp_path / name)
        assert one_sentence(error, str(tmp_path / name), "npz")


# Pictures


def test_preparation_follows_the_data_set():
    assert [preparation_of(n) for n in ("mnist", "sample", "fashion-mnist", "images")] == ["digit"] * 2 + [
        "picture"
    ] * 2
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
def test_an_empty_page_is_one_sentence(color, tmp_path):
    Image.new("L", (64, 48), color).save(tmp_path / "page.png")
    with pytest.raises(UserError) as error:
        read_picture(tmp_path / "page.png", "digit")
    assert one_sentence(error, "page.png", "nothing that stands out")
    assert read_picture(tmp_path / "page.png", "picture").unique().tolist() == [color]


def test_what_is_no_picture_is_one_sentence(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    drawing().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-300])
    for name in ("text.png", "empty.png", "cut.png", "missing.png", "."):
        with pytest.raises(UserError) as error:
            read_picture(tmp_path / name, "digit")
        assert one_sentence(error, str(tmp_path / name))


@pytest.mark.parametrize("limit", [50_000, 20_000])
def test_a_decompression_bomb_is_one_sentence(limit, tmp_path, monkeypatch):
    """Pillow warns above its limit and refuses above twice that; both are refused here."""
    drawing().save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError) as error:
        read_picture(tmp_path / "p.png", "digit")
    assert one_sentence(error, "p.png", "too large")


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
    assert sorted(zip(dataset.train.x[:, 0].tolist(), dataset.train.y.tolist(), strict=True)) == [
        *((10 + i, 0) for i in (1, 2, 3, 4, 6)),
        (201, 1),
    ]
    assert list(zip(dataset.test.x[:, 0].tolist(), dataset.test.y.tolist(), strict=True)) == [
        (10, 0),
        (15, 0),
        (200, 1),
    ]
    assert dataset.train.x.dtype == torch.uint8
    assert torch.equal(load("images", folders).train.x, dataset.train.x)
    assert "6 training and 3 test pictures of 2 classes" in dataset.source


def test_folders_that_do_not_fit_are_one_sentence(folders, tmp_path):
    (folders / "cat" / "3.PNG").write_text("no picture")
    with pytest.raises(UserError) as error:
        load("images", folders)
    assert one_sentence(error, str(folders / "cat" / "3.PNG"))
    (folders / "dog" / "1.PNG").unlink()
    with pytest.raises(UserError) as error:
        load("images", folders)
    assert one_sentence(error, str(folders / "dog"), "1 picture", "at least 2")
    with pytest.raises(UserError) as error:
        load("images", folders / "cat")
    assert one_sentence(error, "0 class folder", "at least 2")
    with pytest.raises(UserError) as error:
        load("images", tmp_path / "nowhere")
    assert one_sentence(error, "nowhere", "folder per class")
