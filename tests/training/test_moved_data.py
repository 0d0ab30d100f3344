"""A run goes on, and is asked, wherever its data and the working directory are, if the data are the same."""

import numpy as np
import pytest
import torch

import predict
import train
from tests.support.refusals import assert_refused, contents
from tests.support.running import call, flags, write_npz
from training import checkpoint

OPTIONS = {"dataset": "npz", "data_dir": "arrays.npz", "run_dir": "run", "hidden": (4,), "batch_size": 30, "epochs": 1}


@pytest.mark.slow
def test_data_and_working_directory_may_move_if_the_data_stay_the_same(tmp_path, capsys, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    npz, run_dir = write_npz(tmp_path / "arrays.npz"), tmp_path / "run"
    assert call(capsys, train.main, *flags(OPTIONS)).status == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call(capsys, train.main, "--resume", "../run", "--epochs", 2).status == 0
    assert call(capsys, predict.main, "--checkpoint", "../run", "--dataset", "npz").status == 0
    assert 'data_dir = "arrays.npz"' in (run_dir / "config.toml").read_text(), "a tree that moves as a whole goes on"

    npz.rename("moved.npz")
    before = contents(run_dir)
    assert_refused(call(capsys, train.main, "--resume", run_dir, "--epochs", 3), "arrays.npz does not exist")
    with np.load("moved.npz") as arrays:
        np.savez("other.npz", **{**arrays, "y": arrays["y"][::-1]})
        np.savez("fewer.npz", **{**arrays, "x_test": arrays["x_test"][:9], "y_test": arrays["y_test"][:9]})
    for name, what in (
        ("other", "trained on: the training labels differ; give"),
        ("fewer", "trained on: the test examples differ, 60×5 then and 9×5 now; the test labels differ, 60 then and"),
    ):
        assert_refused(call(capsys, train.main, "--resume", run_dir, "--data-dir", f"{name}.npz"), what)
    assert contents(run_dir) == before
    done = call(capsys, train.main, "--resume", run_dir, "--data-dir", "moved.npz", "--epochs", 3)
    assert (done.status, checkpoint.load(run_dir)["steps"]) == (0, 21)
    assert call(capsys, predict.main, "--checkpoint", run_dir, "--dataset", "npz").status == 0

    saved = torch.load(run_dir / "last.pt", weights_only=True)
    del saved["data"]["hashes"], saved["data"]["path"]  # as in earlier versions
    torch.save(saved, run_dir / "last.pt")
    done = call(capsys, train.main, "--resume", run_dir, "--epochs", 4)
    assert (done.status, "whether they changed is unknown" in done.out) == (0, True)
