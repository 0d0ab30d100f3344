"""What several of these tests begin with: data, runs, and what a learner was told."""

import shutil

import pytest

import train
from tests.support.running import flags, write_npz
from training.data import load
from training.learners.manual import ManualLearner


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "arrays.npz")


@pytest.fixture(scope="session")
def data(npz):
    """200 training examples: seven batches of 30, the last of 20."""
    return load("npz", npz)


@pytest.fixture(scope="session")
def a_run(npz, tmp_path_factory):
    """A finished run of ten steps on these arrays."""
    path = tmp_path_factory.mktemp("run") / "run"
    options = {"dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 10, "run_dir": path}
    assert train.main(list(flags(options))) == 0
    return path


@pytest.fixture
def run_dir(a_run, tmp_path):
    """A copy of that run, to be spoiled."""
    return shutil.copytree(a_run, tmp_path / "copy")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A run of ten steps on the sample."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert train.main(list(flags({"dataset": "sample", "max_steps": 10, "run_dir": path}))) == 0
    return path


@pytest.fixture
def taken(monkeypatch):
    """The batches and the rates of all steps that the hand-written learner takes, as they come."""
    batches, rates, advance = [], [], ManualLearner.advance

    def recorded(self, indices, learning_rates):
        batches.extend(indices.tolist())
        rates.extend(learning_rates.tolist())
        return advance(self, indices, learning_rates)

    monkeypatch.setattr(ManualLearner, "advance", recorded)
    return batches, rates
