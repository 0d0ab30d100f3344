"""What train.py makes of settings that leave something out."""

import train
from training.families import defaults
from training.families.configure import configure, default_preset, load_preset

CHOSEN = ("loss", "init", "lr", "l2")


def parsed(line):
    return train.parse(line.split()).config


def filled(model="mlp", **asked):
    """What is made of these options, and what is told of it: as `train.parse`, without a command line's cost."""
    usual = vars(load_preset(default_preset(model)))
    values = {**usual, **asked}
    config = configure(**defaults.fill(values, asked.keys()))
    return config, defaults.notes(vars(config), values, usual, asked.keys())
