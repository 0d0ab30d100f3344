"""Learning rate schedules: end points, values, torch's formulas."""

from math import inf

import pytest
import torch
from torch.optim import lr_scheduler

from manual_backprop.schedules import Exponential, Plateau, Step, Warmup, constant, cosine, one_cycle

RATE = 3.0


def optimizer() -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameter.grad = torch.zeros_like(parameter)
    return torch.optim.SGD([parameter], lr=RATE)


def warmup_and_cosine(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 50, end_factor=1.0, total_iters=49)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=550)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[50])


PAIRS = {
    "constant": (constant, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    "step": (Step(70, 0.3), lambda o: lr_scheduler.StepLR(o, 70, 0.3)),
    "exponential": (Exponential(70, 0.3), lambda o: lr_scheduler.ExponentialLR(o, 0.3 ** (1 / 70))),
    "cosine": (cosine, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=600)),
    "one-cycle": (one_cycle, lambda o: lr_scheduler.OneCycleLR(o, RATE, total_steps=600, cycle_momentum=False)),
    "warm-up and cosine": (Warmup(50, cosine), warmup_and_cosine),
}


@pytest.mark.parametrize(("mine", "make"), PAIRS.values(), ids=PAIRS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # torch's own SequentialLR gives it
def test_every_rate_is_torchs(mine, make):
    theirs, rates = make(own := optimizer()), []
    for _ in range(600):
        rates.append(theirs.get_last_lr()[0])
        own.step()
        theirs.step()
    assert [RATE * mine(t, 600) for t in range(600)] == pytest.approx(rates, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("schedule", [pair[0] for pair in PAIRS.values()], ids=PAIRS)
@pytest.mark.parametrize("total", [51, 52, 600])
def test_rates_are_above_zero_and_at_most_the_base_rate(schedule, total):
    assert all(0 < schedule(t, total) <= 1 for t in range(total))


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 10, 600])
def test_one_cycle_ends_low_however_short(total):
    rates = [one_cycle(t, total) for t in range(total)]
    assert rates[-1] == pytest.approx(1 if total == 1 else 1 / 250_000)
    assert max(rates) <= 1
    if total >= 10:
        assert (rates[0], max(rates)) == (pytest.approx(1 / 25), pytest.approx(1, rel=1e-3))
        top = rates.index(max(rates))
        assert rates == sorted(rates[: top + 1]) + sorted(rates[top + 1 :], reverse=True)


def test_a_warm_up_rises_in_equal_steps_and_then_tells_the_schedule_the_time_and_the_length_that_are_left():
    schedule = Warmup(4, lambda t, total: t + 100 * total)
    assert [schedule(t, 20) for t in range(8)] == [0.25, 0.5, 0.75, 1.0, 1600, 1601, 1602, 1603]


def walk(plateau: Plateau, values: list[float]) -> list[float]:
    memory, scales = plateau.init(), []
    assert memory["scale"] == 1
    for value in values:
        memory = plateau.update(memory, value)
        scales.append(memory["scale"])
    return scales


def test_a_plateau_falls_when_there_was_no_new_best_for_so_long():
    values = [5, 4, 4, 4.5, 3, 3, 3, 3, 3, 2]
    assert walk(Plateau(2, 0.5), values) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert walk(Plateau(1, 0.5), [5, 4, 4, 3, 3]) == [1, 1, 0.5, 0.5, 0.25]
    assert walk(Plateau(2, 0.5), [inf, inf, 4]) == [1, 0.5, 0.5]


@pytest.mark.parametrize("factor", [0.5, 0.1])
@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_plateau_is_torchs(patience, factor):
    """torch counts the evaluations that may pass without improvement, we those after which the rate falls."""
    noise = torch.rand(200, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    values, own, rates = (torch.linspace(2, 0, 200, dtype=torch.float64) + noise).tolist(), optimizer(), []
    theirs = lr_scheduler.ReduceLROnPlateau(own, factor=factor, patience=patience - 1, threshold=0.0, eps=0.0)
    for value in values:
        theirs.step(value)
        rates.append(own.param_groups[0]["lr"])
    assert [RATE * scale for scale in walk(Plateau(patience, factor), values)] == pytest.approx(rates, rel=1e-12)
    assert rates[-1] < RATE * factor**2
