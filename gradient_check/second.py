"""The second derivative of a function whose first is right: what autograd makes of the function's own gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gradient_check.asking import Oracles
from gradient_check.cases import Case
from gradient_check.isolation import WATCH
from gradient_check.oracles import dense, drawn_like, outputs_of
from gradient_check.report import Diagnosis, Report, Row, quoted
from gradient_check.run import Said
from gradient_check.structure import taken
from gradient_check.subject import Subject, differentiated
from gradient_check.tolerances import Leeway
from gradient_check.trial import Trial

CASE = "second derivative"
PAIR = "a pair has the first derivative only: wrap it in an autograd.Function, and give that to check_function"


def known_order(order: Any, of_pair: bool) -> None:
    """Raises ValueError for an order that cannot be asked for."""
    if order not in ((1,) if of_pair else (1, 2)):
        raise ValueError(f"order is {order!r}: {PAIR if of_pair else 'give 1, or 2 for the second derivative too'}")


@dataclass
class Gradients:
    """The gradients of `forward` as a function of its arguments and its cotangents that autograd can go through.

    One that autograd takes for a constant gets a graph whose derivative is zero and is noted in `lost`. Whether zero is
    right, an oracle says.
    """

    forward: Callable[..., Any]
    positions: Sequence[int]  # of the differentiable ones among the arguments
    count: int  # of the arguments
    during: Callable[..., Any] | None = None  # a module's way to forward (subject.py)
    lost: set[int] = field(default_factory=set)

    def __call__(self, *values: Any) -> tuple[Tensor, ...]:
        arguments, cotangents = list(values[: self.count]), values[self.count :]
        with torch.enable_grad():
            for i in self.positions:
                if not arguments[i].requires_grad:
                    arguments[i] = arguments[i].detach().requires_grad_()

            def made(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
                return self._of([arguments[i] for i in self.positions], outputs[: len(cotangents)], cotangents)

            return self.during(arguments, made) if self.during else made(outputs_of(self.forward(*arguments)))

    def _of(
        self, wanted: Sequence[Tensor], outputs: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        fed = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        made = torch.autograd.grad(
            [o for o, _ in fed], wanted, [c for _, c in fed], create_graph=True, allow_unused=True
        )
        return tuple(self._with_graph(k, v, g, cotangents) for k, (v, g) in enumerate(zip(wanted, made, strict=True)))

    def _with_graph(self, k: int, argument: Tensor, gradient: Tensor | None, cotangents: Sequence[Tensor]) -> Tensor:
        gradient = torch.zeros_like(argument) if gradient is None else dense(gradient)
        if gradient.requires_grad:
            return gradient
        self.lost.add(k)
        nothing = sum((0 * c.sum() for c in cotangents), start=0 * argument.sum())
        return gradient + nothing.to(gradient.dtype)


def second_derivative(
    subject: Subject, arguments: Sequence[Any], oracles: Oracles, leeway: Leeway, seed: int
) -> Report:
    """Rows for the derivative of ⟨gradients, u⟩ by every argument and cotangent.

    It is held against the reference's own, or against differences of the gradients, which have been checked.
    """
    if death := WATCH.get().enter(CASE):
        return Report((death.row,))
    outputs, count = subject.run(arguments)[0], len(arguments)
    generator = torch.Generator().manual_seed(seed)
    drawn = [drawn_like(output, generator) for output in outputs]
    cotangents = ["cotangent" if len(drawn) == 1 else f"cotangent{k}" for k in range(len(drawn))]
    positions = (*subject.differentiable, *range(count, count + len(drawn)))
    gradients = Gradients(subject.forward, subject.differentiable, count, subject.during)
    values = [*arguments, *drawn]
    structure = replace(taken(gradients, values)[1], names=(*subject.names, *cotangents))
    first = differentiated(gradients, structure, positions)
    try:  # as `.backward()`, which says of `once_differentiable` what `torch.autograd.grad` keeps to itself
        made = gradients(*(v.detach().requires_grad_() if i in positions else v for i, v in enumerate(values)))
        torch.autograd.backward(made, [torch.ones_like(gradient) for gradient in made])
    except Exception as error:
        said = f"autograd cannot go through the gradients: {quoted(error)}"
        return Report((Row("d²", "d²", (), False, said, case=CASE, diagnosis=Diagnosis(CASE, said)),))
    lost = [subject.gradient_names[k] for k in sorted(gradients.lost)]
    given = [one for one in oracles.exact if one.argument]
    exact = [replace(one, forward=Gradients(one.forward, subject.differentiable, count)) for one in given]
    trial = Trial(
        subject=first,
        arguments=values,
        oracles=Oracles(exact, oracles.slopes),
        said=Said({name: f"d²{name[1:]}" for name in first.gradient_names}, leeway=leeway),
        groups=(),
        seed=seed,
    )
    rows = trial.rows_of(Case(CASE, CASE, values))
    if not rows:
        said = "nothing is shown of the second derivative: no oracle could be asked; choose another example"
        rows = [Row("d²", "d²", (), False, said, case=CASE)]
    return Report(
        tuple(_named(row, trial.said.titles.get(row.name, f"d² ({row.label})"), lost) for row in rows),
        tuple(trial.notes.lines()),
    )


def _named(row: Row, name: str, lost: Sequence[str]) -> Row:
    row = replace(row, name=name, label=name)
    if row.passed:
        return row
    if lost:
        names = ", ".join(lost)
        said = (
            f"the second derivative is missing: autograd takes {names} for a constant, as after `.detach()` or `.data`"
        )
    else:
        found = row.diagnosis.text if row.diagnosis else row.reason
        said = f"the first derivative is right, the second is not: {found}"
    return replace(row, diagnosis=Diagnosis(CASE, said))
