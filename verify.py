"""Hand-written backpropagation against autograd, tensor by tensor: python verify.py --model mlp"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.table import Table

from gradient_check import Row
from training.config import Config
from training.errors import UserError
from training.families import FAMILIES
from training.learners.verification import Check, size, verify_all, verify_model
from training.prediction import verify_trained
from training.terminal.output import Console, command


@dataclass(frozen=True)
class Arguments:
    """Compare the cost, ∂C/∂output, every δ and every gradient of hand-written networks with autograd's."""

    model: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME", help=f"Model: {', '.join(FAMILIES)}.", help_behavior_hint=f"(default: {Config.model})"
        ),
    ] = None
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="RUN_OR_PT", help_behavior_hint="")] = None
    """Verify a trained network instead, on mini-batches of its training set: a run's directory or a .pt file."""
    all: bool = False
    """Verify every model, every layer and every cost."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: that of the run)")] = (
        None
    )
    """Directory with the data set of the checkpoint."""
    seeds: int = 20
    """Number of seeds. Each draws new parameters and examples (for a checkpoint, a new mini-batch)."""
    seed: int = 0
    """The first seed; the others follow it."""
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float64"
    """Number format of the hand-written side; the tolerance follows from it."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.model, self.checkpoint, self.all))) > 1:
            raise UserError("--model, --checkpoint and --all exclude each other: give one of them")
        if self.model is not None and self.model not in FAMILIES:
            raise UserError(f"--model is {self.model!r}, but it must be one of {', '.join(FAMILIES)}")
        if self.data_dir and not self.checkpoint:
            raise UserError("--data-dir goes with --checkpoint: nothing else reads data")
        if self.seeds < 1:
            raise UserError(f"--seeds is {self.seeds}, but it must be a whole number from 1")
        if self.seed < 0 or self.seed + self.seeds > 2**63:
            raise UserError(f"--seed is {self.seed} and --seeds {self.seeds}, but every seed must be from 0 to 2⁶³ − 1")


def verify(arguments: Arguments) -> Iterable[Check]:
    """One by one, what was asked for."""
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    if arguments.checkpoint:
        return [verify_trained(arguments.checkpoint, arguments.dtype, seeds, arguments.data_dir)]
    dtype = getattr(torch, arguments.dtype)
    return verify_all(dtype, seeds) if arguments.all else verify_model(arguments.model or Config.model, dtype, seeds)


def print_part(part: str, checks: list[Check]) -> None:
    """A line for every layer and every cost; of networks the first in detail, and of all the largest error."""
    if part in ("layers", "costs"):
        print_list(part, checks)
        return
    print_details(checks[0])
    title = f"{part}: the largest relative error of all tensors in {len(checks):,} networks"
    if len({(check.variant, check.loss) for check in checks}) < len(checks):
        print_grid(title, checks)
    elif len(checks) > 1:
        print_list(title, checks)


def print_details(check: Check) -> None:
    """A line per tensor, with the one of its comparisons that came nearest to its limit."""
    table = titled(f"{check.title}, {len(check.reports)} {'draw' if len(check.reports) == 1 else 'draws'}")
    table.add_column("tensor")
    table.add_column("shape")
    for heading in ("relative error", "allowed"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in check.nearest.rows:
        table.add_row(
            row.label, f"{row.shape}", f"{row.relative_error:.1e}", f"{row.tolerance:.1e}", verdict(row.passed)
        )
    Console(highlight=False).print(table)


def print_grid(title: str, checks: list[Check]) -> None:
    """A line per variant and a column per cost."""
    table = titled(title)
    table.add_column("variant")
    losses = list(dict.fromkeys(check.loss for check in checks))
    for loss in losses:
        table.add_column(loss.replace("-cross", "\ncross"), justify="right")
    for variant in dict.fromkeys(check.variant for check in checks):
        cells = []
        for loss in losses:
            chosen = [check for check in checks if (check.variant, check.loss) == (variant, loss)]
            worst = max((size(check.largest) for check in chosen), default=0.0)
            cells.append(f"{worst:.1e} {verdict(all(check.passed for check in chosen))}" if chosen else "")
        table.add_row(variant, *cells)
    Console(highlight=False).print(table)


def print_list(title: str, checks: list[Check]) -> None:
    """A line per layer, cost or network."""
    table = titled(title)
    table.add_column("")
    for heading in ("comparisons", "relative error"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for check in checks:
        largest = f"{check.largest.relative_error:.1e}"
        table.add_row(check.title, f"{len(check.rows):,}", largest, verdict(check.passed))
    Console(highlight=False).print(table)


def titled(title: str) -> Table:
    return Table(title=title, title_justify="left")


def verdict(passed: bool) -> str:
    return "[green]ok[/green]" if passed else "[bold red]WRONG[/bold red]"


def as_json(arguments: Arguments, checks: list[Check], largest: Row) -> dict[str, Any]:
    """Every check with the rows that came nearest to their limits; errors that are not finite are None."""
    return {
        "passed": all(check.passed for check in checks),
        "dtype": arguments.dtype,
        "seeds": [arguments.seed, arguments.seed + arguments.seeds - 1],
        "comparisons": sum(len(check.rows) for check in checks),
        "largest_relative_error": finite(largest.relative_error),
        "checks": [
            {
                "part": check.part,
                "title": check.title,
                "comparisons": len(check.rows),
                "largest_relative_error": finite(check.largest.relative_error),
                **check.nearest.to_dict(),
            }
            for check in checks
        ],
    }


def finite(value: float) -> float | None:
    return value if isfinite(value) else None


@command("verify.py")
def main(argv: list[str]) -> int:
    torch.set_num_threads(1)  # small matrices
    checks: list[Check] = []
    arguments = tyro.cli(Arguments, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    for part, group in groupby(verify(arguments), lambda check: check.part):
        done = list(group)
        checks += done
        if not arguments.json:
            print_part(part, done)
    largest = max((check.largest for check in checks), key=size)
    if arguments.json:
        print(json.dumps(as_json(arguments, checks, largest), allow_nan=False))
    rows = [row for check in checks for row in check.rows]
    wrong = [check for check in checks if not check.passed]
    if wrong:
        first = next(row for row in wrong[0].rows if not row.passed)
        if not arguments.json:
            print(f"{wrong[0].title}:\n{wrong[0].nearest}")
        count = sum(not row.passed for row in rows)
        print(
            f"{count:,} of {len(rows):,} differ; the first is {first.title} of {wrong[0].title}: {first.cause}",
            file=sys.stderr,
        )
        return 1
    if not arguments.json:
        print(
            f"all {len(rows):,} comparisons agree in {arguments.dtype}; "
            f"largest relative error {largest.relative_error:.1e} ({largest.label})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
