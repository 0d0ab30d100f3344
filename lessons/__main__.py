"""The lessons' claims, run and measured: python -m lessons lists them, python -m lessons NAME runs one."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.table import Table

from lessons.lesson import FIGURE, LESSONS, Report, load_lesson, teach
from training.data import load
from training.errors import UserError
from training.terminal.output import Console, command


@dataclass(frozen=True)
class Arguments:
    """Run one of the lessons: its claim, what was measured, and whether it holds. Without a name, list them."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """The lesson."""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data")
    """Where MNIST lies; where it does not, the bundled sample of it is used."""
    seed: int = 0
    """Seed of initial weights, order of the examples, and draws."""
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where to write; left out, runs/lessons/NAME, which is replaced."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed is {self.seed}, but it must be a whole number from 0 to 2⁶³ − 1")


def show_list(console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for number, name in enumerate(LESSONS, start=1):
        table.add_row(f"{number:>2}", name, load_lesson(name).TITLE)
    console.print(table)
    console.print("\npython -m lessons NAME runs one, in less than a minute.")


def show(console: Console, report: Report) -> None:
    heading, *rows = report.table
    table = Table(*heading)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"\n{'Holds' if report.holds else 'DOES NOT HOLD'}: {report.verdict}\n")


@command("lessons")
def main(argv: list[str]) -> int:
    """The exit status: 0, 1 where the claim did not hold, 2 for a mistake in what was asked for, 130 after Ctrl-C,
    141 where the reader of the output closed it."""
    console = Console(highlight=False, markup=False)
    try:
        arguments = tyro.cli(Arguments, args=argv, prog="python -m lessons", config=(tyro.conf.FlagCreatePairsOff,))
        if arguments.name is None:
            show_list(console)
            return 0
        lesson = load_lesson(arguments.name)
        console.print(f"{lesson.TITLE}\n\nClaim: {lesson.CLAIM}\nSource: {lesson.SOURCE}\n")
        data = load("auto", arguments.data_dir)
        run_dir = arguments.run_dir or Path("runs") / "lessons" / arguments.name
        torch.set_num_threads(1)  # small matrices
        with console.status("measuring …"):
            report = teach(arguments.name, data, arguments.seed, run_dir)
    except KeyboardInterrupt:
        return 130
    show(console, report)
    console.print(f"Figure in {run_dir / FIGURE}; to look inside: tensorboard --logdir {run_dir}", soft_wrap=True)
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
