"""Dropout's masks: a function of seed, step and call, with the right share of zeros."""

import torch
from torch import Tensor

from training.data.noise import dropout_noise

CPU = torch.device("cpu")


def mask(
    seed: int = 1, step: int = 3, call: str = "layer1.dropout", shape: tuple[int, ...] = (400, 50), keep: float = 0.5
) -> Tensor:
    return dropout_noise(seed)(step, CPU, torch.float64)(call, shape, keep)


def test_masks_are_zeros_and_ones_of_the_shape_asked_for():
    for shape, keep in (((400, 50), 0.75), ((30, 4, 100), 0.1)):
        drawn = mask(shape=shape, keep=keep)
        assert drawn.shape == shape
        assert drawn.dtype == torch.float64
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
        assert abs(drawn.mean().item() - keep) < 5 * (keep * (1 - keep) / drawn.numel()) ** 0.5


def test_a_format_changes_no_mask():
    drawn = dropout_noise(1)(3, CPU, torch.bfloat16)("layer1.dropout", (400, 50), 0.5)
    assert drawn.dtype == torch.bfloat16
    assert torch.equal(drawn.double(), mask())


def test_they_depend_on_the_seed_the_step_and_the_call_and_on_nothing_else():
    before = mask()
    torch.manual_seed(99)
    noise = dropout_noise(1)(3, CPU, torch.float64)
    noise("layer2.dropout", (7,), 0.5)  # what is asked for before makes no difference
    assert torch.equal(before, noise("layer1.dropout", (400, 50), 0.5))
    others = [
        mask(step=4),
        mask(seed=2),
        mask(seed=13),
        mask(step=33),
        mask(call="layer2.dropout"),
        mask(call="dropout"),
    ]
    others += [mask(seed=13, step=1), mask(seed=1, step=31)]
    assert not any(torch.equal(before, other) for other in others)
