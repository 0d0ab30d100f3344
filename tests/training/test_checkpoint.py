"""Checkpoints: who can load them, and that there is a whole one whatever happens."""

import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from tests.support import running
from tests.support.running import ROOT, files, manual_of, resolved, train_loop
from training import checkpoint
from training.evaluation import evaluate
from training.families.configure import configure


def config(data, **changes):
    settings = {"hidden": (4, 3), "activation": ("tanh",), "lr": 0.5, "momentum": 0.9, "batch_size": 30, "epochs": 5}
    return resolved(configure(**(settings | changes)), data)


def test_a_checkpoint_says_what_it_is_of_and_any_module_with_the_same_names_loads_it_strictly(data, tmp_path):
    loop, _ = train_loop(config(data), data, tmp_path)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["data"] == {"name": "npz", "shape": [5], "classes": ["0", "1", "2"], "task": "classification"}
    assert saved["config"]["hidden"] == [4, 3]
    assert saved["steps"] == 35
    for tensor in saved["model"].values():  # no view of θ, which would save all of θ for every name
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    x, _ = data.test.batch(torch.arange(len(data.test)), torch.float32)
    layers = {"layer1": nn.Linear(5, 4), "tanh1": nn.Tanh(), "layer2": nn.Linear(4, 3), "tanh2": nn.Tanh()}
    module = nn.Sequential(OrderedDict(**layers, layer3=nn.Linear(3, 3), tanh3=nn.Tanh()))
    module.load_state_dict(saved["model"], strict=True)
    torch.testing.assert_close(module(x).detach(), loop.predict(x), rtol=0, atol=1e-6)


def test_best_is_the_epoch_of_the_highest_accuracy(data, tmp_path):
    """With a rate so high that the accuracy goes up and down."""
    settings = config(data, lr=3.0, epochs=12, schedule="constant")
    train_loop(settings, data, tmp_path)
    accuracies = {step: accuracy for step, accuracy in running.values(tmp_path, "accuracy/test").items() if step}
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["steps"] == max(accuracies, key=accuracies.__getitem__)  # the first of equals
    assert best["steps"] != checkpoint.load(tmp_path)["steps"], "or this shows nothing"
    learner = manual_of(settings, data)
    learner.load_state_dict(best)
    evaluation = evaluate(learner, data.test, torch.float32)
    assert evaluation.values["accuracy"] == best["progress"]["best"] == max(accuracies.values())


def test_a_failed_save_leaves_the_old_one_and_nothing_else(data, tmp_path):
    train_loop(config(data), data, tmp_path)
    saved, before = checkpoint.load(tmp_path), files(tmp_path)
    saved["model"]["layer1.weight"] = lambda: None  # cannot be pickled
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(saved, tmp_path / "last.pt")
    assert checkpoint.load(tmp_path)["steps"] == 35
    assert files(tmp_path) == before


KILLER = """
import os, random, signal, sys, time, torch
from pathlib import Path
from training import checkpoint

torch.set_num_threads(1)  # a forked child has none of its parent's threads, and would wait for them
path = Path(sys.argv[1])
saved = checkpoint.load(path)
ready, begun = os.pipe()
rng = random.Random(0)
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        for steps in range(10**9):
            saved["model"] = {"layer1.weight": torch.full((300, 1000), float(steps))}
            saved["steps"] = steps
            checkpoint.save(saved, path)
            if steps == 0:
                os.write(begun, b"!")
    os.read(ready, 1)
    time.sleep(rng.uniform(0, 0.02))  # a random moment in the loop
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = checkpoint.load(path)
    assert torch.equal(found["model"]["layer1.weight"], torch.full((300, 1000), float(found["steps"])))
    print(sorted(file.name for file in path.parent.glob(".*")))
"""


@pytest.mark.slow
def test_kill_9_in_a_loop_of_saves_leaves_a_whole_checkpoint(data, tmp_path):
    train_loop(config(data), data, tmp_path)
    command = [sys.executable, "-c", KILLER, str(tmp_path / "last.pt"), "60"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    leftovers = done.stdout.splitlines()
    assert len(leftovers) == 60
    assert "['.last.pt.tmp']" in leftovers, "no kill fell into a save: this showed nothing"
    assert set(leftovers) <= {"[]", "['.last.pt.tmp']"}, "what a kill leaves does not pile up"

    checkpoint.save(checkpoint.load(tmp_path), tmp_path / "last.pt")
    assert ".last.pt.tmp" not in files(tmp_path)
