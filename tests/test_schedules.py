"""Learning rate schedules: end points, values, torch's formula."""

from itertools import pairwise

import pytest
import torch

from manual_backprop.schedules import SCHEDULES, constant, cosine


@pytest.mark.parametrize("total", [1, 7, 600])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_first_step_has_the_base_rate(schedule, total):
    assert schedule(0, total) == 1


def test_constant_stays():
    assert {constant(t, 100) for t in range(100)} == {1.0}


def test_cosine_ends_at_zero_after_the_last_step():
    assert cosine(50, 100) == pytest.approx(0.5, abs=1e-15)
    assert 0 < cosine(99, 100) < 1e-3
    assert cosine(100, 100) == 0


def test_cosine_falls_at_every_step():
    rates = [cosine(t, 600) for t in range(600)]
    assert all(later < earlier for earlier, later in pairwise(rates))


@pytest.mark.parametrize("total", [1, 7, 600])
def test_cosine_is_torchs(total):
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD([parameter], lr=3.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    for t in range(total):
        assert 3.0 * cosine(t, total) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-12)
        optimizer.step()
        theirs.step()
