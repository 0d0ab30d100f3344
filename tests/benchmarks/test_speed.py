"""What benchmarks/speed.py compares: the peer in NumPy takes the same step, and memory that lives together counts."""

import pytest
import torch

from benchmarks.speed import in_numpy, live_memory
from tests.support.problems import rates
from tests.support.running import manual_of, resolved
from training.families.configure import load_preset

MIB = 2**18  # float32 numbers
LEAF = torch.ones(MIB, requires_grad=True)


def three_at_once():
    a = torch.ones(MIB)
    b = a + 1
    c = a + b
    del a, b, c


def one_after_the_other():
    for _ in range(5):
        torch.ones(MIB)


def two_kept_by_autograd():
    LEAF.exp().exp()


@pytest.mark.slow
@pytest.mark.parametrize(("function", "mib"), [(three_at_once, 3), (one_after_the_other, 1), (two_kept_by_autograd, 2)])
def test_the_peak_counts_what_lives_together(function, mib):
    assert live_memory(function) == mib * 2**20


def test_numpy_by_hand_takes_the_same_steps(sample):
    learner = manual_of(resolved(load_preset("3b1b"), sample), sample)
    numpy, batches = in_numpy(learner), torch.arange(60).view(3, 20)
    start = learner.params["layer1.weight"].clone()
    learner.advance(batches, rates(3, 2.0))
    numpy.advance(batches.numpy(), 2.0)
    for l, pair in enumerate(zip(numpy.weights, numpy.biases, strict=True), start=1):
        for value, name in zip(pair, ("weight", "bias"), strict=True):
            expected = learner.params[f"layer{l}.{name}"]
            torch.testing.assert_close(torch.from_numpy(value), expected, rtol=1e-5, atol=1e-6)
    assert (learner.params["layer1.weight"] - start).norm() > 1e-3
