"""What the tests of the gradient check share."""

import torch

from gallery import ENTRIES
from gallery.functions import function_of as function_of

MISTAKES = {entry.name: entry for entry in ENTRIES}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_failure(report):
    assert not report.passed
    return report.failures[0]
