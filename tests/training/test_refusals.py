"""What train.py refuses: one sentence, a non-zero exit status, and nothing half written.

Each setting's own range, and what does not go together, is in tests/config; what is wrong with files in tests/data.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from tests.support.refusals import assert_refused, contents, small_run
from tests.support.running import call, files, flags, write_npz
from training import checkpoint

Capsys = pytest.CaptureFixture[str]

NO_SUCH_WORDS = {
    "unknown dataset": (["--dataset", "mnits"], "mnist"),
    "unknown impl": (["--impl", "manul"], "manual"),
    "unknown preset": (["--preset", "3b1c"], "3b1b"),
    "unknown option": (["--learning-rate", "3"], "--learning-rate"),
    "misspelled option": (["--batchsize", "3"], "Perhaps you meant: --batch-size"),
    "unknown cost": (["--loss", "mse"], "quadratic"),
    "unknown activation": (["--activation", "sigmod"], "sigmoid"),
    "unknown expansion": (["--expand", "shift"], "shifts"),
    "lr no number": (["--lr", "fast"], "'fast'"),
    "lr left out": (["--lr"], "--lr"),
    "fractional epochs": (["--epochs", "1.5"], "1.5"),
    "preset left out": (["--preset"], "--preset"),
    "resume left out": (["--resume"], "--resume"),
}
OUT_OF_RANGE = {
    "lr nan": (["--lr", "nan"], "--lr is nan"),
    "negative width": (["--hidden", "16", "-5"], "--hidden is 16 -5"),
    "no widths": (["--hidden"], "--hidden is empty"),
    "no activations": (["--activation"], "--activation is empty"),
    "clipping twice": (["--clip-norm", "1", "--clip-value", "1"], "give one of them"),
}
NOT_FOR_THE_DATA = {
    "expansion of points": (["--dataset", "points", "--expand", "shifts"], "is for pictures"),
    "all held out": (["--validation", "10000"], "9,999"),
    "more examples than there are": (["--examples", "10001"], "from 0 to 10,000: sample has 10,000 training examples"),
    "more examples than even MNIST has": (["--examples", "60001"], "--examples is 60,001"),
    "a recipe for MNIST on its sample": (["--preset", "nielsen-ch1"], "give --dataset mnist, which has 60,000"),
    "a validation set as large as the sample": (["--preset", "nielsen-ch3-l2"], "give --dataset mnist"),
    "width beyond memory": (["--hidden", "1000000000"], "795,000,000,010 parameters"),
    "warm-up of the whole run": (["--epochs", "1", "--warmup", "100"], "less than the run's 100"),
}
NOT_THERE = {
    "nonsense device": (["--device", "gpu"], "--device gpu"),
    "no such device": (["--device", "cuda:99"], "--device cuda:99"),
    "meta device": (["--device", "meta"], "--device meta"),
    "run to resume": (["--resume", "nowhere"], "nowhere"),
    "npz": (["--dataset", "npz", "--data-dir", "no.npz"], "no.npz"),
    "pictures": (["--dataset", "images", "--data-dir", "nowhere"], "nowhere"),
}
COMMAND_LINES = NO_SUCH_WORDS | OUT_OF_RANGE | NOT_FOR_THE_DATA | NOT_THERE


@pytest.mark.sweep(6)
@pytest.mark.parametrize(("arguments", "named"), COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_a_wrong_command_line(arguments, named, tmp_path, capsys):
    done = call(capsys, train.main, "--dataset", "sample", "--run-dir", tmp_path / "run", *arguments)
    assert_refused(done, named)
    assert files(tmp_path) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(tmp_path, capsys):
    done = call(capsys, train.main, *flags({"dataset": "sample", "device": "cuda", "run_dir": tmp_path / "run"}))
    assert_refused(done, "this machine has cpu")
    assert files(tmp_path) == set()


@pytest.mark.parametrize("dataset", ["mnist", "auto", "npz"])
def test_spoiled_data(dataset, tmp_path, capsys):
    data = tmp_path / "data"
    raw = data / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03")
    np.savez(data / "a.npz", x=np.full((9, 2), np.nan, np.float32), y=np.arange(9))
    place, named = (data / "a.npz", "not finite") if dataset == "npz" else (data, "train-images-idx3-ubyte")
    done = call(capsys, train.main, *flags({"dataset": dataset, "data_dir": place, "run_dir": tmp_path / "run"}))
    assert_refused(done, named)
    assert files(tmp_path) == {"data"}


# Run directories


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run_dir(a_run, tmp_path):
    """A copy of that run, to be spoiled."""
    return Path(shutil.copytree(a_run, tmp_path / "copy"))


@pytest.mark.parametrize("where", ["/dev/null/run", "/proc/run", "file/run"])
def test_a_run_directory_that_cannot_be(where, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    done = call(capsys, train.main, *flags({"dataset": "spiral", "run_dir": tmp_path / where}))  # an absolute one stays
    assert_refused(done, "cannot write to the run directory")
    assert files(tmp_path) == {"file"}


@pytest.mark.slow
def test_a_run_directory_that_holds_a_run(a_run, capsys):
    before = contents(a_run)
    done = call(capsys, train.main, *flags({"dataset": "spiral", "run_dir": a_run}))
    assert_refused(done, f"already holds a run: give another --run-dir, or go on with --resume {a_run}")
    assert contents(a_run) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lr", "3"], "--lr cannot change"),
        (["--impl", "both"], "--impl cannot change"),
        (["--hidden", "9"], "--hidden cannot change"),
        (["--preset", "points"], "leave out --run-dir and --preset"),
        (["--run-dir", "elsewhere"], "leave out --run-dir and --preset"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_resume_with_something_else(arguments, named, a_run, capsys):
    before = contents(a_run)
    assert_refused(call(capsys, train.main, "--resume", a_run, *arguments), named)
    assert contents(a_run) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "named"),
    [("data_dir", "{tmp}/other.npz", "not those that the run"), ("device", "cuda:99", "--device cuda:99")],
)
def test_resume_where_something_has_changed(name, value, named, run_dir, tmp_path, capsys):
    write_npz(tmp_path / "other.npz", features=6)
    lines = (run_dir / "config.toml").read_text().splitlines()
    changed = [f'{name} = "{value.format(tmp=tmp_path)}"' if line.startswith(name) else line for line in lines]
    (run_dir / "config.toml").write_text("\n".join(changed))
    assert_refused(call(capsys, train.main, "--resume", run_dir), named)


# Values that are not finite


def assert_kept(run_dir, steps):
    saved = checkpoint.load(run_dir)
    assert saved["steps"] == steps
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


@pytest.mark.parametrize("impl", ["manual", pytest.param("reference", marks=pytest.mark.slow), "both"])
def test_a_cost_that_is_not_finite(impl, tmp_path, capsys):
    npz = write_npz(tmp_path / "arrays.npz")
    options = {"impl": impl, "dataset": "npz", "data_dir": npz, "hidden": (8, 8), "batch_size": 30, "lr": 1e30}
    options |= {"activation": "relu", "run_dir": tmp_path / "run"}
    done = call(capsys, train.main, *flags(options))
    assert_refused(done, "step 2: the first value that is not finite is in z of layer2", "try a smaller --lr", status=3)
    assert_kept(tmp_path / "run", 0)


@pytest.mark.parametrize(
    ("lr", "named", "kept"),
    [
        (0.2, "step 6: the first value that is not finite is in C;", 4),
        (0.4, "after step 4 the cost of the test set", 2),
    ],
    ids=["in a step", "in an evaluation"],
)
def test_the_last_good_checkpoint_is_kept(lr, named, kept, tmp_path, capsys):
    """A linear network at too high a rate lives for a few steps, two of them an epoch."""
    npz = write_npz(tmp_path / "arrays.npz")
    options = {"dataset": "npz", "data_dir": npz, "hidden": (8,), "batch_size": 100, "lr": lr, "schedule": "constant"}
    options |= {"activation": ("identity", "identity"), "loss": "quadratic", "init": "scaled-normal"}
    done = call(capsys, train.main, *flags({**options, "epochs": 1000, "run_dir": tmp_path / "run"}))
    assert_refused(done, named, status=3)
    assert_kept(tmp_path / "run", kept)
