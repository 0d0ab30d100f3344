"""What the scripts refuse: one sentence, a non-zero exit status, and nothing half written.

Each setting's own range, and what does not go together, is in tests/config; what is wrong with files in tests/data.
"""

import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import explain
import predict
import train
import verify
from tests.support.refusals import assert_refused, contents, refused
from tests.support.running import call, files, flags, write_npz
from training import checkpoint
from training.files import claimed
from training.interruption import Interruption

NO_SUCH_WORDS = {
    "--dataset mnits": "mnist",
    "--impl manul": "manual",
    "--preset 3b1c": "3b1b",
    "--learning-rate 3": "--learning-rate",
    "--batchsize 3": "Perhaps you meant: --batch-size",
    "--loss mse": "quadratic",
    "--activation sigmod": "sigmoid",
    "--expand shift": "shifts",
    "--lr fast": "'fast'",
    "--lr": "--lr",
    "--epochs 1.5": "1.5",
    "--preset": "--preset",
    "--resume": "--resume",
}
NOT_FOR_THE_DATA = {
    "--dataset points --expand shifts": "is for pictures",
    "--validation 10000": "9,999",
    "--examples 10001": "from 0 to 10,000: sample has 10,000 training examples",
    "--examples 500 --validation 9999": "training examples besides the 9,999 that --validation holds out",
    "--examples 60001": "--examples is 60,001",  # which not even MNIST has
    "--preset nielsen-ch1": "give --dataset mnist, which has 60,000",  # a recipe for MNIST on its sample
    "--preset nielsen-ch3-l2": "give --dataset mnist",  # whose validation set is as large as the sample
    "--hidden 1000000000": "795,000,000,010 parameters",
    "--l2 1e300": "--l2 is 1e+300, but it must be 0 or from 1e-30 to 1e30, the range for float32",
    "--optimizer adam --eps 1e-320": "--eps is 1e-320",
}
NOT_THERE = {
    "--device cuda:99": "--device cuda:99",
    "--resume nowhere": "nowhere",
    "--dataset npz --data-dir no.npz": "no.npz",
    "--dataset images --data-dir nowhere": "nowhere",
}
COMMAND_LINES = NO_SUCH_WORDS | {"--lr nan": "--lr is nan"} | NOT_FOR_THE_DATA | NOT_THERE


@pytest.mark.sweep(6)
@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_wrong_command_line(line, tmp_path, capsys):
    done = call(capsys, train.main, "--dataset", "sample", "--run-dir", tmp_path / "run", *line.split())
    assert_refused(done, COMMAND_LINES[line])
    assert files(tmp_path) == set()


@pytest.mark.parametrize("where", ["/dev/null/run", "/proc/run", "file/run"])
def test_a_run_directory_that_cannot_be(where, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    done = call(capsys, train.main, *flags({"dataset": "spiral", "run_dir": tmp_path / where}))  # an absolute one stays
    assert_refused(done, "cannot write to the run directory")
    assert files(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("size", "kept"), [(300, False), (1500, False), pytest.param(30_000, True, marks=pytest.mark.slow)]
)
def test_a_full_disk(size, kept, npz, tmp_path, capsys):
    """For config.toml, the first checkpoint or a picture. Nothing is left of a run without a checkpoint."""
    run_dir = tmp_path / "run"
    options = {"dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 10, "eval_every": 5}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # of every file that is written to
    try:
        done = call(capsys, train.main, *flags({**options, "run_dir": run_dir}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_refused(done, f"; --resume {run_dir} goes on" if kept else "")
    assert run_dir.exists() == kept
    if kept:
        assert call(capsys, train.main, "--resume", run_dir).status == 0
        assert checkpoint.load(run_dir)["steps"] == 10


@pytest.mark.parametrize("line", ["--run-dir {run}", "--resume {run} --max-steps 20"])
def test_a_directory_in_which_another_run_is_at_work(line, run_dir, capsys):
    before = contents(run_dir)
    with claimed(run_dir):
        done = call(capsys, train.main, *line.format(run=run_dir).split())
    assert_refused(done, f"another run is at work in {run_dir}: wait until it has ended")
    assert contents(run_dir) == before


def test_a_directory_that_vanishes(npz, tmp_path, capsys, monkeypatch):
    polls = iter(range(100))
    monkeypatch.setattr(Interruption, "__call__", lambda self: next(polls) == 7 and shutil.rmtree(tmp_path / "run"))
    done = call(capsys, train.main, *flags({"dataset": "npz", "data_dir": npz, "run_dir": tmp_path / "run"}))
    assert_refused(done, f"{tmp_path / 'run'} is gone: if it was moved, --resume its new path")


AN_OLD_RUN = {
    "--dataset spiral --run-dir {run}": "already holds a run: give another --run-dir, or go on with --resume {run}",
    "--resume {run} --lr 3": "--lr cannot change",
    "--resume {run} --impl both": "--impl cannot change",
    "--resume {run} --hidden 9": "--hidden cannot change",
    "--resume {run} --preset points": "leave out --run-dir and --preset",
    "--resume {run} --run-dir elsewhere": "leave out --run-dir and --preset",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", AN_OLD_RUN)
def test_a_run_that_is_there_stays_what_it_is(line, a_run, capsys):
    before = contents(a_run)
    assert_refused(call(capsys, train.main, *line.format(run=a_run).split()), AN_OLD_RUN[line].format(run=a_run))
    assert contents(a_run) == before


@pytest.mark.slow
def test_resume_on_a_machine_without_the_device(run_dir, capsys):
    text = (run_dir / "config.toml").read_text()
    (run_dir / "config.toml").write_text(re.sub("device = .*", 'device = "cuda:99"', text))
    assert_refused(call(capsys, train.main, "--resume", run_dir), "--device cuda:99")


STEEP = {"hidden": (8, 8), "batch_size": 30, "lr": 1e30, "activation": "relu"}
LINEAR = {"hidden": (8,), "batch_size": 100, "schedule": "constant", "activation": ("identity", "identity")}
LINEAR |= {"loss": "quadratic", "init": "scaled-normal", "epochs": 1000}  # lives for a few steps, two of them an epoch
FIRST = "the first value that is not finite is in"


@pytest.mark.parametrize(
    ("options", "named", "kept"),
    [
        ({"impl": "manual", **STEEP}, f"step 2: {FIRST} z of layer2; try a smaller --lr (not 1e+30)", 0),
        pytest.param({"impl": "reference", **STEEP}, f"step 2: {FIRST} z of layer2;", 0, marks=pytest.mark.slow),
        ({"impl": "both", **STEEP}, f"step 2: {FIRST} z of layer2;", 0),
        ({"lr": 0.2, **LINEAR}, f"step 6: {FIRST} C;", 4),
        ({"lr": 0.4, **LINEAR}, "after step 4 the cost of the test set", 2),
        ({"l2": 1e30}, f"step 2: {FIRST} the new layer1.weight; try a smaller --l2 (not 1e+30)", 0),
        ({"optimizer": "adam", "lr": 1e30, "betas": (1 - 1e-16, 0.9)}, "a factor is beyond float32; try a smaller", 0),
    ],
    ids=["manual", "reference", "both", "in a step", "in an evaluation", "of a penalty", "of a factor"],
)
def test_where_the_cost_is_not_finite_the_last_good_checkpoint_is_kept(options, named, kept, npz, tmp_path, capsys):
    data = {"dataset": "npz", "data_dir": npz, "run_dir": tmp_path / "run"}
    assert_refused(call(capsys, train.main, *flags(options | data)), named, status=3)
    saved = checkpoint.load(tmp_path / "run")
    assert saved["steps"] == kept
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def change(path, change):
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)


def with_weight(name, *shape):
    return lambda path: change(path, lambda saved: saved["model"].update({name: torch.zeros(shape)}))


NO_CHECKPOINT = "not a checkpoint of this project"
SPOILED = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "not a whole checkpoint"),
    "text": (lambda path: path.write_text("epoch 3: 95%"), "not a whole checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole checkpoint"),
    "missing": (lambda path: path.unlink(), "holds no checkpoint"),
    "only weights": (lambda path: torch.save({"layer1.weight": torch.zeros(2, 2)}, path), NO_CHECKPOINT),
    "another format": (lambda path: change(path, lambda saved: saved.update(format=99)), "format version 99"),
    "without model": (lambda path: change(path, lambda saved: saved.pop("model")), NO_CHECKPOINT),
    "without data": (lambda path: change(path, lambda saved: saved.pop("data")), NO_CHECKPOINT),
    "without config": (lambda path: change(path, lambda saved: saved.pop("config")), NO_CHECKPOINT),
    "another shape": (with_weight("layer1.weight", 9, 5), "layer1.weight is (9, 5)"),
    "a layer more": (with_weight("layer3.weight", 3, 3), "layer3.weight"),
    "a bias less": (lambda path: change(path, lambda saved: saved["model"].pop("layer2.bias")), "layer2.bias"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "named"), SPOILED.values(), ids=SPOILED)
def test_spoiled_checkpoints(spoil, named, run_dir, capsys):
    spoil(run_dir / "last.pt")
    before = contents(run_dir)
    for main, *line in (
        (train.main, "--resume", run_dir, "--epochs", "101"),
        (predict.main, "--checkpoint", run_dir, "--dataset", "sample"),
        (verify.main, "--checkpoint", run_dir),
        (explain.main, "--checkpoint", run_dir, "--out", run_dir / "page.html"),
    ):
        assert_refused(call(capsys, main, *line), named)
    assert contents(run_dir) == before


def test_a_checkpoint_that_would_run_code(run_dir, tmp_path):
    runs = type("Intruder", (), {"__reduce__": lambda self: (Path.touch, (tmp_path / "intruded",))})
    torch.save({**checkpoint.load(run_dir), "config": runs()}, run_dir / "last.pt")
    with refused("not a whole checkpoint"):
        checkpoint.load(run_dir)
    assert not (tmp_path / "intruded").exists()


def test_a_checkpoint_cut_off_anywhere_and_any_bytes_are_none(run_dir):
    path, generator = run_dir / "last.pt", np.random.default_rng(0)
    whole = path.read_bytes()
    for length in sorted({*range(0, len(whole), len(whole) // 60), *range(len(whole) - 150, len(whole))}):
        path.write_bytes(whole[:length])
        with refused("not a whole checkpoint"):
            checkpoint.load(run_dir)
    for length in range(1, 300):
        path.write_bytes(generator.integers(32, 127, length, dtype=np.uint8).tobytes())
        with refused("not a"):
            checkpoint.load(path)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A run on pictures, of many weights."""
    path = tmp_path_factory.mktemp("run") / "digits"
    assert train.main(list(flags({"dataset": "sample", "hidden": (70,), "max_steps": 1, "run_dir": path}))) == 0
    return path


@pytest.fixture
def folder(tmp_path):
    """Files that are no pictures, pictures that show nothing or something, and data of four classes."""
    (tmp_path / "text.png").write_text("seven")
    Image.new("L", (40, 40), 200).save(tmp_path / "blank.png")
    ImageOps.expand(Image.new("L", (6, 18), 255), 10).save(tmp_path / "digit.png")
    write_npz(tmp_path / "four.npz", classes=4)
    return tmp_path


PREDICT = {
    "": "one of these three: pictures, --prompt TEXT or --dataset NAME",
    "x.png --dataset npz": "one of these three",
    "--prompt a --dataset npz": "one of these three",
    "x.png --validation 3": "go with --dataset",
    "--dataset npz --show {tmp}": "--show goes with pictures",
    "--show {tmp}/blank.png": "one of these three",
    "x.png --length 9": "--length, --temperature, --top-k and --seed go with --prompt",
    "--prompt a --length 0": "--length is 0, but it must be a whole number from 1",
    "--prompt a --temperature inf": "--temperature is inf, but it must be a finite number from 0",
    "--prompt a --temperature -0.5": "--temperature is -0.5, but it must be a finite number from 0",
    "--prompt a --temperature nan": "--temperature is nan",
    "--prompt a --top-k -1": "--top-k is -1, but it must be a whole number from 0",
    "--prompt a": "for classification and goes on with no text: give the checkpoint of one for prediction of the next",
    "--dataset shakespeare": "--dataset is shakespeare, but this network is for classification: give --dataset npz, or",
    "--show {tmp}/blank.png x.png": "blank.png, which is a file: give a directory before the pictures",
    "--dataset mnits": "did you mean 'mnist'",
    "--dataset sample": "sample has shape 28, 28",
    "--dataset npz --data-dir {tmp}/four.npz": "classes 0, 1, 2, 3",
    "x.png": "reads no pictures",  # as the network is of arrays
}


@pytest.mark.parametrize("line", PREDICT)
def test_a_wrong_question(line, a_run, folder, capsys):
    assert_refused(call(capsys, predict.main, "--checkpoint", a_run, *line.format(tmp=folder).split()), PREDICT[line])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text.png", "blank.png", "nothing.png"])
def test_pictures_that_are_none(name, wide, folder, capsys):
    done = call(capsys, predict.main, "--checkpoint", wide, folder / name)
    assert_refused(done, name)
    assert done.out == ""


EXPLAIN = {
    "--index 7 --image x.png": "--index and --image name an example each",
    "--index 7 --pick costly": "--pick and --index name an example each",
    "--pick dearest": "dearest",
    "--prompt To": "--prompt goes with a network that predicts the next token",
    "--label 3": "--label goes with --image",
    "--batch-size 1": "--batch-size is 1",
    "--index 10000": "from 0 to 9,999",
    "--index -1": "--index is -1",
    "--index seven": "seven",
    "--image {tmp}/digit.png --label ten": "one of 0, 1, 2",
    "--image {tmp}/nothing.png": "nothing.png does not exist",
    "--image {tmp}/text.png": "text.png cannot be read as a picture",
    "--image {tmp}/blank.png": "blank.png shows nothing",
    "--batch-size 1001": "from 2 to 1,000",
    "--batch-size 1000": "smaller --batch-size",  # as there are too many gradients
    "--out {tmp}/none/page.html": "give another --out",  # where no directory is
    "--out {tmp}": "give another --out",
    "--checkpoint {tmp}": "holds no checkpoint",
    "--checkpoint {tmp}/text.png": "is not a whole checkpoint",
    "--checkpoint {arrays} --image x.png": "reads no pictures",
    "--checkpoint {arrays} --data-dir {tmp}/four.npz": "classes 0, 1, 2, 3",
    "--checkpoint {arrays} --data-dir {tmp}/none.npz": "none.npz",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", EXPLAIN)
def test_what_cannot_be_explained(line, wide, a_run, folder, capsys):
    before, run_before = files(folder), contents(wide)
    asked = line.format(tmp=folder, arrays=a_run).split()
    done = call(capsys, explain.main, "--checkpoint", wide, "--out", folder / "page.html", "--tensorboard", *asked)
    assert_refused(done, EXPLAIN[line])
    assert done.out == ""
    assert files(folder) == before
    assert contents(wide) == run_before


def test_a_network_that_diverged_is_not_explained(run_dir, tmp_path, capsys):
    change(run_dir / "last.pt", lambda saved: saved["model"]["layer2.bias"].fill_(torch.nan))
    done = call(capsys, explain.main, "--checkpoint", run_dir, "--out", tmp_path / "page.html")
    assert_refused(done, "not finite")
    assert not (tmp_path / "page.html").exists()
