"""What a run makes of its configuration: data, device and threads as they are found, and nothing left open."""

import os
import subprocess
import sys
import tomllib

import pytest
import torch

from tests.support.refusals import refused
from tests.support.running import ROOT, resolved
from training import prepare
from training.data import load
from training.families.configure import configure, load_preset
from training.prepare import resolve_device


def test_resolved_leaves_nothing_open_and_keeps_what_was_asked_for(sample):
    asked = configure(dataset="auto", loss="softmax-cross-entropy", activation=("tanh",), optimizer="muon")
    config = resolved(asked, sample)
    assert config.dataset == "sample"
    assert config.device in ("cpu", "cuda")
    assert config.threads >= 1
    assert config.activation == ("tanh", "tanh", "identity")
    assert (config.momentum, config.betas, config.eps) == (0.95, (0.9, 0.999), 1e-8), "muon's own"
    assert resolved(config, sample) == config
    asked = resolved(configure(dataset="sample", device="cpu", threads=3, warmup=99, epochs=1), sample)
    assert (asked.device, asked.threads, asked.warmup) == ("cpu", 3, 99), "and a warm-up of all but one of the steps"


@pytest.mark.parametrize("model", ["lenet5", "cnn"])
def test_a_convolutional_network_is_resolved_with_one_activation(model, sample):
    whole = resolved(configure(model=model, activation=("tanh",), loss="softmax-cross-entropy"), sample)
    assert whole.activation == ("tanh",)
    assert resolved(whole, sample) == whole


MISFITS = {
    "--channels 20000 makes 7,200,500,010 parameters, but at most": {"model": "cnn", "channels": (20_000,)},
    "--hidden 1000000000 makes 795,000,000,010 parameters, but at most": {"hidden": (1_000_000_000,)},
    "--warmup is 100, but it must be less than the run's 100 steps": {"warmup": 100, "epochs": 1},
    "--warmup is 9, but it must be less than the run's 9 steps": {"warmup": 9, "max_steps": 9},
}


@pytest.mark.parametrize("wanted", MISFITS)
def test_what_does_not_fit_the_data_is_refused(wanted, sample):
    with refused(wanted):
        resolved(configure(**MISFITS[wanted]), sample)


@pytest.mark.parametrize(("option", "value"), [("shift", 1), ("rotate", 5.0)])
def test_only_pictures_are_moved(option, value, sample):
    with refused(f"--{option} moves pictures of height×width, and an example of points is 2"):
        resolved(configure(dataset="points", **{option: value}), load("points"))
    assert getattr(resolved(configure(**{option: value}), sample), option) == value


# Threads


def python(*arguments, **environment):
    """What a process says in which nothing but `environment` sets a number of threads."""
    others = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    how = {"cwd": ROOT, "env": others | environment, "check": True, "stdout": subprocess.PIPE, "text": True}
    return subprocess.run([sys.executable, *arguments], **how).stdout


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_left_out_are_those_that_torch_found_and_no_more_than_the_process_may_use(tmp_path):
    """Of a large network in a process of its own: not as many as there are cores."""

    def threads_of_a_run(name, **environment):
        options = ["--hidden", "300", "300", "--dataset", "sample", "--max-steps", "1", "--examples", "100"]
        python("train.py", *options, "--run-dir", str(tmp_path / name), **environment)
        return tomllib.loads((tmp_path / name / "config.toml").read_text())["threads"]

    threads = {"OMP_NUM_THREADS": str((os.cpu_count() or 1) + 1)}
    found = python("-c", "import torch; print(torch.get_num_threads())", **threads)
    assert threads_of_a_run("found", **threads) == int(found)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert threads_of_a_run("allowed") == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_small_network_gets_one_thread_and_a_large_one_what_torch_found(sample, monkeypatch):
    monkeypatch.setattr(prepare, "FOUND_THREADS", 7)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert resolved(configure(dataset="sample"), sample).threads == 1
    assert resolved(configure(dataset="sample", hidden=(512, 512)), sample).threads == 7
    assert resolved(load_preset("lenet5"), sample).threads == 7


# Devices


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_in_one_line(device):
    with pytest.raises(ValueError, match="this machine has cpu") as refusal:
        resolve_device(device, "float32")
    assert len(str(refusal.value)) < 400


def test_float64_on_mps_is_refused_and_so_is_mps_where_there_is_none():
    if torch.mps.is_available():
        assert resolve_device("mps", "float32") == "mps"
    with refused("--device mps cannot be used with --dtype float64"):
        resolve_device("mps", "float64")
