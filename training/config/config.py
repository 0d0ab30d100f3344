"""All settings together, and what each of them demands of the others."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from manual_backprop.losses import LOSSES
from manual_backprop.optimizers import OPTIMIZERS
from manual_backprop.schedules import SCHEDULES
from training.config.groups import Data, Learning, Machine, Network, Regularization, Schedule
from training.config.rules import check, flag, require, require_parts
from training.data import TEXTS
from training.errors import UserError

SCHEDULED = {"lr_epochs": "every", "lr_factor": "factor"}  # settings that only some schedules take


@dataclass(frozen=True)
class Config(Machine, Regularization, Schedule, Learning, Data, Network):  # the fields of the last base come first
    """The settings that every family of networks has. Raises UserError for a value out of its range."""

    def __post_init__(self) -> None:
        check(self)
        require_cost(self.loss)
        if self.clip_norm and self.clip_value:
            raise UserError("--clip-norm and --clip-value are two ways to clip: give one of them")
        if self.label_smoothing and self.loss != "softmax-cross-entropy":
            raise UserError(f"label smoothing goes with --loss softmax-cross-entropy, not with {self.loss}")
        self._check_optimizer()
        self._check_schedule()
        self._check_sizes()
        if self.check_every and self.impl != "manual":
            raise UserError(f"--check-every goes with --impl manual, not with {self.impl}")
        if self.device.startswith("mps") and (self.impl == "both" or self.check_every):
            raise UserError("--device mps has no float64, which the comparison with autograd needs: give --device cpu")

    def _check_optimizer(self) -> None:
        update = OPTIMIZERS[self.optimizer]
        file = "manual_backprop/optimizers.py"
        require_parts(f"optimizer {self.optimizer}", update, file, "__dataclass_fields__", "init", "update")
        own = self._optimizer_defaults
        for name in own:
            if not hasattr(self, name):
                raise UserError(
                    f"the optimizer {self.optimizer} has a setting {name}, and no option gives it: Learning in "
                    f"training/config/groups.py has to have a field {name} (docs/adding.md)"
                )
        for name in self._of_other_optimizers:
            usual = getattr(Config, name, None)
            if getattr(self, name, None) != usual:
                off = f"{flag(name)} {usual}" if usual != () else f"{flag(name)} without a value"
                raise UserError(
                    f"{self.optimizer} has no {name}: leave out {flag(name)} (where a preset sets it, give {off}), or "
                    f"choose another --optimizer"
                )
        if self.betas and len(self.betas) != len(own["betas"]):
            count, example = len(own["betas"]), " ".join(map(str, own["betas"]))
            raise UserError(f"{self.optimizer} takes {count} betas, such as {example}, not {len(self.betas)}")

    def _check_schedule(self) -> None:
        course = SCHEDULES[self.schedule]
        if "every" in course.takes and not self.lr_epochs:
            raise UserError(f"--schedule {self.schedule} has no length: give {flag('lr_epochs')}, 10 for example")
        for name, taken in SCHEDULED.items():
            if taken not in course.takes and getattr(self, name) != getattr(Config, name):
                users = ", ".join(other for other, own in SCHEDULES.items() if taken in own.takes)
                raise UserError(f"{flag(name)} goes with --schedule {users}, not with {self.schedule}")
        if self.warmup and course.rises:
            raise UserError(f"{self.schedule} has a warm-up of its own: leave out --warmup")
        judged = [f"--schedule {self.schedule}"] if course.follows else []
        judged += ["--patience"] if self.patience else []
        if judged and not self.validation:
            raise UserError(
                f"{judged[0]} is decided on held-out training examples, because the test set must not decide: "
                f"give --validation, 10000 for example"
            )

    def _check_sizes(self) -> None:
        largest = 300 if self.dtype == "float64" else 30
        for name in ("lr", "eps", "l2", "l1", "max_norm", "clip_norm", "clip_value"):
            value, zero = getattr(self, name), "" if name in ("lr", "eps") else "0 or "
            fits = not value or float(f"1e-{largest}") <= value <= float(f"1e{largest}")
            require(name, value, fits, f"{zero}from 1e-{largest} to 1e{largest}, the range for {self.dtype}")

    @property
    def optimizer_settings(self) -> dict[str, Any]:
        """What the optimizer is made with; where the option is left out, the optimizer's own default."""
        return {name: getattr(self, name) or default for name, default in self._optimizer_defaults.items()}

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that decide what is learned, as far as this run has them.

        What only other optimizers or schedules have is left out, and what is switched off by the value that it has
        anyway (--l2 0).
        """
        takes = SCHEDULES[self.schedule].takes
        others = {*self._of_other_optimizers, *(name for name, taken in SCHEDULED.items() if taken not in takes)}
        others |= set() if self.dataset in TEXTS else {"tokens"}
        found = {**asdict(self), **self.optimizer_settings}
        machine = [field.name for field in fields(Machine) if field.name not in ("dtype", "eval_every")]
        for name in (*others, *machine, "data_dir"):
            found.pop(name, None)
        return {
            name: value
            for name, value in found.items()
            if value
            or name == "seed"
            or value != getattr(type(self), name, None)  # no residual block at all is a choice
        }

    @property
    def _of_other_optimizers(self) -> list[str]:
        every = dict.fromkeys(field.name for make in OPTIMIZERS.values() for field in fields(make))  # type: ignore[arg-type]
        return [name for name in every if name not in self._optimizer_defaults]

    @property
    def _optimizer_defaults(self) -> dict[str, Any]:
        return {field.name: field.default for field in fields(OPTIMIZERS[self.optimizer])}  # type: ignore[arg-type]

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of a whole run of epochs of so many steps, for which the schedule is laid out."""
        steps = self.epochs * steps_per_epoch
        return min(steps, self.max_steps) if self.max_steps else steps

    def to_toml(self) -> str:
        """A TOML file that `--preset` reads back as the same configuration."""
        return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in asdict(self).items())


def require_cost(name: str) -> None:
    """Raises UserError for a cost that lacks a part."""
    parts = ("from_logits", "formula", "forward", "backward")
    require_parts(f"cost {name}", LOSSES[name](), "manual_backprop/losses.py", *parts)


def takes_logits(cost: str) -> bool:
    require_cost(cost)
    return LOSSES[cost]().from_logits
