"""A small run of every family of networks, also of one that is added: what holds of any run is tested with these."""

from dataclasses import replace
from functools import cache

import train
from tests.support.running import ROOT, flags, resolved, write_npz, write_pictures
from training.families import FAMILIES
from training.run import load_data
from training.tasks import NEXT_TOKEN

IN_TESTS_ONLY = ("cell", "block")  # tests/support/text/families.py registers them
NAMES = tuple(dict.fromkeys([*FAMILIES, *IN_TESTS_ONLY]))
TEXT = ROOT / "LICENSE"

# 200 examples in batches of 30 are 7 steps an epoch, 300 characters in segments of 7 and batches of 5 are 8.
COMMON = {"epochs": 2, "log_every": 4, "histogram_every": 5, "device": "cpu", "threads": 1, "schedule": "constant"}
MOMENTUM = {"optimizer": "sgd", "momentum": 0.9, "l2": 1e-3}
OPTIONS = {
    "mlp": {**MOMENTUM, "hidden": (4, 3), "activation": "tanh", "lr": 0.1, "dropout": 0.1, "clip_norm": 1.0},
    "recurrent": {"width": 9, "depth": 2, "context": 7, "dropout": 0.1, "batch_size": 5, "lr": 0.01},
    "cnn": {**MOMENTUM, "channels": (3, 4), "lr": 0.05, "dropout": 0.2, "shift": 1, "rotate": 10.0},
}
SHAPES = {"cnn": (7, 6)}  # of the other networks' pictures: 28×28


def options_of(name, folder):
    """As a command line has them; the data are written into `folder`. What is not said here is as in the preset."""
    options = {"model": name, **COMMON, **OPTIONS.get(name, {})}
    if NEXT_TOKEN.name in FAMILIES[name].tasks:
        return options | {"dataset": "text", "data_dir": TEXT, "examples": 300}
    path = folder / f"{name}.npz"
    if not path.exists():
        write_npz(path) if name == "mlp" else write_pictures(path, SHAPES.get(name, (28, 28)))
    return options | {"dataset": "npz", "data_dir": path, "batch_size": 30}


@cache
def parsed(name, folder):
    config = train.parse(list(flags(options_of(name, folder)))).config
    return config, load_data(config)


def small_run(name, folder, **changes):
    """The configuration with nothing left open, and the data."""
    config, data = parsed(name, folder)
    return resolved(replace(config, **changes), data), data
