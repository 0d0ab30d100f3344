"""What a run prints: a table of the layers, then a progress bar on a terminal or a plain line per epoch elsewhere."""

import time
from math import prod
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from manual_backprop.parameters import Shape
from training.families.model import Model
from training.output import Console


def print_layers(model: Model) -> None:
    """A table of the layers that have parameters, with their shapes and number."""
    layers: dict[str, dict[str, Shape]] = {}
    for name, shape in model.shapes.items():
        layer, _, kind = name.rpartition(".")
        layers.setdefault(layer, {})[kind] = shape
    table = Table(title=model.title, title_justify="left")
    for heading in ("layer", "kind", "weight", "bias"):
        table.add_column(heading)
    table.add_column("parameters", justify="right")
    for layer, shapes in layers.items():
        sizes = [str(shapes[kind]) if kind in shapes else "" for kind in ("weight", "bias")]
        table.add_row(layer, model.kind(layer), *sizes, f"{sum(map(prod, shapes.values())):,}")
    table.add_section()
    table.add_row("", "", "", "", f"{sum(map(prod, model.shapes.values())):,}")
    Console(highlight=False).print(table)


class RunConsole:
    """Progress of a run of `total` steps, from step `start`; use it in a `with` statement."""

    def __init__(self, total: int, epochs: int, batch_size: int, start: int = 0) -> None:
        self.out = Console(highlight=False, soft_wrap=True)
        self.epochs, self.batch_size = epochs, batch_size
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

    def epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Called after every evaluation, the one before the first step included."""
        seconds = time.perf_counter() - self.since
        speed = (self.done - self.done_at) * self.batch_size / seconds
        self.done_at, self.since = self.done, time.perf_counter()
        count = f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}"
        rate = f"  {speed:,.0f} examples/s" if step else ""
        if self.out.is_terminal:
            description = f"{count}  test accuracy {values['accuracy/test']:.2%}{rate}"
            self.progress.update(self.task, description=description)
            return
        losses = f"loss/test {values['loss/test']:.4f}"
        accuracies = f"accuracy/test {values['accuracy/test']:.2%}  accuracy/train {values['accuracy/train']:.2%}"
        print(f"{count}  {losses}  {accuracies}{rate}", flush=True)
