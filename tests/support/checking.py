"""What the tests of the gradient check share."""

import torch


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_failure(report):
    assert not report.passed
    return report.failures[0]
