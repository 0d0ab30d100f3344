"""predict.py as a user runs it. What it refuses is in test_bad_input.py."""

import json

import pytest
import torch
from PIL import Image

import predict
import train
from tests.support import running
from tests.support.running import call, flags, values, write_npz
from training.prediction import load_trained

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A network that has learned some: about 80% of the sample's test digits."""
    path = tmp_path_factory.mktemp("run") / "digits"
    options = {"dataset": "sample", "epochs": 3, "batch_size": 100, "lr": 10.0, "run_dir": path}
    assert train.main(list(flags(options))) == 0
    return path


@pytest.fixture(scope="module")
def pictures(sample, tmp_path_factory):
    """The first of each of the digits 0, 1 and 2 in the test set: big and dark on light, as drawn, and in color."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "0.png", folder / "1.png", folder / "2.jpg"]
    for digit, path in enumerate(paths):
        pixels = sample.test.x[sample.test.y == digit][0].view(28, 28).numpy()
        picture = Image.fromarray(pixels)
        if digit == 0:
            picture = Image.fromarray(255 - pixels).resize((280, 300))
        if digit == 2:
            picture = Image.merge("RGB", [picture.point(lambda v: v // 2), picture, picture]).resize((90, 90))
        picture.save(path)
    return paths


@pytest.mark.slow
def test_pictures(run_dir, pictures, capsys):
    done = call(capsys, predict.main, "--checkpoint", run_dir, *pictures)
    assert (done.status, done.err) == (0, "")
    said = done.out.splitlines()
    done = call(capsys, predict.main, "--json", "--checkpoint", run_dir, *pictures)
    predictions = json.loads(done.out)["predictions"]
    for digit, (path, line, p) in enumerate(zip(pictures, said, predictions, strict=True)):
        assert line.startswith(f"{path}: {digit} (activation {digit} 0.")
        assert line.count(",") == 2, "three classes on the line"
        assert (p["image"], p["class"]) == (str(path), str(digit))
        activations = list(p["activation"].values())
        assert sorted(p["activation"]) == list("0123456789")
        assert activations == sorted(activations, reverse=True)
        assert p["class"] == next(iter(p["activation"]))


@pytest.mark.slow
def test_a_picture_of_the_test_set_gets_the_networks_own_outputs(run_dir, sample, tmp_path, capsys):
    """The way through a PNG file, MNIST's preparation and the script changes little."""
    row = int((sample.test.y == 1).nonzero()[0])
    Image.fromarray(sample.test.x[row].view(28, 28).numpy()).save(tmp_path / "one.png")
    done = call(capsys, predict.main, "--json", "--checkpoint", run_dir, tmp_path / "one.png")
    said = json.loads(done.out)["predictions"][0]["activation"]
    outputs = load_trained(run_dir).outputs(sample.test.x[row : row + 1])[0]
    for digit in range(10):
        assert said[str(digit)] == pytest.approx(outputs[digit].item(), abs=0.2)


@pytest.mark.parametrize("which", ["last.pt", "best.pt"])
def test_a_data_set(which, run_dir, sample, capsys):
    """The rows of the confusion matrix are the true classes."""
    done = call(capsys, predict.main, "--json", "--checkpoint", run_dir / which, "--dataset", "sample")
    assert (done.status, done.err) == (0, "")
    result = json.loads(done.out)
    accuracy, loss = (values(run_dir, tag) for tag in ("accuracy/test", "loss/test"))
    step = torch.load(run_dir / which, weights_only=True)["steps"]
    assert result["accuracy"] == accuracy[step]
    assert result["loss"] == pytest.approx(loss[step], rel=1e-6)
    assert result["examples"] == 2000
    confusion = torch.tensor(result["confusion"])
    assert confusion.diagonal().sum().item() / 2000 == pytest.approx(result["accuracy"])
    answers = load_trained(run_dir / which).outputs(sample.test.x).argmax(dim=1)
    assert torch.equal(confusion.sum(dim=1), sample.test.y.bincount(minlength=10))
    assert torch.equal(confusion.sum(dim=0), answers.bincount(minlength=10))
    assert confusion[4, 9] == ((sample.test.y == 4) & (answers == 9)).sum()


def test_a_data_set_as_a_table(run_dir, capsys):
    done = call(capsys, predict.main, "--checkpoint", run_dir, "--dataset", "sample")
    lines = done.out.splitlines()
    assert "bundled sample" in lines[0]
    assert lines[-1].startswith(f"2,000 examples: loss {values(run_dir, 'loss/test')[300]:.4f}, accuracy ")
    rows = [line.split() for line in lines if len(line.split()) == 11]
    assert [row[0] for row in rows] == list("0123456789")


def test_held_out_examples(run_dir, capsys):
    asked = ["--json", "--checkpoint", run_dir, "--dataset", "sample", "--validation", "500"]
    result = json.loads(call(capsys, predict.main, *asked).out)
    assert result["examples"] == 500
    assert "held out" in result["data"]


@pytest.mark.long
@pytest.mark.parametrize("loss", ["softmax-cross-entropy", "sigmoid-cross-entropy"])
def test_a_network_of_logits_gives_probabilities(loss, pictures, tmp_path, capsys):
    options = {"dataset": "sample", "loss": loss, "lr": 0.5, "epochs": 2, "dtype": "float64"}
    options |= {"run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    done = call(capsys, predict.main, "--checkpoint", tmp_path / "run", pictures[1])
    assert "1 (probability 1 " in done.out
    said = call(capsys, predict.main, "--checkpoint", tmp_path / "run", pictures[1], "--json")
    probabilities = json.loads(said.out)["predictions"][0]["probability"].values()
    assert all(0 <= p <= 1 for p in probabilities)
    if loss == "softmax-cross-entropy":
        assert sum(probabilities) == pytest.approx(1)


@pytest.mark.slow
def test_a_network_trained_otherwise_on_arrays(tmp_path, capsys):
    npz = write_npz(tmp_path / "arrays.npz")
    options = {"impl": "reference", "dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 10}
    options |= {"dtype": "bfloat16", "loss": "softmax-cross-entropy", "lr": 0.1, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    asked = ["--checkpoint", tmp_path / "run", "--dataset", "npz", "--data-dir", npz, "--json"]
    result = json.loads(call(capsys, predict.main, *asked).out)
    assert result["accuracy"] == values(tmp_path / "run", "accuracy/test")[10]


@pytest.mark.long
def test_as_a_process(run_dir, pictures):
    done = running.run("predict.py", "--checkpoint", run_dir, *pictures[:1])
    assert (done.status, done.err) == (0, "")
    assert f"{pictures[0]}: 0 (" in done.out
