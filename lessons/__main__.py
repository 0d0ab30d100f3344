"""The lessons' claims, run and measured: python -m lessons lists them, python -m lessons NAME … runs them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.table import Table

from lessons.lesson import FIGURE, LESSONS, Lesson, Report, load_lesson, teach
from training.data import Dataset, load
from training.errors import UserError
from training.terminal.output import Console, command


@dataclass(frozen=True)
class Arguments:
    """Run lessons. Each states its claim and what to see in its figure, measures, and says whether the claim holds.

    Without a name, list the lessons.
    """

    names: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="")
    ] = ()
    """Lessons to run, one after another. A name given twice counts once."""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data")
    """Directory with MNIST; without MNIST there, the bundled sample of it is used."""
    seed: int = 0
    """Seed of all random draws: initial weights, order of the examples, noise."""
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/lessons/NAME)")] = (
        None
    )
    """Directory to write to; with several lessons, DIR/NAME for each. An earlier run of a lesson there is replaced."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed is {self.seed}, but it must be a whole number from 0 to 2⁶³ − 1")

    @property
    def parent(self) -> Path:
        """For TensorBoard: the directory of all lessons, or that of a single one that --run-dir names."""
        return self.run_dir or Path("runs") / "lessons"


def show_list(console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for number, name in enumerate(LESSONS, start=1):
        table.add_row(f"{number:>2}", name, load_lesson(name).TITLE)
    console.print(table)
    console.print("\npython -m lessons NAME runs one, in less than a minute; several names run one after another.")


def show(console: Console, report: Report) -> None:
    heading, *rows = report.table
    table = Table(*heading)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"{'Holds' if report.holds else 'DOES NOT HOLD'}: {report.verdict}\n")


@command("lessons")
def main(argv: list[str]) -> int:
    """The exit status, as --help says."""
    console = Console(highlight=False, markup=False)
    arguments = tyro.cli(Arguments, args=argv, prog="python -m lessons", config=(tyro.conf.FlagCreatePairsOff,))
    if not arguments.names:
        show_list(console)
        return 0
    lessons = {name: load_lesson(name) for name in arguments.names}
    data = load("auto", arguments.data_dir)
    torch.set_num_threads(1)  # small matrices
    holds = [run(console, arguments, name, lesson, data) for name, lesson in lessons.items()]
    console.print(f"In TensorBoard: tensorboard --logdir {arguments.parent}", soft_wrap=True)
    return 0 if all(holds) else 1


def run(console: Console, arguments: Arguments, name: str, lesson: Lesson, data: Dataset) -> bool:
    """Run a lesson and print its report; whether its claim holds."""
    console.print(f"{lesson.TITLE}\n\nClaim: {lesson.CLAIM}\nSource: {lesson.SOURCE}\n\nWhat to see: {lesson.SEE}\n")
    alone = arguments.run_dir and len(set(arguments.names)) == 1
    run_dir = arguments.parent if alone else arguments.parent / name
    with console.status("measuring …"):
        report = teach(name, data, arguments.seed, run_dir)
    show(console, report)
    console.print(f"Figure: {run_dir / FIGURE}\n", soft_wrap=True)
    return report.holds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
