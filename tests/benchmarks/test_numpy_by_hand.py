"""The peer in NumPy of benchmarks/speed.py takes the step that it is compared with."""

import torch

from benchmarks.speed import in_numpy
from tests.support.problems import rates
from tests.support.running import manual_of, resolved
from training.families.configure import load_preset


def test_numpy_by_hand_takes_the_same_steps(sample):
    learner = manual_of(resolved(load_preset("3b1b"), sample), sample)
    numpy = in_numpy(learner)
    batches = torch.arange(60).view(3, 20)
    start = learner.params["layer1.weight"].clone()
    learner.advance(batches, rates(3, 2.0))
    numpy.advance(batches.numpy(), 2.0)
    for l, (W, b) in enumerate(zip(numpy.weights, numpy.biases, strict=True), start=1):
        torch.testing.assert_close(torch.from_numpy(W), learner.params[f"layer{l}.weight"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(b), learner.params[f"layer{l}.bias"], rtol=1e-5, atol=1e-6)
    assert (learner.params["layer1.weight"] - start).norm() > 1e-3
