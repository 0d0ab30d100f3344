"""Dropout's masks: a function of seed and step, with the right share of zeros."""

import torch

from training.noise import dropout_masks

X = torch.zeros(400, 3, dtype=torch.float64)


def test_masks_are_zeros_and_ones_of_the_layers_widths():
    first, second = dropout_masks((50, 30), 0.25, seed=1)(0, X)
    assert first.shape == (400, 50)
    assert second.shape == (400, 30)
    assert first.dtype == torch.float64
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert abs(first.mean().item() - 0.75) < 5 * (0.25 * 0.75 / first.numel()) ** 0.5


def test_they_depend_on_the_seed_and_the_step_and_on_nothing_else():
    before = dropout_masks((7, 7), 0.5, seed=1)(3, X)
    torch.manual_seed(99)
    again = dropout_masks((7, 7), 0.5, seed=1)(3, X)
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    others = [before[1], *(dropout_masks((7, 7), 0.5, seed=s)(t, X)[0] for s, t in [(1, 4), (2, 3), (13, 3), (1, 33)])]
    assert not any(torch.equal(before[0], other) for other in others)
