"""The directory of a run that got none is named after what differs from its preset."""

import shlex

import pytest

import train

MANY = f"--hidden {'16 ' * 30} --epochs 3 --l1 0.001 --warmup 10 --clip-norm 1 --check-every 100 --histogram-every 0 "
MANY += "--eval-every"
NAMES = {
    "": "3b1b-manual-seed0",
    "--activation relu --optimizer adam": "3b1b-relu-adam-manual-seed0",
    "--impl both --seed 3 --lr 10": "3b1b-both-seed3",
    "--activation relu --lr 10": "3b1b-relu-lr10-manual-seed0",
    "--activation relu --lr 0.1": "3b1b-relu-manual-seed0",
    "--optimizer adam --loss squared-error --lr 1e-9": "3b1b-squared-error-adam-lr1e-09-manual-seed0",
    "--hidden 100 30 --l2 0.0001 --expand shifts": "3b1b-hidden100-30-shifts-l2_0.0001-manual-seed0",
    "--dataset npz --data-dir '/my data/Été, 3.npz'": "3b1b-npz-Ete_3-manual-seed0",
    "--data-dir ../日本 --device cuda:1": "3b1b-data_dir-cuda_1-manual-seed0",
    "--model cnn --blocks 0": "small-cnn-blocks0-manual-seed0",
    "--preset best-mlp --expand --lr 0.5": "best-mlp-no-expand-lr0.5-manual-seed0",
    "--preset nielsen-ch1": "nielsen-ch1-manual-seed0",
    "--preset 3b1b --model cnn": "3b1b-cnn-manual-seed0",
    "--preset 3b1b-relu-both-seed1-2/config.toml --lr 3": "3b1b-relu-lr3-manual-seed0",
    f"{MANY} 1": "3b1b-epochs3-warmup10-l1_0.001-clip_norm1-check_every100-3-more-610295-manual-seed0",
    f"{MANY} 2": "3b1b-epochs3-warmup10-l1_0.001-clip_norm1-check_every100-3-more-c642db-manual-seed0",
}


@pytest.mark.parametrize(("line", "name"), NAMES.items(), ids=NAMES.values())
def test_a_run_is_named_after_what_differs_from_its_preset(tmp_path, monkeypatch, line, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "3b1b-relu-both-seed1-2").mkdir()
    (tmp_path / "3b1b-relu-both-seed1-2/config.toml").write_text("lr = 0.5\n")
    assert train.parse(shlex.split(line)).name == name
