"""What a caller has set in torch changes nothing, bit for bit, and is afterwards as it was."""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import train
import verify
from gradient_check import check_backward, check_function, compare_gradients
from lessons.lesson import teach
from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.losses import LOSSES
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import OPTIMIZERS
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from tests.support.checking import draw
from tests.support.running import call
from training.data import load
from training.prediction import load_trained

ROOT = Path(__file__).resolve().parents[2]
X, W = draw(5, 3), draw(4, 3)


@contextmanager
def switched(switch, value, back):
    switch(value)
    try:
        yield
    finally:
        switch(back)


STATES = {
    "float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "no gradients": lambda: switched(torch.set_grad_enabled, False, True),
    "inference": torch.inference_mode,
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "another device": lambda: switched(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly": torch.autograd.detect_anomaly,
    "seed": lambda: switched(torch.manual_seed, 99, 0),
}


@pytest.mark.parametrize("script", ["train", "predict", "explain"])
def test_threads_are_told_to_wait_asleep_before_torch_is_loaded_unless_the_user_says_otherwise(script):
    """Spinning ones made a step 50 times as long on a busy machine."""
    program = f"""
import contextlib, os, sys
sys.modules["torch"] = None
with contextlib.suppress(ImportError):
    import {script}
print(os.environ.get("OMP_WAIT_POLICY"))
"""
    for given, found in (("", "PASSIVE"), ("ACTIVE", "ACTIVE")):
        own = {**os.environ, "OMP_WAIT_POLICY": given}
        own = own if given else {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=own, capture_output=True, text=True)
        assert done.stdout.split() == [found], done.stderr


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(a := torch.tanh(x))
        return a

    @staticmethod
    def backward(ctx, da):
        return da * (1 - ctx.saved_tensors[0] ** 2)


def forward(x, W):
    return x @ W.T, (x, W)


def backward(dz, cache):
    return dz @ cache[1], dz.T @ cache[0]


MODULE = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
CHECKS = {
    "a pair": lambda: check_backward(forward, backward, [X, W]),
    "a wrong pair": lambda: check_backward(forward, lambda dz, c: (dz @ c[1], -dz.T @ c[0]), [X.float(), W.float()]),
    "NumPy": lambda: check_backward(forward, backward, [np.ones((5, 3)), np.eye(4, 3)], reference=nn.functional.linear),
    "a function": lambda: check_function(Tanh.apply, [X], order=2),
    "a module": lambda: check_function(MODULE, [X], cases=["layouts"]),
    "gradients": lambda: compare_gradients({"W": X}, {"W": X.numpy()}),
}


def now():
    grad, inference, device = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_device()
    modes = (torch.is_autocast_enabled("cpu"), torch.is_anomaly_enabled(), torch.get_num_threads())
    return torch.get_default_dtype(), grad, inference, device, modes, torch.get_rng_state().tolist()


def under(state, call):
    with STATES[state]():
        before = now()
        result = call()
        assert now() == before
    return result


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.sweep(3)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_check_reports_the_same(check, state):
    call = lambda: (report := CHECKS[check]()).rows + report.notes  # noqa: E731
    assert repr(under(state, call)) == repr(call())


def hand_written():
    """A step of every cost and optimizer, as the README shows it: in the dtype and on the device of the moment."""
    made, like = [], {"dtype": torch.float32, "device": "cpu"}
    x, y = X.float(), torch.arange(5, device="cpu") % 2
    for name, cost in LOSSES.items():
        model, loss = MLP((3, 4, 2), ("tanh", "identity" if cost().from_logits else "sigmoid")), cost()
        params = Parameters(model.shapes, **like)
        initialize(params, INITIALIZERS["he"], seed=0)
        gradient, tape = params.zeros_like(), Tape(observes=True)
        C, cache = loss.forward(model.forward(params, x, tape), y)
        model.backward(params, loss.backward(1.0, cache), gradient, tape)
        made.append((name, C.item(), gradient.theta.tolist()))
    for name, optimizer in OPTIMIZERS.items():
        state, theta = optimizer().init(params.theta), params.theta.clone()
        lr, t = torch.tensor([0.1, 1.0], **like)
        optimizer().update(theta, gradient.theta, state, lr, t, None, params.split)
        made.append((name, theta.tolist()))
    return made


def trained(tmp_path, *options):
    """The values after two steps, and after two more of the run resumed."""
    run_dir, made = tmp_path / "run", []
    begun = ["--run-dir", run_dir, "--max-steps", 2, "--log-every", 1, "--dataset", "sample", *options]
    for arguments in (begun, ["--resume", run_dir, "--max-steps", 4]):
        assert train.main([str(argument) for argument in arguments]) == 0
        made.append({name: v.tolist() for name, v in load_trained(run_dir).learner.state_dict()["model"].items()})
    shutil.rmtree(run_dir)
    return made


def taught(tmp_path):
    report = teach("linear-backward", load("sample"), 0, tmp_path / "lesson")
    return report.table, report.verdict


MLP_OPTIONS = ["--examples", "100", "--activation", "relu", "--optimizer", "adam", "--dropout", "0.2", "--impl"]
CNN_OPTIONS = ["--model", "cnn", "--examples", "20", "--batch-size", "4", "--shift", "2"]
USES = {
    "a step": lambda tmp_path, capsys: hand_written(),
    "by hand": lambda tmp_path, capsys: trained(tmp_path, *MLP_OPTIONS, "manual"),
    "by autograd": lambda tmp_path, capsys: trained(tmp_path, *MLP_OPTIONS, "reference"),
    "both, residual": lambda tmp_path, capsys: trained(tmp_path, *CNN_OPTIONS, "--impl", "both"),
    "a lesson": lambda tmp_path, capsys: taught(tmp_path),
    "verify.py": lambda tmp_path, capsys: call(capsys, verify.main, "--model", "lenet5", "--seeds", 1),
}
TOGETHER = [
    ("bfloat16", "no gradients", "another device", "deterministic", "anomaly", "seed"),
    ("float64", "inference"),
]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("use", [pytest.param(use, marks=[pytest.mark.long] * (use != "a step")) for use in USES])
def test_hand_written_code_and_commands_give_the_same(use, tmp_path, capsys):
    wanted = USES[use](tmp_path, capsys)
    for states in TOGETHER:
        with ExitStack() as stack:
            for state in states:
                stack.enter_context(STATES[state]())
            before = now()
            assert USES[use](tmp_path, capsys) == wanted
            assert now() == before
