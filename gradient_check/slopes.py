"""Oracles that ask forward alone for its slopes: a dot product in forward mode, and central differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import hypot, inf, isfinite
from time import thread_time
from typing import Any

import torch
from torch import Generator, Tensor

from gradient_check.claims import Direction, Doubt, claimed
from gradient_check.differences import cleared, measure, one_sided
from gradient_check.oracles import (
    contiguous,
    copies,
    directional_derivatives,
    doubled,
    nudged,
    outputs_of,
    random_direction,
)
from gradient_check.report import Diagnosis, Row, quoted
from gradient_check.run import Run
from gradient_check.tolerances import BLINDING, FLOOR, magnified, ratio, tolerance, tolerance_of_sums
from gradient_check.verdict import judge, judge_measured

TITLE = "differences"
LOOKED_AT = 200  # infinite elements
WRONG_ONES, IN_CASES = (
    {"": 16, "batch": 2, "rows": 2},
    4,
)  # elements, by the group of cases: work is bounded
SHOWS_NOTHING = 0.1  # of the norm: central differences that are no better, where nothing else judges, show nothing
Forward = Callable[..., Any]


def summands(cotangents: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """What ⟨d_output, output⟩ is the sum of."""
    return torch.cat([(c * o.detach()).flatten() for c, o in zip(cotangents, outputs, strict=False)])


def summands_along(forward: Forward, positions: Sequence[int], run: Run) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The summands of ⟨d_output, forward(…, v, …)⟩ as a function of v, and the v of the example.

    v is the argument at the one position, or the arguments at several, flat and one after the other. In float64 where
    forward takes it, otherwise (a kernel of one dtype) in the example's own.
    """
    cotangents = doubled(contiguous(run.cotangents))

    def along(fixed: list[Any]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        shapes = [fixed[i].shape for i in positions]

        def terms(v: Tensor) -> Tensor:
            fed = list(fixed)
            parts = v.flatten().split([shape.numel() for shape in shapes])
            for i, shape, part in zip(positions, shapes, parts, strict=True):
                fed[i] = part.view(shape)
            with torch.no_grad():
                outputs = outputs_of(forward(*fed))
            return summands(cotangents, doubled(outputs))

        flat = [fixed[i].flatten() for i in positions]
        return terms, torch.cat(flat) if len(flat) > 1 else fixed[positions[0]]

    own = contiguous(run.arguments)
    terms, point = along(doubled(own))
    try:
        terms(point)
    except Exception:  # it does not take float64: the caller hears of what it says to its own dtype
        return along(own)
    return terms, point


def dot_product(forward: Forward, run: Run, generator: Generator) -> Direction:
    """⟨d_output, J u⟩ = ⟨Jᵀ d_output, u⟩ for a random u. Raises whatever a forward without forward mode raises."""
    gradients = [gradient for gradient in run.gradients.values() if gradient is not None]
    dtype = max((t.dtype for t in (*run.cotangents, *gradients)), key=lambda dtype: torch.finfo(dtype).eps)
    positions = run.subject.differentiable
    arguments, cotangents = doubled(contiguous(run.arguments)), doubled(contiguous(run.cotangents))
    u = [random_direction(arguments[i], generator) for i in positions]
    ahead, again = (
        summands(cotangents, directional_derivatives(forward, at, positions, u))
        for at in (arguments, nudged(arguments, positions))
    )
    back = hypot(*((g.double() * part).norm().item() for g, part in zip(gradients, u, strict=True)))
    size = ahead.norm().item() + back
    limit = tolerance(dtype) if dtype == torch.float64 else tolerance_of_sums(dtype, run.longest_sum)
    limit = run.said.leeway.widen(limit)
    moved = magnified(dtype) * ratio(abs((again.sum() - ahead.sum()).item()), size)
    lost = FLOOR[dtype] * torch.finfo(dtype).eps * _size(cotangents) * _size(u)  # where the gradient is exactly zero
    said = "⟨d_output, J u⟩ and ⟨Jᵀ d_output, u⟩ differ by {error:.3g}"
    slack = max((limit.norm + moved) * size, lost)
    return Direction("dot product", "dot product", u, ahead.sum().item(), slack, size, limit.origin, said)


@dataclass
class Differences:
    """Central differences of one run: they judge in float64.

    Of lower precision, they judge the function's own gradients in float64, which then judge those on trial.
    """

    run: Run
    known: Mapping[str, Row]  # what other oracles said of the gradients
    generator: Generator
    notes: list[str]
    until: float = inf  # of thread_time(): no gradient is begun later

    def rows(self) -> list[Row]:
        """Of what was not found wrong already."""
        wrong = {name for name, row in self.known.items() if not row.passed}
        names = [n for n in self.run.gradients if n not in wrong and self.run.argument(n).numel()]
        at_once = None
        if self.run.case or (self.known and not wrong):  # otherwise each for itself, which is more exact
            at_once = self._all_cleared(names)
        if at_once and (self.wide is self.run or self.known):
            return [at_once]
        rows = {name: self._row(name, cleared=bool(at_once)) for name in names if thread_time() <= self.until}
        if late := [name for name in names if name not in rows]:
            self.notes.append(f"{self.run.case}: for want of time, differences were not asked for {', '.join(late)}")
        return [row for row in rows.values() if row]

    @cached_property
    def wide(self) -> Run:
        """The run in float64, by what is on trial; the run itself if it is that already, or has no float64."""
        run = self.run
        if all(run.argument(name).dtype == torch.float64 for name in run.gradients):
            return run
        arguments, cotangents = doubled(contiguous(run.arguments)), doubled(contiguous(run.cotangents))
        try:
            outputs, pullback = run.subject.run(copies(arguments))
            gradients = pullback(copies(cotangents))
        except Exception as error:  # a kernel of one dtype
            self.notes.append(f"central differences are of the example's own precision: in float64 {quoted(error)}")
            return run
        if len(gradients) != len(run.gradients) or not _all_double([*gradients, *outputs]):
            return run
        named = dict(zip(run.gradients, gradients, strict=True))
        return replace(run, arguments=arguments, cotangents=cotangents, outputs=outputs, gradients=named)

    @cached_property
    def moved(self) -> Mapping[str, Tensor]:
        """How far one unit of rounding in the arguments moves the gradients, by what is on trial, all contiguous."""
        run, arguments = self.wide, contiguous(self.wide.arguments)
        near = nudged(arguments, run.subject.differentiable)
        try:
            before, after = (run.subject.run(fed)[1](contiguous(run.cotangents)) for fed in (copies(arguments), near))
        except Exception as error:  # it takes the arguments and nothing beside them
            self.notes.append(f"how far rounding moves the gradients is not known: {quoted(error)}")
            return {}
        pairs = zip(run.gradients, before, after, strict=True)
        return {name: (b - a).abs().nan_to_num(0.0, 0.0) for name, a, b in pairs if a is not None and b is not None}

    def _row(self, name: str, cleared: bool) -> Row | None:
        row = Row(name, name, tuple(self.run.argument(name).shape), True, oracle=TITLE)
        if not cleared:
            try:
                row = self._by_elements(name)
            except Exception as error:  # forward takes the example and nothing beside it
                self.notes.append(f"differences could not be asked for {name}: {quoted(error)}")
                return None
        if not row.passed and self.run.case and row.absolute_error <= _lost_in_rounding(self.moved.get(name)):
            return None
        if row.passed and name not in self.known and self.wide is not self.run:
            row = replace(self._beside_own(name), kinks=row.kinks)
        return row if self.run.case or name in self.known else self._if_shown(row)

    def _by_elements(self, name: str) -> Row:
        """One gradient, of the run in float64. Raises whatever the forward pass raises."""
        run = self.wide
        argument, gradient = run.argument(name), run.gradients[name]
        if gradient is None or (gradient.shape, gradient.dtype) != (argument.shape, argument.dtype):
            return judge(claimed(name, name, TITLE, argument, Doubt(), argument.dtype, argument.device), gradient)
        terms, point = summands_along(run.subject.forward, [run.position(name)], run)
        gradient = _without_infinities(gradient, terms, point)
        if not gradient.isfinite().all():
            where = tuple(int(k) for k in (~gradient.isfinite()).nonzero()[0])
            text = f"at {list(where)} it is {gradient[where].item()}"
            shape, said = tuple(argument.shape), Diagnosis("nan", text)
            return Row(name, name, shape, False, text, oracle=TITLE, index=where, diagnosis=said)
        accuracy = 0.0 if argument.dtype == torch.float64 else tolerance_of_sums(argument.dtype, run.longest_sum).norm
        accuracy, ordinary = max(accuracy, run.said.leeway.relative), run.ordinary.get(name, 0.0)
        given = terms, point, gradient.detach().double()
        enough = WRONG_ONES.get(run.group, IN_CASES)
        found = measure(*given, accuracy=accuracy, ordinary=ordinary, enough=enough, generator=self.generator)
        return judge_measured(found, name, name, TITLE)

    def _all_cleared(self, names: Sequence[str]) -> Row | None:
        """All gradients, in float64, along directions through all arguments at once, or None if they find something."""
        run, gradients = self.wide, [self.wide.gradients[name] for name in self.wide.gradients]
        if not names or not _all_double(gradients) or not all(g.isfinite().all() for g in gradients if g is not None):
            return None
        together = torch.cat([g.detach().flatten() for g in gradients if g is not None])
        ordinary = max((run.ordinary.get(name, 0.0) for name in run.gradients), default=0.0)
        try:
            terms, point = summands_along(run.subject.forward, run.subject.differentiable, run)
            found = cleared(terms, point, together, ordinary=ordinary, generator=self.generator)
        except Exception as error:  # forward takes these values and nothing beside them
            self.notes.append(f"differences along random directions could not be asked: {quoted(error)}")
            return None
        return judge_measured(replace(found, shape=()), "gradients", "all gradients", TITLE) if found else None

    def _beside_own(self, name: str) -> Row:
        """A gradient of lower precision against the same in float64, which central differences have confirmed."""
        run, truth, argument = self.run, self.wide.gradients[name], self.run.argument(name)
        assert truth is not None
        for asked in (False, True):
            moved = self.moved.get(name) if asked else None
            doubt = Doubt(
                moved=moved, floor=run.floors.get(name, 0.0), longest_sum=run.longest_sum, leeway=run.said.leeway
            )
            claims = claimed(
                name, run.said.titles[name], TITLE, truth, doubt, argument.dtype, argument.device, BLINDING
            )
            blind = "" if run.case or claims.trivial else claims.blind
            row = judge(replace(claims, blind=blind), run.gradients[name])
            if row.passed:
                break
        return replace(row, origin=f"beside its float64, which differences confirm: {row.origin}")

    def _if_shown(self, row: Row) -> Row:
        """Where nothing else judges, differences that can tell nothing are a failure."""
        gradient = self.run.gradients[row.name]
        if not row.passed or gradient is None or row.name in self.run.said.zeros or not gradient.any():
            return row
        every, steep = row.kinks == gradient.numel(), row.tolerance > SHOWS_NOTHING
        if not every and not steep:
            return row
        seen = "every element sits at a kink, or forward bends too much nearby"
        seen = seen if every else "forward is too steep, or its values too large, for central differences"
        reason = f"nothing is shown: {seen}; choose another example, or give a reference"
        return replace(row, passed=False, reason=reason)


def _without_infinities(gradient: Tensor, terms: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Zero instead of the infinite elements, if the slopes there are infinite too, as √x has them at 0."""
    infinite = gradient.isinf()
    if not infinite.any():
        return gradient
    indices = [tuple(int(k) for k in index) for index in infinite.nonzero()[:LOOKED_AT]]
    sides = one_sided(terms, point, indices)
    return gradient if any(isfinite(a) and isfinite(b) for a, b, _ in sides) else gradient.masked_fill(infinite, 0.0)


def _lost_in_rounding(moved: Tensor | None) -> float:
    """How far off a gradient may be where forward is badly conditioned; differences cannot judge there."""
    return 0.0 if moved is None or not moved.numel() else magnified(torch.float64) * moved.abs().max().item()


def _all_double(tensors: Sequence[Tensor | None]) -> bool:
    return all(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)


def _size(tensors: Sequence[Tensor]) -> float:
    return hypot(*(tensor.norm().item() for tensor in tensors))
