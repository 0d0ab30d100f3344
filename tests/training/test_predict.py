"""predict.py as a user runs it. What it refuses is in test_refusals.py."""

import json

import pytest
import torch
from PIL import Image

import predict
import train
from tests.support.running import call, flags, values
from training.prediction import load_trained


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network that has learned some: about 80% of the sample's test digits."""
    path = tmp_path_factory.mktemp("run") / "digits"
    options = {"dataset": "sample", "epochs": 3, "batch_size": 100, "lr": 10.0, "run_dir": path}
    assert train.main(list(flags(options))) == 0
    return path


@pytest.fixture(scope="module")
def pictures(sample, tmp_path_factory):
    """The first of each of the digits 0, 1 and 2 in the test set: big and dark on light, as it is, and in color."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "0.png", folder / "1.png", folder / "2.jpg"]
    pixels = [sample.test.x[sample.test.y == digit][0].view(28, 28).numpy() for digit in range(3)]
    Image.fromarray(255 - pixels[0]).resize((280, 300)).save(paths[0])
    Image.fromarray(pixels[1]).save(paths[1])
    two = Image.fromarray(pixels[2])
    Image.merge("RGB", [two.point(lambda v: v // 2), two, two]).resize((90, 90)).save(paths[2])
    return paths


def answer(capsys, *asked):
    done = call(capsys, predict.main, "--json", "--checkpoint", *asked)
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out)


@pytest.mark.slow
def test_pictures(digits, pictures, sample, capsys):
    done = call(capsys, predict.main, "--checkpoint", digits, *pictures)
    assert (done.status, done.err) == (0, "")
    predictions = answer(capsys, digits, *pictures)["predictions"]
    for digit, (path, line, p) in enumerate(zip(pictures, done.out.splitlines(), predictions, strict=True)):
        assert line.startswith(f"{path}: {digit} (activation {digit} 0.")
        assert line.count(",") == 2, "three classes on the line"
        assert (p["image"], p["class"]) == (str(path), str(digit))
        activations = list(p["activation"].values())
        assert sorted(p["activation"]) == list("0123456789")
        assert activations == sorted(activations, reverse=True)
        assert p["class"] == next(iter(p["activation"]))
    outputs = load_trained(digits).outputs(sample.test.x[sample.test.y == 1][:1])[0].tolist()
    own = [predictions[1]["activation"][str(digit)] for digit in range(10)]
    assert own == pytest.approx(outputs, abs=0.2), "a PNG file and MNIST's preparation change little"


@pytest.mark.parametrize("which", ["last.pt", "best.pt"])
def test_a_data_set(which, digits, sample, capsys):
    """The rows of the confusion matrix are the true classes."""
    result = answer(capsys, digits / which, "--dataset", "sample")
    accuracy, loss = (values(digits, tag) for tag in ("accuracy/test", "loss/test"))
    step = torch.load(digits / which, weights_only=True)["steps"]
    assert result["accuracy"] == accuracy[step]
    assert result["loss"] == pytest.approx(loss[step], rel=1e-6)
    assert result["examples"] == 2000
    confusion = torch.tensor(result["confusion"])
    assert confusion.diagonal().sum().item() / 2000 == pytest.approx(result["accuracy"])
    answers = load_trained(digits / which).outputs(sample.test.x).argmax(dim=1)
    assert torch.equal(confusion.sum(dim=1), sample.test.y.bincount(minlength=10))
    assert torch.equal(confusion.sum(dim=0), answers.bincount(minlength=10))
    assert confusion[4, 9] == ((sample.test.y == 4) & (answers == 9)).sum()


def test_a_data_set_as_a_table_and_held_out_examples(digits, capsys):
    lines = call(capsys, predict.main, "--checkpoint", digits, "--dataset", "sample").out.splitlines()
    assert "bundled sample" in lines[0]
    assert lines[-1].startswith(f"2,000 examples: loss {values(digits, 'loss/test')[300]:.4f}, accuracy ")
    rows = [line.split() for line in lines if len(line.split()) == 11]
    assert [row[0] for row in rows] == list("0123456789")
    result = answer(capsys, digits, "--dataset", "sample", "--validation", "500")
    assert result["examples"] == 500
    assert "held out" in result["data"]


@pytest.mark.long
@pytest.mark.parametrize("loss", ["softmax-cross-entropy", "sigmoid-cross-entropy"])
def test_a_network_of_logits_gives_probabilities(loss, pictures, tmp_path, capsys):
    run_dir = tmp_path / "run"
    options = {"dataset": "sample", "loss": loss, "lr": 0.5, "epochs": 2, "dtype": "float64", "run_dir": run_dir}
    assert call(capsys, train.main, *flags(options)).status == 0
    assert "1 (probability 1 " in call(capsys, predict.main, "--checkpoint", run_dir, pictures[1]).out
    probabilities = answer(capsys, run_dir, pictures[1])["predictions"][0]["probability"].values()
    assert all(0 <= p <= 1 for p in probabilities)
    assert loss == "sigmoid-cross-entropy" or sum(probabilities) == pytest.approx(1)


@pytest.mark.slow
def test_a_network_trained_otherwise_on_arrays(npz, tmp_path, capsys):
    options = {"impl": "reference", "dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 10}
    options |= {"dtype": "bfloat16", "loss": "softmax-cross-entropy", "lr": 0.1, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    result = answer(capsys, tmp_path / "run", "--dataset", "npz", "--data-dir", npz)
    assert result["accuracy"] == values(tmp_path / "run", "accuracy/test")[10]
