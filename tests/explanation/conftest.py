"""The two runs that are explained: of pictures, and of points in the plane."""

import pytest

import train
from tests.support.running import flags

DIGITS = {"dataset": "sample", "max_steps": 20, "epochs": 1, "lr": 10.0}
POINTS = {"preset": "points", "epochs": 1}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, options in (("digits", DIGITS), ("points", POINTS)):
        assert train.main(list(flags({**options, "run_dir": folder / name}))) == 0
    return {name: folder / name for name in ("digits", "points")}
