"""The learning rate's schedule that a configuration asks for, and when held-out examples end a run early."""

from manual_backprop.schedules import SCHEDULES, Plateau, Schedule, Warmup, constant
from training.checkpoint import Progress
from training.config import Config
from training.tasks import Task

LAST_HALVING = 1 / 128  # of the base rate: there Nielsen's rule ends the run


def make_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """η / η₀ at step t of T, as far as it does not depend on how training goes."""
    make = SCHEDULES[config.schedule].make
    schedule = make(config.lr_epochs * steps_per_epoch, config.lr_factor) if make else constant
    return Warmup(config.warmup, schedule) if config.warmup else schedule


def make_plateau(config: Config) -> Plateau:
    """What the rate is also multiplied by, after every evaluation; without such a schedule it never falls."""
    course = SCHEDULES[config.schedule]
    if course.follows and "factor" in course.takes:
        return Plateau(config.lr_epochs, config.lr_factor)
    return Plateau(config.lr_epochs, 0.5 if course.follows else 1.0)


def ended_early(config: Config, progress: Progress, task: Task) -> str:
    """Why a run ends before its last step: "no better accuracy for 10 epochs"; empty if it does not."""
    if config.patience and progress["waited"] >= config.patience:
        unit = "evaluation" if config.eval_every else "epoch"
        return f"no better {task.headline.name} for {config.patience} {unit}{'s' if config.patience > 1 else ''}"
    if config.schedule == "halve" and progress["plateau"]["scale"] <= LAST_HALVING:
        return f"the learning rate has been halved down to 1/{round(1 / LAST_HALVING)}"
    return ""
