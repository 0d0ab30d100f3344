"""A run goes on, and is asked, wherever its data and the working directory are, if the data are the same."""

import numpy as np
import pytest
import torch

import predict
import train
from tests.support.refusals import assert_refused, contents
from tests.support.running import call, flags, write_npz
from training import checkpoint


@pytest.mark.slow
def test_data_and_working_directory_may_move_if_the_data_stay_the_same(tmp_path, capsys, monkeypatch):
    def resume(*more):
        return call(capsys, train.main, "--resume", "../run", *more)

    (tmp_path / "elsewhere").mkdir()
    npz, run_dir = write_npz(tmp_path / "arrays.npz"), tmp_path / "run"
    options = {"dataset": "npz", "data_dir": "arrays.npz", "run_dir": "run", "hidden": (4,), "batch_size": 30}
    monkeypatch.chdir(tmp_path)
    assert call(capsys, train.main, *flags(options | {"epochs": 1})).status == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume("--epochs", 2).status == 0
    assert 'data_dir = "arrays.npz"' in (run_dir / "config.toml").read_text(), "a tree that moves as a whole goes on"

    npz.rename("moved.npz")
    before = contents(run_dir)
    assert_refused(resume("--epochs", 3), "arrays.npz is no file")
    arrays = dict(np.load("moved.npz"))
    np.savez("other.npz", **arrays | {"y": arrays["y"][::-1]})
    np.savez("fewer.npz", **arrays | {"x_test": arrays["x_test"][:9], "y_test": arrays["y_test"][:9]})
    assert_refused(resume("--data-dir", "other.npz"), "run in ../run was trained on: the training labels differ; give")
    assert_refused(
        resume("--data-dir", "fewer.npz"), "the test examples differ, 60×5 then and 9×5 now; the test labels"
    )
    assert contents(run_dir) == before
    assert resume("--data-dir", "moved.npz", "--epochs", 3).status == 0
    assert call(capsys, predict.main, "--checkpoint", run_dir, "--dataset", "npz").status == 0

    saved = checkpoint.load(run_dir)
    del saved["data"]["hashes"], saved["data"]["path"]  # as in earlier versions
    torch.save(saved, run_dir / "last.pt")
    done = resume("--epochs", 4)
    assert (done.status, "whether they changed is unknown" in done.out) == (0, True)
