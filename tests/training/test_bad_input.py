"""Every mistake of a user's ends with one sentence, a non-zero exit status, and nothing half written."""

import gzip
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import explain
import predict
import train
import verify
from explanation.numbers import Network
from tests.support import running
from tests.support.running import call, files, flags, one_sentence, write_npz
from training import checkpoint
from training.errors import UserError
from training.prediction import load_trained

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten steps."""
    folder = tmp_path_factory.mktemp("run")
    npz = write_npz(folder / "arrays.npz")
    options = {"dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 10, "run_dir": folder / "run"}
    assert train.main(list(flags(options))) == 0
    return folder / "run"


@pytest.fixture
def run_dir(a_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be spoiled."""
    return Path(shutil.copytree(a_run, tmp_path / "copy"))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


COMMAND_LINES = {
    "unknown dataset": (["--dataset", "mnits"], "mnist"),
    "unknown impl": (["--impl", "manul"], "manual"),
    "unknown preset": (["--preset", "3b1c"], "3b1b"),
    "unknown option": (["--learning-rate", "3"], "--learning-rate"),
    "misspelled option": (["--batchsize", "3"], "Perhaps you meant: --batch-size"),
    "unknown cost": (["--loss", "mse"], "quadratic"),
    "unknown activation": (["--activation", "sigmod"], "sigmoid"),
    "lr nan": (["--lr", "nan"], "--lr is nan"),
    "lr infinite": (["--lr", "inf"], "--lr is inf"),
    "lr zero": (["--lr", "0"], "--lr is 0.0"),
    "lr no number": (["--lr", "fast"], "'fast'"),
    "lr left out": (["--lr"], "--lr"),
    "negative width": (["--hidden", "16", "-5"], "--hidden is 16 -5"),
    "width beyond memory": (["--hidden", "1000000000"], "795,000,000,010 parameters"),
    "no widths": (["--hidden"], "--hidden is empty"),
    "no activations": (["--activation"], "--activation is empty"),
    "two activations, three layers": (["--activation", "relu", "tanh"], "3 names"),
    "logits": (["--loss", "softmax-cross-entropy", "--activation", "relu", "relu", "relu"], "must be identity"),
    "label smoothing": (["--label-smoothing", "0.1", "--loss", "quadratic"], "softmax-cross-entropy"),
    "momentum": (["--momentum", "1"], "--momentum is 1.0"),
    "betas of sgd": (["--betas", "0.9"], "sgd has no betas"),
    "schedule without its length": (["--schedule", "step"], "give --lr-epochs"),
    "early stopping on the test set": (["--patience", "3"], "give --validation"),
    "warm-up of the whole run": (
        ["--dataset", "sample", "--epochs", "1", "--warmup", "100"],
        "less than the run's 100",
    ),
    "dropout of everything": (["--dropout", "1"], "--dropout is 1.0"),
    "clipping twice": (["--clip-norm", "1", "--clip-value", "1"], "give one of them"),
    "unknown expansion": (["--expand", "shift"], "shifts"),
    "expansion of points": (["--dataset", "points", "--expand", "shifts"], "is for pictures"),
    "fractional epochs": (["--epochs", "1.5"], "1.5"),
    "no epochs": (["--epochs", "0"], "--epochs is 0"),
    "all held out": (["--validation", "10000"], "9,999"),
    "more examples than there are": (["--examples", "10001"], "from 0 to 10,000: sample has 10,000 training examples"),
    "more examples than even MNIST has": (["--examples", "60001"], "--examples is 60,001"),
    "a recipe for MNIST on its sample": (["--preset", "nielsen-ch1"], "give --dataset mnist, which has 60,000"),
    "a validation set as large as the sample": (["--preset", "nielsen-ch3-l2"], "give --dataset mnist"),
    "nonsense device": (["--device", "gpu"], "--device gpu"),
    "no such device": (["--device", "cuda:99"], "--device cuda:99"),
    "meta device": (["--device", "meta"], "--device meta"),
    "preset left out": (["--preset"], "--preset"),
    "resume left out": (["--resume"], "--resume"),
    "resume of nothing": (["--resume", "nowhere"], "nowhere"),
    "npz that is not there": (["--dataset", "npz", "--data-dir", "no.npz"], "no.npz"),
    "pictures that are not there": (["--dataset", "images", "--data-dir", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize(("arguments", "named"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_a_wrong_command_line(arguments: list[str], named: str, tmp_path: Path, capsys: Capsys) -> None:
    done = call(capsys, train.main, "--dataset", "sample", "--run-dir", tmp_path / "run", *arguments)
    assert done.status == 2
    assert named in one_sentence(done.err)
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    "arguments",
    [["--lr", "nan"], pytest.param(["--device", "meta"], marks=pytest.mark.slow)],
    ids=["refused while parsing", "refused before the run"],
)
def test_a_wrong_command_line_of_a_real_process(arguments: list[str], tmp_path: Path) -> None:
    done = running.run("train.py", "--dataset", "sample", "--run-dir", tmp_path / "run", *arguments)
    assert done.status == 2
    assert arguments[0] in one_sentence(done.err)
    assert files(tmp_path) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(tmp_path: Path, capsys: Capsys) -> None:
    done = call(capsys, train.main, *flags({"dataset": "sample", "device": "cuda", "run_dir": tmp_path / "run"}))
    assert done.status == 2
    assert "this machine has cpu" in one_sentence(done.err)
    assert files(tmp_path) == set()


# Data files


def idx(path: Path, magic: int, shape: tuple[int, ...], data: bytes) -> None:
    path.write_bytes(struct.pack(f">{1 + len(shape)}I", magic, *shape) + data)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A directory with files as long as MNIST's, all of them zeros."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        idx(raw / f"{prefix}-images-idx3-ubyte", 0x803, (count, 28, 28), bytes(count * 784))
        idx(raw / f"{prefix}-labels-idx1-ubyte", 0x801, (count,), bytes(count))
    return raw


def cut(raw: Path) -> None:
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def one_label_less(raw: Path) -> None:
    idx(raw / "t10k-labels-idx1-ubyte", 0x801, (9_999,), bytes(9_999))


def label_77(raw: Path) -> None:
    idx(raw / "t10k-labels-idx1-ubyte", 0x801, (10_000,), bytes(9_999) + b"\x4d")


def labels_for_images(raw: Path) -> None:
    shutil.copy(raw / "train-labels-idx1-ubyte", raw / "train-images-idx3-ubyte")


def a_broken_gzip(raw: Path) -> None:
    path = raw / "t10k-images-idx3-ubyte"
    (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-100])
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (cut, "train-images-idx3-ubyte"),
        (one_label_less, "9,999 labels, expected 10,000"),
        (label_77, "label 77 at row 9999"),
        (labels_for_images, "train-images-idx3-ubyte"),
        (a_broken_gzip, "t10k-images-idx3-ubyte.gz"),
    ],
)
def test_spoiled_data_files(
    spoil: Callable[[Path], None], named: str, mnist: Path, tmp_path: Path, capsys: Capsys
) -> None:
    spoil(mnist)
    for dataset in ("mnist", "auto"):
        options = {"dataset": dataset, "data_dir": tmp_path / "data", "run_dir": tmp_path / "run"}
        done = call(capsys, train.main, *flags(options))
        assert done.status == 2
        assert named in one_sentence(done.err)
    assert files(tmp_path) == {"data"}


@pytest.mark.slow
def test_no_network(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    options = {"dataset": "mnist", "data_dir": tmp_path / "data", "run_dir": tmp_path / "run"}
    done = call(capsys, train.main, *flags(options))
    assert done.status == 2
    assert "MNIST could not be downloaded" in one_sentence(done.err)
    assert "--dataset sample" in done.err
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"x": np.zeros((9, 2), np.float32)}, "no array 'y'"),
        ({"x": np.zeros((9, 2), np.float32), "y": np.zeros(8, int)}, "one label a row"),
        ({"x": np.zeros((9, 2), np.float32), "y": np.arange(9) - 1}, "label -1"),
        ({"x": np.full((9, 2), np.nan, np.float32), "y": np.arange(9)}, "not finite"),
    ],
    ids=["no labels", "a label too few", "label out of range", "NaN"],
)
def test_arrays_that_do_not_fit(arrays: dict[str, np.ndarray], named: str, tmp_path: Path, capsys: Capsys) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    options = {"dataset": "npz", "data_dir": tmp_path / "a.npz", "run_dir": tmp_path / "run"}
    done = call(capsys, train.main, *flags(options))
    assert done.status == 2
    assert named in one_sentence(done.err)
    assert files(tmp_path) == {"a.npz"}


# Run directories


@pytest.mark.parametrize("where", ["/dev/null/run", "/proc/run", "file/run"])
def test_a_run_directory_that_cannot_be(where: str, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "file").write_text("")
    done = call(capsys, train.main, *flags({"dataset": "spiral", "run_dir": tmp_path / where}))  # an absolute one stays
    assert done.status == 2
    assert "cannot write to the run directory" in one_sentence(done.err)
    assert files(tmp_path) == {"file"}


def test_a_run_directory_that_holds_a_run(run_dir: Path, capsys: Capsys) -> None:
    before = contents(run_dir)
    done = call(capsys, train.main, *flags({"dataset": "spiral", "run_dir": run_dir}))
    assert done.status == 2
    assert f"already holds a run: give another --run-dir, or go on with --resume {run_dir}" in one_sentence(done.err)
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lr", "3"], "--lr cannot change"),
        (["--impl", "both"], "--impl cannot change"),
        (["--hidden", "9"], "--hidden cannot change"),
        (["--preset", "points"], "leave out --run-dir and --preset"),
        (["--run-dir", "elsewhere"], "leave out --run-dir and --preset"),
    ],
)
def test_resume_with_something_else(arguments: list[str], named: str, run_dir: Path, capsys: Capsys) -> None:
    before = contents(run_dir)
    done = call(capsys, train.main, "--resume", run_dir, *arguments)
    assert done.status == 2
    assert named in one_sentence(done.err)
    assert contents(run_dir) == before


# Checkpoints


def cut_off(run_dir: Path) -> None:
    path = run_dir / "last.pt"
    path.write_bytes(path.read_bytes()[:-1000])


def not_one_at_all(run_dir: Path) -> None:
    (run_dir / "last.pt").write_text("epoch 3: 95%")


def empty(run_dir: Path) -> None:
    (run_dir / "last.pt").write_bytes(b"")


def only_weights(run_dir: Path) -> None:
    torch.save({"layer1.weight": torch.zeros(2, 2)}, run_dir / "last.pt")


def missing(run_dir: Path) -> None:
    (run_dir / "last.pt").unlink()


def of_another_format(run_dir: Path) -> None:
    saved = checkpoint.load(run_dir)
    saved["format"] = 99
    torch.save(saved, run_dir / "last.pt")


def of_another_shape(run_dir: Path) -> None:
    saved = checkpoint.load(run_dir)
    saved["model"]["layer1.weight"] = torch.zeros(9, 5)
    torch.save(saved, run_dir / "last.pt")


def with_a_layer_more(run_dir: Path) -> None:
    saved = checkpoint.load(run_dir)
    saved["model"]["layer3.weight"] = torch.zeros(3, 3)
    torch.save(saved, run_dir / "last.pt")


SPOILED = [
    (cut_off, "not a whole checkpoint"),
    (not_one_at_all, "not a whole checkpoint"),
    (empty, "not a whole checkpoint"),
    (only_weights, "not a checkpoint of this project"),
    (missing, "holds no checkpoint"),
    (of_another_format, "format version 99"),
    (of_another_shape, "layer1.weight is (9, 5)"),
    (with_a_layer_more, "layer3.weight"),
]


@pytest.mark.parametrize(("spoil", "named"), SPOILED)
def test_spoiled_checkpoints(spoil: Callable[[Path], None], named: str, run_dir: Path, capsys: Capsys) -> None:
    spoil(run_dir)
    before = contents(run_dir)
    resumed = call(capsys, train.main, "--resume", run_dir, "--epochs", "101")
    asked = call(capsys, predict.main, "--checkpoint", run_dir, "--dataset", "sample")
    verified = call(capsys, verify.main, "--checkpoint", run_dir)
    for done in (resumed, asked, verified):
        assert done.status == 2
        assert named in one_sentence(done.err)
    assert contents(run_dir) == before


class Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.file,)


def test_a_checkpoint_that_would_run_code(run_dir: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run_dir)
    torch.save({**saved, "config": Intruder(tmp_path / "intruded")}, run_dir / "last.pt")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        checkpoint.load(run_dir)
    assert not (tmp_path / "intruded").exists()


def test_a_checkpoint_cut_off_anywhere(run_dir: Path) -> None:
    whole = (run_dir / "last.pt").read_bytes()
    lengths = {*range(0, len(whole), len(whole) // 60), *range(len(whole) - 150, len(whole))}
    for length in sorted(lengths):
        (run_dir / "last.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole checkpoint"):
            checkpoint.load(run_dir)


def test_any_bytes_but_a_checkpoint(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for length in range(1, 300):
        (tmp_path / "x.pt").write_bytes(generator.integers(32, 127, length, dtype=np.uint8).tobytes())
        with pytest.raises(ValueError, match="not a"):
            checkpoint.load(tmp_path / "x.pt")


def test_resume_where_the_data_have_changed(run_dir: Path, tmp_path: Path, capsys: Capsys) -> None:
    other = write_npz(tmp_path / "other.npz", features=6)
    config = (run_dir / "config.toml").read_text()
    lines = [f'data_dir = "{other}"' if line.startswith("data_dir") else line for line in config.splitlines()]
    (run_dir / "config.toml").write_text("\n".join(lines))
    done = call(capsys, train.main, "--resume", run_dir)
    assert done.status == 2
    assert "not those that the run" in one_sentence(done.err)


def test_resume_where_the_device_is_gone(run_dir: Path, capsys: Capsys) -> None:
    config = (run_dir / "config.toml").read_text()
    (run_dir / "config.toml").write_text(config.replace('device = "cpu"', 'device = "cuda:99"'))
    done = call(capsys, train.main, "--resume", run_dir)
    assert done.status == 2
    assert "--device cuda:99" in one_sentence(done.err)


# Values that are not finite


@pytest.mark.parametrize("impl", ["manual", pytest.param("reference", marks=pytest.mark.slow), "both"])
def test_a_cost_that_is_not_finite(impl: str, tmp_path: Path, capsys: Capsys) -> None:
    npz = write_npz(tmp_path / "arrays.npz")
    options = {"impl": impl, "dataset": "npz", "data_dir": npz, "hidden": (8, 8), "batch_size": 30, "lr": 1e30}
    options |= {"activation": "relu", "run_dir": tmp_path / "run"}
    done = call(capsys, train.main, *flags(options))
    assert done.status == 3
    sentence = one_sentence(done.err)
    assert "step 2: the first value that is not finite is in z of layer2" in sentence
    assert "try a smaller --lr" in sentence
    saved = checkpoint.load(tmp_path / "run")
    assert saved["steps"] == 0
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


@pytest.mark.parametrize(
    ("lr", "named", "kept"),
    [
        (0.2, "step 6: the first value that is not finite is in C;", 4),
        (0.4, "after step 4 the cost of the test set", 2),
    ],
    ids=["in a step", "in an evaluation"],
)
def test_the_last_good_checkpoint_is_kept(lr: float, named: str, kept: int, tmp_path: Path, capsys: Capsys) -> None:
    """A linear network at too high a rate lives for a few steps, two of them an epoch."""
    npz = write_npz(tmp_path / "arrays.npz")
    options = {"dataset": "npz", "data_dir": npz, "hidden": (8,), "batch_size": 100, "lr": lr, "schedule": "constant"}
    options |= {"activation": ("identity", "identity"), "loss": "quadratic", "init": "scaled-normal"}
    done = call(capsys, train.main, *flags({**options, "epochs": 1000, "run_dir": tmp_path / "run"}))
    assert done.status == 3
    assert named in one_sentence(done.err)
    saved = checkpoint.load(tmp_path / "run")
    assert saved["steps"] == kept
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


# predict.py and verify.py


PREDICT = {
    "neither pictures nor data": ([], "either pictures or --dataset"),
    "both": (["x.png", "--dataset", "npz"], "either pictures or --dataset"),
    "validation of pictures": (["x.png", "--validation", "3"], "go with --dataset"),
    "unknown dataset": (["--dataset", "mnits"], "did you mean 'mnist'"),
    "data of another shape": (["--dataset", "sample"], "sample has shape 28, 28"),
    "pictures for a network of arrays": (["x.png"], "reads no pictures"),
}


@pytest.mark.parametrize(("arguments", "named"), PREDICT.values(), ids=PREDICT.keys())
def test_a_wrong_question(arguments: list[str], named: str, a_run: Path, capsys: Capsys) -> None:
    done = call(capsys, predict.main, "--checkpoint", a_run, *arguments)
    assert done.status == 2
    assert named in one_sentence(done.err)


def test_data_with_other_classes(a_run: Path, tmp_path: Path, capsys: Capsys) -> None:
    npz = write_npz(tmp_path / "four.npz", classes=4)
    done = call(capsys, predict.main, "--checkpoint", a_run, "--dataset", "npz", "--data-dir", npz)
    assert done.status == 2
    assert "classes 0, 1, 2, 3" in one_sentence(done.err)


def test_pictures_that_are_none(tmp_path: Path, capsys: Capsys) -> None:
    options = {"dataset": "sample", "hidden": (4,), "max_steps": 1, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    (tmp_path / "text.png").write_text("seven")
    Image.new("L", (40, 40), 200).save(tmp_path / "blank.png")
    Image.effect_noise((40, 40), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    for name in ("text.png", "blank.png", "cut.png", "nothing.png"):
        done = call(capsys, predict.main, "--checkpoint", tmp_path / "run", tmp_path / name)
        assert done.status == 2
        assert done.out == ""
        assert name in one_sentence(done.err)


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--seed", "-1"], ["--model", "gpt"], ["--dtype", "int8"]])
def test_wrong_orders_to_verify(arguments: list[str], capsys: Capsys) -> None:
    done = call(capsys, verify.main, *arguments)
    assert done.status == 2
    assert arguments[0] in one_sentence(done.err)


# explain.py


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures."""
    path = tmp_path_factory.mktemp("run") / "digits"
    assert train.main(list(flags({"dataset": "sample", "hidden": (70,), "max_steps": 1, "run_dir": path}))) == 0
    return path


EXPLAIN = {
    "both an index and a picture": (["--index", "7", "--image", "x.png"], "either --index or --image"),
    "a label without a picture": (["--label", "3"], "--label goes with --image"),
    "a mini-batch of one": (["--batch-size", "1"], "--batch-size is 1"),
    "an index beyond the training set": (["--index", "10000"], "from 0 to 9,999"),
    "a negative index": (["--index", "-1"], "--index is -1"),
    "no whole number": (["--index", "seven"], "seven"),
    "a class that is none": (["--image", "{tmp}/digit.png", "--label", "ten"], "one of 0, 1, 2"),
    "no picture there": (["--image", "{tmp}/nothing.png"], "nothing.png does not exist"),
    "a picture that is none": (["--image", "{tmp}/text.png"], "text.png cannot be read as a picture"),
    "a blank picture": (["--image", "{tmp}/blank.png"], "blank.png shows nothing"),
    "a mini-batch without end": (["--batch-size", "1001"], "from 2 to 1,000"),
    "too many gradients": (["--batch-size", "1000"], "smaller --batch-size"),
    "no such directory for the page": (["--out", "{tmp}/none/page.html"], "give another --out"),
    "a directory for a page": (["--out", "{tmp}"], "give another --out"),
    "no checkpoint there": (["--checkpoint", "{tmp}"], "holds no checkpoint"),
    "a checkpoint that is none": (["--checkpoint", "{tmp}/text.png"], "is not a whole checkpoint"),
}


@pytest.mark.parametrize(("arguments", "named"), EXPLAIN.values(), ids=EXPLAIN.keys())
def test_what_cannot_be_explained(
    arguments: list[str], named: str, digits: Path, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "text.png").write_text("seven")
    Image.new("L", (40, 40), 200).save(tmp_path / "blank.png")
    ImageOps.expand(Image.new("L", (6, 18), 255), 10).save(tmp_path / "digit.png")
    before, run_before = files(tmp_path), contents(digits)
    asked = [argument.format(tmp=tmp_path) for argument in arguments]
    done = call(capsys, explain.main, "--checkpoint", digits, "--out", tmp_path / "page.html", "--tensorboard", *asked)
    assert (done.status, done.out) == (2, "")
    assert named in one_sentence(done.err)
    assert files(tmp_path) == before
    assert contents(digits) == run_before


@pytest.mark.parametrize("missing", ["model", "data", "config"])
def test_a_checkpoint_without_what_the_page_needs(missing: str, run_dir: Path, tmp_path: Path, capsys: Capsys) -> None:
    saved = torch.load(run_dir / "last.pt", weights_only=True)
    saved.pop(missing)
    torch.save(saved, tmp_path / "less.pt")
    done = call(capsys, explain.main, "--checkpoint", tmp_path / "less.pt", "--out", tmp_path / "page.html")
    assert done.status == 2
    assert "less.pt is not a checkpoint of this project" in one_sentence(done.err)
    assert not (tmp_path / "page.html").exists()


def test_a_checkpoint_of_a_network_that_diverged(run_dir: Path, tmp_path: Path, capsys: Capsys) -> None:
    saved = torch.load(run_dir / "last.pt", weights_only=True)
    saved["model"]["layer2.bias"].fill_(torch.nan)
    torch.save(saved, tmp_path / "nan.pt")
    done = call(capsys, explain.main, "--checkpoint", tmp_path / "nan.pt", "--out", tmp_path / "page.html")
    assert done.status == 2
    assert "not finite" in one_sentence(done.err)
    assert not (tmp_path / "page.html").exists()


def test_only_perceptrons_are_explained(a_run: Path) -> None:
    trained = load_trained(a_run)
    trained.learner.model = object()  # type: ignore[assignment]
    with pytest.raises(UserError, match="only perceptrons"):
        Network(trained)


def test_a_network_of_arrays_reads_no_picture(a_run: Path, tmp_path: Path, capsys: Capsys) -> None:
    asked = ["--checkpoint", a_run, "--image", "x.png", "--out", tmp_path / "page.html"]
    assert "reads no pictures" in one_sentence(call(capsys, explain.main, *asked).err)


def test_data_that_the_network_was_not_trained_on(a_run: Path, tmp_path: Path, capsys: Capsys) -> None:
    asked = ["--checkpoint", a_run, "--out", tmp_path / "page.html", "--data-dir"]
    other = write_npz(tmp_path / "four.npz", classes=4)
    for data, named in ((other, "classes 0, 1, 2, 3"), (tmp_path / "none.npz", "none.npz")):
        done = call(capsys, explain.main, *asked, data)
        assert done.status == 2
        assert named in one_sentence(done.err)
    assert files(tmp_path) == {"four.npz"}
