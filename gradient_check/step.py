"""Two implementations of one training step: the loss, every gradient, every intermediate that both expose."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradient_check.compare import compare_gradients
from gradient_check.modes import own_modes
from gradient_check.report import Diagnosis, Report, Row


@dataclass(frozen=True)
class Step:
    """What an implementation computed: the loss (0-d), gradients by parameter, intermediates as they were computed."""

    loss: Tensor
    gradients: Mapping[str, Tensor | None]
    intermediates: Mapping[str, Tensor] = field(default_factory=dict)


Implementation = Callable[..., Step] | nn.Module


@own_modes()
def check_step(
    step_a: Implementation,
    step_b: Implementation,
    batch: Sequence[Any],
    *,
    truth: Implementation | None = None,
    labels: Mapping[str, str] | None = None,
    condition: float | Mapping[str, float] = 1.0,
    zeros: Mapping[str, float] | None = None,
    allow_trivial: bool = False,
    seed: int | None = 0,
) -> Report:
    """Compare `step_a(*batch)`, which is on trial, with `step_b(*batch)`.

    An implementation is a function that returns a `Step`, or an `nn.Module` whose forward returns the loss: its
    gradients come from autograd, and its intermediates are the outputs of its submodules by name and, as "δ name",
    their gradients. Intermediates that only one of them has are not compared, and named in a note. The rows come in
    the order in which step_a computes, so the first failure is the nearest to the cause. Both start from the same
    random state, `seed`; with None the random state is left alone.

    Below float64, `truth` is a third implementation, in float64, on the same (rounded) parameters; it gets the batch in
    float64. `labels`, `condition`, `zeros` and `allow_trivial` are those of `compare_gradients`, by the names "loss",
    those of the intermediates, and "d" + those of the parameters.

    Raises ValueError for an implementation that returns no Step (or, a module, no 0-d loss).
    """
    a, b = (_taken(step, batch, seed, which) for step, which in ((step_a, "step_a"), (step_b, "step_b")))
    third = None
    if truth is not None:
        wide = [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in batch]
        third = _taken(truth, wide, seed, "truth")
    shared = [name for name in a.intermediates if name in b.intermediates]
    actual, expected = _named(a, shared), _named(b, shared)
    missing = [name for name, gradient in expected.items() if gradient is None]
    report = compare_gradients(
        {name: tensor for name, tensor in actual.items() if name not in missing},
        {name: expected[name] for name in (*(n for n in actual if n in expected), *expected) if name not in missing},
        truth=None if third is None else {n: t for n, t in _named(third, shared).items() if t is not None},
        labels=labels,
        condition=condition,
        zeros=zeros,
        allow_trivial=allow_trivial,
    )
    reason = "step_b has no gradient for it"
    rows = [Row(name, name, (), False, reason, diagnosis=Diagnosis("missing", reason)) for name in missing]
    alone = {
        "step_a": [name for name in a.intermediates if name not in b.intermediates],
        "step_b": [name for name in b.intermediates if name not in a.intermediates],
    }
    notes = tuple(f"only {which} has {', '.join(names)}: not compared" for which, names in alone.items() if names)
    return replace(report, rows=report.rows + tuple(rows), notes=notes)


def assert_step(step_a: Implementation, step_b: Implementation, batch: Sequence[Any], **options: Any) -> None:
    """`check_step`, with an AssertionError that holds the report unless all rows passed."""
    __tracebackhide__ = True
    check_step(step_a, step_b, batch, **options).assert_passed()


def _named(step: Step, intermediates: Sequence[str]) -> dict[str, Tensor | None]:
    """Values before the loss, their gradients (named δ, or ∂C/∂…) and those of the parameters after it."""
    before = {name: step.intermediates[name] for name in intermediates if not name.startswith(("δ ", "∂"))}
    after = {name: step.intermediates[name] for name in intermediates if name.startswith(("δ ", "∂"))}
    return {**before, "loss": step.loss, **after, **{f"d{name}": g for name, g in step.gradients.items()}}


def _taken(step: Implementation, batch: Sequence[Any], seed: int | None, which: str) -> Step:
    own = [v.detach().clone() if isinstance(v, Tensor) else v for v in batch]
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        result = _module_step(step, own, which) if isinstance(step, nn.Module) else step(*own)
    if not isinstance(result, Step):
        raise ValueError(f"{which} returned a {type(result).__name__}: return a gradient_check.Step")
    return result


def _module_step(module: nn.Module, batch: Sequence[Any], which: str) -> Step:
    """A step of an `nn.Module` that returns the loss; every submodule that is called is observed."""
    seen: dict[str, Tensor] = {}

    def observe(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                seen[name] = output

        return hook

    with ExitStack() as stack:
        for name, submodule in module.named_modules():
            if name:
                stack.callback(submodule.register_forward_hook(observe(name)).remove)
        with torch.enable_grad():
            loss = module(*batch)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"{which} returned {got}: a module's forward must return the loss, a 0-d tensor")
    parameters = dict(module.named_parameters())
    wanted = [*seen.values(), *parameters.values()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    deltas = {f"δ {name}": g for name, g in zip(seen, gradients, strict=False) if g is not None}
    values = {name: output.detach() for name, output in seen.items()}
    own = dict(zip(parameters, gradients[len(seen) :], strict=True))
    return Step(loss.detach(), own, values | dict(reversed(deltas.items())))
