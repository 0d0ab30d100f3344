"""The benchmark's count of live memory sees temporaries, and sees them go."""

import pytest
import torch

from benchmarks.speed import live_memory

MIB = 2**18  # float32 numbers


def three_at_once() -> None:
    a = torch.ones(MIB)
    b = a + 1
    c = a + b
    del a, b, c


def one_after_the_other() -> None:
    for _ in range(5):
        torch.ones(MIB)


LEAF = torch.ones(MIB, requires_grad=True)


def two_kept_by_autograd() -> None:
    LEAF.exp().exp()


@pytest.mark.slow
@pytest.mark.parametrize(("function", "mib"), [(three_at_once, 3), (one_after_the_other, 1), (two_kept_by_autograd, 2)])
def test_the_peak_counts_what_lives_together(function, mib):
    assert live_memory(function) == mib * 2**20
