"""What a run prints: a table of the layers, then a progress bar on a terminal, elsewhere a line per evaluation."""

import time
from collections.abc import Mapping
from math import prod
from types import TracebackType

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from manual_backprop.tape import Tape
from training.config import Config
from training.data import Examples
from training.families.model import Model
from training.tasks import Task
from training.terminal.output import Console


def print_layers(title: str, model: Model, state: Mapping[str, Tensor], x: Tensor) -> None:
    """A table of the layers that have parameters, as the forward pass of x calls them.

    Layers without parameters stand beside the one before them. `state` has parameters and buffers by name.
    """
    tape = Tape(buffers=state, records=False, observes=True)
    with torch.inference_mode():
        model.forward(state, x, tape)
    names = {id(state[name]): name for name in model.shapes}
    rows: list[tuple[str, list[str], list[str]]] = []  # layer, kinds, parameters
    for name, call in tape.calls.items():
        used = [names[id(argument)] for argument, _, _ in call.given if id(argument) in names]
        if used or not rows:
            rows.append((name, [], used))
        rows[-1][1].append(call.kind)
    table = Table(title=title, title_justify="left")
    for heading in ("layer", "kind", "parameters"):
        table.add_column(heading)
    table.add_column("number", justify="right")
    counted: set[str] = set()
    for name, kinds, used in rows:
        shapes = [
            f"{parameter.removeprefix(f'{name}.')} {'×'.join(map(str, state[parameter].shape))}" for parameter in used
        ]
        number = sum(state[parameter].numel() for parameter in used if parameter not in counted)
        counted.update(used)
        table.add_row(name, ", ".join(kinds), ", ".join(shapes), f"{number:,}" if number else "")
    table.add_section()
    table.add_row("", "", "", f"{sum(map(prod, model.shapes.values())):,}")
    Console(highlight=False).print(table)


class RunConsole:
    """Progress of a run of `total` steps, from step `start`; use it in a `with` statement."""

    def __init__(self, config: Config, train: Examples, task: Task, total: int, start: int = 0) -> None:
        self.out = Console(highlight=False, soft_wrap=True)
        self.config, self.headline, self.shown, self.total = config, task.headline, task.shown, total
        self.per_step, self.unit = config.batch_size * train.targets, train.unit
        self.done, self.done_at, self.since = 0, 0, time.perf_counter()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),  # what the terminal's width leaves
            TimeRemainingColumn(),
            console=self.out,
            expand=True,
            disable=not self.out.is_terminal,
        )
        self.task = self.progress.add_task("", total=total, completed=start)

    def __enter__(self) -> "RunConsole":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()

    def steps(self, done: int) -> None:
        self.done += done
        self.progress.update(self.task, advance=done)

    def notice(self, text: str) -> None:
        """A line that stays, above the progress bar if there is one."""
        self.out.print(text, markup=False)

    def evaluated(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Called after every evaluation, the one before the first step included."""
        seconds = time.perf_counter() - self.since
        speed = (self.done - self.done_at) * self.per_step / seconds
        self.done_at, self.since = self.done, time.perf_counter()
        count = f"epoch {epoch:>{len(str(self.config.epochs))}}/{self.config.epochs}"
        if self.config.eval_every:  # several evaluations may be of one epoch
            count += f"  step {step:>{len(f'{self.total:,}')},}/{self.total:,}"
        rate = f"  {speed:,.0f} {self.unit}/s" if speed else ""
        if self.out.is_terminal:
            result = self.headline.shown(values[f"{self.headline.name}/test"])
            self.progress.update(self.task, description=f"{count}  test {self.headline.name} {result}{rate}")
            return
        print(f"{count}  {self.shown(values)}{rate}", flush=True)
