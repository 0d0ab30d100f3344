"""What verify.py verifies: every model, layer and cost by hand, each against its independent twin.

The networks are the problems of training/families. Layers and costs are found by themselves, and so are their twins.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, isnan, sqrt
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gradient_check import Report, Row, check_backward
from manual_backprop import layers
from manual_backprop.initializers import fan_in
from manual_backprop.losses import LOSSES, Loss, SoftmaxCrossEntropy
from manual_backprop.optimizers import SGD
from manual_backprop.parameters import Parameters
from reference import losses as reference_losses
from training.config.config import require_cost
from training.config.rules import require_parts
from training.data import Split, as_format
from training.errors import UserError
from training.families import FAMILIES
from training.families.base import Family, Problem, forgotten
from training.families.networks import family_of, require_whole_model
from training.learners.comparison import compare_passes
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner
from training.learners.twins import require_twins, start_alike, twin_of_layer

BATCH = 11
NO_EXAMPLES = Split(torch.empty(0, 1, device="cpu"), torch.empty(0, dtype=torch.int64, device="cpu"))
EXACT = ("autograd", "reference")  # differences and dot products have errors of their own


def size(row: Row) -> float:
    """The relative error, where NaN is larger than any number."""
    return inf if isnan(row.relative_error) else row.relative_error


@dataclass
class Check:
    """One thing that was verified: a report for every draw of its numbers. `variant` and `loss` are for tables."""

    part: str  # "layers", "costs", a model's name, "checkpoint"
    title: str
    variant: str = ""
    loss: str = ""
    reports: list[Report] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """Every comparison of every draw."""
        return [row for report in self.reports for row in report.rows]

    @property
    def nearest(self) -> Report:
        """Of each comparison the draw that came nearest to its limit, or that exceeded it by most."""
        kept: dict[tuple[str, str, str], Row] = {}
        for row in self.rows:
            key = row.name, row.oracle, row.case
            kept[key] = max(kept.get(key, row), row, key=_use)
        return Report(tuple(kept.values()), tuple({note: None for report in self.reports for note in report.notes}))

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def largest(self) -> Row:
        """The comparison with the largest relative error, on the examples themselves, not on hostile values."""
        return max((row for row in self.rows if row.oracle in EXACT and not row.case), key=size)


def costs() -> dict[str, tuple[Loss, Callable[..., Tensor]]]:
    """Every cost with its twin."""
    require_twins("activation", "cost")
    for name in LOSSES:
        require_cost(name)
    smoothed = partial(reference_losses.softmax_cross_entropy, label_smoothing=0.15)
    return {name: (make(), reference_losses.LOSSES[name]) for name, make in LOSSES.items()} | {
        "smoothed softmax-cross-entropy": (SoftmaxCrossEntropy(label_smoothing=0.15), smoothed)
    }


def verify_model(name: str, dtype: torch.dtype, seeds: Sequence[int]) -> Iterator[Check]:
    """The cost, ∂C/∂output, every δ and every gradient of all its networks, each at new parameters for every seed."""
    family, problem, pairs = family_of(name), None, costs()
    for problem in family.problems():
        yield verify_problem(family, problem, pairs[problem.loss], dtype, seeds)
    if problem is None:
        raise UserError(forgotten(name, "problems", "has to yield at least one in problems"))


def verify_problem(
    family: Family, problem: Problem, cost: tuple[Loss, Callable[..., Tensor]], dtype: torch.dtype, seeds: Sequence[int]
) -> Check:
    """One network of a family."""
    require_whole_model(problem.model)
    loss, twin_loss = cost
    manual = ManualLearner(problem.model, loss, SGD(), NO_EXAMPLES, dtype=dtype)
    twins = [(family.twin(problem.model), d) for d in formats(dtype)]
    references = [ReferenceLearner(twin, twin_loss, NO_EXAMPLES, dtype=d) for twin, d in twins]
    check = Check(family.name, problem.title, problem.variant, problem.loss)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        randomize(manual.params, generator)
        x, y = problem.draw(generator, BATCH)
        check.reports.append(compare(manual, references, as_format(x, dtype), y))
    return check


def verify_layers(dtype: torch.dtype, seeds: Sequence[int]) -> Iterator[Check]:
    """Every layer in manual_backprop/layers, on its own examples."""
    checks: dict[str, Check] = {}
    for seed in seeds:
        for title, layer, twin, arguments in layer_examples(seed):
            report = check_backward(
                layer.forward,
                layer.backward,
                arguments,
                outputs=outputs_of(layer),
                not_differentiable=getattr(layer, "not_differentiable", ()),
                reference=twin,
                dtypes=[dtype],
                seed=seed,
            )
            checks.setdefault(title, Check("layers", title)).reports.append(report)
    yield from checks.values()


def layer_examples(seed: int) -> Iterator[tuple[str, Any, Callable[..., Any], tuple[Any, ...]]]:
    """(title, layer, twin's forward, arguments) of every example in manual_backprop/layers."""
    require_twins("activation")
    for _, layer, arguments in examples_of(layers, seed):
        title, twin = twin_of_layer(layer)
        yield title, layer, twin, arguments


def outputs_of(layer: Any) -> int:
    """How many of the values that its forward returns are outputs: what is behind them is the cache."""
    return len(getattr(layer, "OUTPUTS", ("output",)))


def examples_of(package: ModuleType, seed: int) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(module's name, layer, arguments) of every module in `package` that has `examples`.

    A module's examples are argument sets of its own forward; those of another layer in it are (layer, arguments).
    Raises UserError for a layer that lacks a part.
    """
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        if hasattr(module, "forward") or hasattr(module, "backward"):
            file = f"{module.__name__.replace('.', '/')}.py"
            require_parts(f"layer {info.name}", module, file, "forward", "backward", "EQUATIONS", "examples")
        if hasattr(module, "examples"):
            for example in module.examples(torch.Generator().manual_seed(seed)):
                layer, arguments = example if hasattr(example[0], "forward") else (module, example)
                yield info.name, layer, arguments


def verify_costs(dtype: torch.dtype, seeds: Sequence[int]) -> Iterator[Check]:
    """Every cost and its gradient, divided by a count that is not the batch size."""
    for name, (loss, twin) in costs().items():
        check = Check("costs", name)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            output = 2 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
            y = torch.randint(5, (7,), generator=generator)
            report = check_backward(
                loss.forward, loss.backward, (output, y, 9), reference=twin, dtypes=[dtype], seed=seed
            )
            check.reports.append(report)
        yield check


def verify_all(dtype: torch.dtype, seeds: Sequence[int]) -> Iterator[Check]:
    """Causes before effects: what is wrong in a layer is wrong in a model too."""
    require_twins()
    yield from verify_layers(dtype, seeds)
    yield from verify_costs(dtype, seeds)
    for name in FAMILIES:
        yield from verify_model(name, dtype, seeds)


def compare(manual: ManualLearner, references: list[ReferenceLearner], x: Tensor, y: Tensor) -> Report:
    """One forward and backward pass of both at the manual θ; below float64 the second reference is the truth.

    Raises UserError where neither has finite numbers to compare.
    """
    for reference in references:
        start_alike(manual, reference)
    rows = compare_passes(manual, references, x, y).report.rows
    if not rows:
        raise UserError(f"this network overflows in {str(manual.dtype).removeprefix('torch.')}: give a wider --dtype")
    return Report(tuple(replace(row, oracle="reference") for row in rows if not row.name.startswith(("z ", "a "))))


def formats(dtype: torch.dtype) -> list[torch.dtype]:
    """Of the references: the hand-written side's own and, below float64, that of the truth."""
    return [dtype] if dtype == torch.float64 else [dtype, torch.float64]


def randomize(params: Parameters, generator: torch.Generator) -> None:
    """Matrices and kernels ~ N(0, 1/fan_in), vectors ~ N(0, 1): none is at a default that would hide a term."""
    for tensor in params.values():
        draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(draw / sqrt(fan_in(draw.shape)) if draw.dim() > 1 else draw)


def _use(row: Row) -> tuple[bool, float]:
    """How much of what is allowed an error takes."""
    return not row.passed, size(row) / (row.tolerance or 1)
