"""The two runs that are explained: of pictures, and of points in the plane."""

from pathlib import Path

import pytest

import train
from tests.support.running import flags

RUNS = {
    "digits": {"dataset": "sample", "max_steps": 20, "epochs": 1, "lr": 10.0},
    "points": {"preset": "points", "epochs": 1},
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, options in RUNS.items():
        assert train.main(list(flags({**options, "run_dir": folder / name}))) == 0
    return {name: folder / name for name in RUNS}
