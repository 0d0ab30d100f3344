"""What the tests of the gradient check share."""

import torch
from torch import Tensor

from gradient_check import Report, Row


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_failure(report: Report) -> Row:
    assert not report.passed
    return report.failures[0]
