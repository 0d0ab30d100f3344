"""The benchmark's count of live memory sees temporaries, and sees them go."""

import torch

from benchmarks.speed import live_memory

MIB = 2**18  # float32 numbers


def test_the_peak_counts_temporaries_that_live_together():
    def three_at_once() -> None:
        a = torch.ones(MIB)
        b = a + 1
        c = a + b
        del a, b, c

    assert live_memory(three_at_once) == 3 * 2**20


def test_what_is_let_go_does_not_count():
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.ones(MIB)

    assert live_memory(one_after_the_other) == 2**20


def test_autograds_tensors_count():
    x = torch.ones(MIB, requires_grad=True)
    assert live_memory(lambda: x.exp().exp()) == 2 * 2**20
