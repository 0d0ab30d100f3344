"""MNIST's files, their download and the sample that ships: what is broken is told in one sentence."""

import functools
import gzip
import hashlib
import http.server
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.support.refusals import refused
from tests.support.running import ROOT
from training.data import DATASETS, load
from training.data.idx import read_idx, write_idx
from training.data.make_sample import make_sample
from training.data.mnist import FILES, SAMPLE
from training.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES
RAW = Path("MNIST") / "raw"


def idx_bytes(values):
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    return header + values.numpy().tobytes()


@pytest.fixture(scope="session")
def tiled_dir(tmp_path_factory):
    """A valid MNIST of full size, made of copies of the sample, so that no download is needed."""
    folder = tmp_path_factory.mktemp("tiled")
    (folder / RAW).mkdir(parents=True)
    for file, copies in zip(FILES, (6, 6, 5, 5), strict=True):
        values = read_idx(SAMPLE / f"{file}.gz", 3 if "images" in file else 1, "")
        (folder / RAW / file).write_bytes(idx_bytes(values.repeat(copies, *[1] * (values.ndim - 1))))
    return folder


@pytest.fixture
def data_dir(tiled_dir, tmp_path):
    """Links to the tiled set: each test may replace files of its own."""
    for name in ("MNIST", "FashionMNIST"):
        (tmp_path / name / "raw").mkdir(parents=True)
        for file in FILES:
            (tmp_path / name / "raw" / file).symlink_to(tiled_dir / RAW / file)
    return tmp_path


def replace_file(path, content, suffix=""):
    path.unlink()
    path.with_name(path.name + suffix).write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_full_sets_equal_torchvisions_reading(name, kind, mnist_dir):
    from torchvision import datasets

    if not (mnist_dir / kind).exists():
        pytest.skip(f"no full {kind}")
    dataset = load(name, mnist_dir)
    for train, split in ((True, dataset.train), (False, dataset.test)):
        theirs = getattr(datasets, kind)(mnist_dir, train=train)
        assert torch.equal(split.x, theirs.data.flatten(1))
        assert torch.equal(split.y, theirs.targets)


def test_gzipped_files_are_read_where_they_lie(data_dir):
    plain = load("mnist", data_dir)
    for file in FILES[1:]:
        replace_file(data_dir / RAW / file, gzip.compress((data_dir / RAW / file).read_bytes(), 1), ".gz")
    gzipped = load("auto", data_dir)
    assert gzipped.name == "mnist"
    assert torch.equal(gzipped.test.x, plain.test.x)
    assert torch.equal(gzipped.train.y, plain.train.y)


def labels(count, at_123=3):
    values = (torch.arange(count) % 10).byte()
    values[123:124] = at_123
    return idx_bytes(values)


def zeros(*shape):
    return idx_bytes(torch.zeros(shape).byte())


BROKEN_FILES = {
    "label 77": (TEST_LABELS, labels(10_000, at_123=77), ["label 77 at row 123", "0 to 9"]),
    "labels too few": (TEST_LABELS, labels(9_000), ["9,000 labels", "10,000"]),
    "images too few": (TEST_IMAGES, zeros(90, 28, 28), ["90 images"]),
    "images of another size": (TEST_IMAGES, zeros(10_000, 14, 28), ["14x28 pixels", "28x28"]),
    "cut off in the data": (TRAIN_LABELS, labels(60_000)[:-7], ["60,001", "60,008"]),
    "longer than announced": (TRAIN_LABELS, labels(60_000) + b"\0", ["60,009"]),
    "cut off in the header": (TRAIN_IMAGES, b"\0\0\x08\x03", ["4 bytes", "header"]),
    "empty": (TRAIN_IMAGES, b"", ["0 bytes"]),
    "announces nothing": (TEST_LABELS, labels(0), ["no examples"]),
    "images for labels": (TEST_LABELS, zeros(1, 2, 3), ["0x00000803", "0x00000801"]),
    "labels for images": (TRAIN_IMAGES, labels(60_000), ["0x00000801", "0x00000803"]),
    "a web page": (TEST_LABELS, b"<!DOCTYPE html>", ["0x3c21444f"]),
}


@pytest.mark.parametrize(("file", "content", "words"), BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_broken_file_is_named_with_what_is_wrong(file, content, words, data_dir):
    replace_file(data_dir / RAW / file, content)
    for name in ("mnist", "auto") if file == TRAIN_IMAGES else ("mnist",):  # which is read first
        with refused(file, *words, "delete it and run again"):
            load(name, data_dir)  # takes no sample in its place


BROKEN_GZIP = {
    "cut off in the header": lambda content: content[:5],
    "cut off in the data": lambda content: content[:1_000],
    "damaged": lambda content: content[:10] + b"\xff" + content[11:],
    "another checksum": lambda content: content[:-8] + bytes(4) + content[-4:],
    "not compressed": gzip.decompress,
}


@pytest.mark.parametrize("broken", BROKEN_GZIP.values(), ids=BROKEN_GZIP)
def test_a_broken_gzip_file_is_named(broken, data_dir):
    path = data_dir / RAW / TEST_LABELS
    replace_file(path, broken(gzip.compress(path.read_bytes())), ".gz")
    with refused(f"{TEST_LABELS}.gz", "cannot be read", "delete it and run again"):
        load("auto", data_dir)


def test_idx_round_trip_is_reproducible(tmp_path):
    values, paths = torch.arange(60).byte().view(5, 3, 4), (tmp_path / "a.gz", tmp_path / "b.gz")
    for path in paths:
        write_idx(path, values)
        assert torch.equal(read_idx(path, 3, ""), values)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(UserError, match=r"c is missing; look elsewhere$"):
        read_idx(tmp_path / "c", 3, "look elsewhere")


def test_no_network_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    from torchvision import datasets

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [url, f"{url}again/"])
    with refused("MNIST could not be downloaded", str(tmp_path / "data"), "--dataset sample"):
        load("mnist", tmp_path / "data")
    assert list(tmp_path.rglob("*")) == []
    assert capsys.readouterr().out == ""
    (tmp_path / "file").write_text("")
    with refused("could not be downloaded", "file"):
        load("mnist", tmp_path / "file")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tiled_dir, tmp_path, monkeypatch):
    """A mirror of the tiled set on this machine, which torchvision takes for Fashion-MNIST's; its folder."""
    from torchvision import datasets

    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for file in FILES:
        content = gzip.compress((tiled_dir / RAW / file).read_bytes(), 1)
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


@pytest.mark.slow
def test_what_is_missing_is_downloaded_and_what_is_there_is_kept(mirror, tmp_path, tiled_dir, capsys):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    own = labels(10_000)
    (raw / TEST_LABELS).write_bytes(own)
    dataset = load("fashion-mnist", tmp_path / "data")
    assert torch.equal(dataset.train.x, load("mnist", tiled_dir).train.x)
    assert (raw / TEST_LABELS).read_bytes() == own
    assert sorted(path.name for path in raw.iterdir()) == sorted(FILES)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["FashionMNIST"]
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_cut_off_download_leaves_nothing_behind(mirror, tmp_path):
    path = mirror / f"{TEST_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with refused("Fashion-MNIST could not be downloaded"):  # which file, newer torchvisions add
        load("fashion-mnist", tmp_path / "data")
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file() or path.name.startswith(".")] == []


def test_a_torchvision_that_does_not_fit_torch_is_refused(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with refused("operator torchvision::nms does not exist", "install torch and torchvision together"):
        load("mnist", tmp_path / "data")


def test_the_sample_is_the_beginning_of_mnist(mnist_dir):
    sample, full = load("sample"), load("mnist", mnist_dir)
    for part, whole, count in ((sample.train, full.train, 10_000), (sample.test, full.test, 2_000)):
        assert torch.equal(part.x, whole.x[:count])
        assert torch.equal(part.y, whole.y[:count])


def test_the_sample_is_small_and_whole():
    sample = load("sample")
    assert (len(sample.train), len(sample.test), sample.shape) == (10_000, 2_000, (28, 28))
    assert sample.classes == tuple("0123456789")
    assert torch.equal(sample.train.y.unique(), torch.arange(10))
    assert sum(path.stat().st_size for path in SAMPLE.glob("*.gz")) < 2_100_000
    assert "Creative Commons Attribution-ShareAlike 3.0" in (SAMPLE / "README.md").read_text()


@pytest.mark.long
def test_make_sample_makes_what_ships(tiled_dir, tmp_path):
    """The tiled set begins with the sample. Only the header is compared in compressed form: other builds of zlib
    compress the same bytes differently."""
    for path in make_sample(tiled_dir, tmp_path):
        made, shipped = path.read_bytes(), (SAMPLE / path.name).read_bytes()
        assert gzip.decompress(made) == gzip.decompress(shipped)
        assert made[:10] == shipped[:10]


@pytest.mark.long
def test_the_sample_needs_no_torchvision():
    program = (
        "import sys; from pathlib import Path; from training.data import load;"
        "load('sample'); load('auto', Path('no-such-directory')); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_auto_is_mnist_where_it_lies_and_else_the_sample(data_dir):
    for name, found in (("auto", "mnist"), ("fashion-mnist", "fashion-mnist")):
        dataset = load(name, data_dir)
        assert (dataset.train.x.shape, dataset.test.x.shape) == ((60_000, 784), (10_000, 784))
        assert (dataset.train.x.dtype, dataset.train.y.dtype) == (torch.uint8, torch.int64)
        assert (dataset.name, dataset.shape, len(dataset.classes)) == (found, (28, 28), 10)
        assert dataset.source.endswith(f"MNIST from {data_dir}/: 60,000 training and 10,000 test images")
    (data_dir / RAW / TRAIN_LABELS).unlink()
    dataset = load("auto", data_dir)
    assert dataset.name == "sample"
    assert "bundled sample of MNIST: 10,000 training and 2,000 test images" in dataset.source
    assert f"--dataset mnist downloads them into {data_dir}/" in dataset.source


@pytest.mark.parametrize(("name", "hint"), [("mnits", "did you mean 'mnist'?"), ("cifar", "use one of auto, mnist")])
def test_an_unknown_name_is_refused_with_those_that_there_are(name, hint):
    with refused(repr(name), hint, *DATASETS):
        load(name)
