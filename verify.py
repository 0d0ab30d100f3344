"""Hand-written backpropagation against autograd, tensor by tensor: python verify.py --model mlp"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gradient_check import Report
from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import SGD
from reference import losses as reference_losses
from reference import mlp as reference_mlp
from training.batches import epoch_order
from training.data import Split, load
from training.errors import UserError
from training.learners.comparison import compare_passes
from training.learners.factory import make_manual, make_reference
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner
from training.prediction import load_trained

Dtype = Literal["float64", "float32"]
LESSON = (784, 16, 16, 10)
SIZES = (7, 5, 6, 3, 4)  # of the small networks: the first depth + 1 of them
BATCH = 11
NO_EXAMPLES = Split(torch.empty(0, 1), torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True)
class Arguments:
    """Compare the cost, ∂C/∂output, every δ and every gradient of hand-written networks with autograd's."""

    model: Literal["mlp"] = "mlp"
    """Which model: mlp is the lessons' 784-16-16-10, and networks of depth 1 to 4 with every activation and cost."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="RUN_OR_PT")] = None
    """Verify this trained network instead, on mini-batches of its training set."""
    seeds: int = 3
    """How many draws of parameters and examples (of mini-batches for a checkpoint)."""
    seed: int = 0
    """The first of these draws."""
    dtype: Dtype = "float64"
    """Number format of the hand-written side; the tolerance follows from it."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError(f"--seeds is {self.seeds}, but it must be a whole number from 1")
        if not 0 <= self.seed < 2**63 - self.seeds:
            raise UserError(f"--seed is {self.seed}, but it must be a whole number from 0")


def compare(manual: ManualLearner, references: list[ReferenceLearner], x: Tensor, y: Tensor) -> Report:
    """One forward and backward pass of both at the manual θ; below float64 the second reference is the truth."""
    for reference in references:
        reference.load_state_dict(manual.state_dict())
    rows = compare_passes(manual, references, x, y).report.rows
    return Report(tuple(row for row in rows if not row.name.startswith(("z ", "a "))))


def formats(dtype: torch.dtype) -> list[torch.dtype]:
    """Of the references: the hand-written side's own and, below float64, that of the truth."""
    return [dtype] if dtype == torch.float64 else [dtype, torch.float64]


def random_network(sizes: tuple[int, ...], activation: str, loss: str, dtype: torch.dtype, seed: int) -> Report:
    """Compare at random weights and biases, on random examples."""
    last = "identity" if LOSSES[loss]().from_logits else activation
    activations = (*[activation] * (len(sizes) - 2), last)
    manual = ManualLearner(MLP(sizes, activations), LOSSES[loss](), SGD(), NO_EXAMPLES, dtype=dtype)
    initialize(manual.params, INITIALIZERS["scaled-normal"], seed)
    references = [
        ReferenceLearner(reference_mlp.MLP(sizes, activations), reference_losses.LOSSES[loss], NO_EXAMPLES, dtype=d)
        for d in formats(dtype)
    ]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, sizes[0], generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(sizes[-1], (BATCH,), generator=generator)
    return compare(manual, references, x, y)


def random_networks(dtype: torch.dtype, seeds: range) -> list[Report]:
    """The lesson's network in detail, then every activation with every cost in networks of depth 1 to 4."""
    reports = [random_network(LESSON, "sigmoid", "quadratic", dtype, seed) for seed in seeds]
    print_details(
        f"{'-'.join(map(str, LESSON))}, sigmoid, quadratic cost, {len(seeds)} draws of {BATCH} examples", reports
    )
    table = Table(
        title=f"the largest relative error of all tensors in networks of depth 1 to {len(SIZES) - 1}",
        title_justify="left",
    )
    table.add_column("activation")
    for loss in LOSSES:
        table.add_column(loss.replace("-cross", "\ncross"), justify="right")
    for activation in ACTIVATIONS:
        cells = []
        for loss in LOSSES:
            networks = [SIZES[: depth + 1] for depth in range(1, len(SIZES))]
            small = [random_network(sizes, activation, loss, dtype, seed) for sizes in networks for seed in seeds]
            worst = max(report.max_relative_error for report in small)
            cells.append(f"{worst:.1e} {verdict(all(report.passed for report in small))}")
            reports += small
        table.add_row(activation, *cells)
    Console(highlight=False).print(table)
    return reports


def trained_network(path: Path, dtype: Dtype, seeds: range) -> list[Report]:
    """Compare at trained parameters, on mini-batches of the run's training set."""
    trained = load_trained(path)
    config = replace(trained.config, dtype=dtype, device="cpu")
    data = load(config.dataset, Path(config.data_dir), validation=config.validation)
    trained.require_like(data)
    manual = make_manual(config, data)
    manual.load_state_dict(trained.learner.state_dict())
    references = [make_reference(config, data, d) for d in formats(manual.dtype)]
    batches = [epoch_order(seed, 0, len(data.train))[: config.batch_size] for seed in seeds]
    reports = [compare(manual, references, *data.train.batch(batch, manual.dtype)) for batch in batches]
    print_details(f"{'-'.join(map(str, config.sizes(data)))} after {manual.steps:,} steps, {data.name}", reports)
    return reports


def print_details(title: str, reports: list[Report]) -> None:
    """A line per tensor, with the one of its comparisons that came nearest to its limit."""
    table = Table(title=title, title_justify="left")
    table.add_column("tensor")
    table.add_column("shape")
    for heading in ("relative error", "allowed"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for rows in zip(*(report.rows for report in reports), strict=True):
        row = max(rows, key=lambda row: (not row.passed, row.relative_error / (row.tolerance or 1)))
        figures = f"{row.relative_error:.1e}", f"{row.tolerance:.1e}"
        table.add_row(row.label, f"{row.shape}", *figures, verdict(row.passed))
    Console(highlight=False).print(table)


def verdict(passed: bool) -> str:
    return "[green]ok[/green]" if passed else "[bold red]WRONG[/bold red]"


def main(argv: list[str]) -> int:
    """The exit status: 0 if all agree, 1 otherwise, 2 for a mistake in what was asked for."""
    try:
        arguments = tyro.cli(Arguments, args=argv)
        seeds = range(arguments.seed, arguments.seed + arguments.seeds)
        if arguments.checkpoint:
            reports = trained_network(arguments.checkpoint, arguments.dtype, seeds)
        else:
            reports = random_networks(getattr(torch, arguments.dtype), seeds)
    except (UserError, OSError) as error:
        print(f"verify.py: {error}", file=sys.stderr)
        return 2
    rows = [row for report in reports for row in report.rows]
    failures = [row for row in rows if not row.passed]
    if failures:
        first = failures[0]
        print(f"{len(failures):,} of {len(rows):,} differ; the first is {first.label}: {first.reason}", file=sys.stderr)
        return 1
    worst = max(rows, key=lambda row: row.relative_error)
    print(
        f"all {len(rows):,} costs, gradients and δs agree in {arguments.dtype}; "
        f"largest relative error {worst.relative_error:.1e} ({worst.label})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
