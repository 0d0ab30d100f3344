"""The oracles that a trial asks, and what they say of one run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import torch
from torch import Generator, Tensor

from gradient_check.claims import Direction
from gradient_check.exact import Exact, Truth
from gradient_check.findings import Found
from gradient_check.kinks import settled, together
from gradient_check.memory import free_memory
from gradient_check.oracles import NoForwardMode, OtherOutputs
from gradient_check.report import Notes, quoted
from gradient_check.run import Run
from gradient_check.slopes import Differences, dot_product
from gradient_check.tolerances import SCATTERING
from gradient_check.verdict import judge, judge_along

NEEDED = 6  # in float64, of all arguments and outputs, that an exact oracle needs at once


@dataclass(frozen=True)
class Oracles:
    """Those that are asked."""

    exact: Sequence[Exact]  # autograd goes through them
    slopes: bool  # central differences
    forward_mode: bool = False  # the dot product


@dataclass
class Asking:
    """The oracles, asked of one run after another."""

    oracles: Oracles
    generator: Generator
    notes: Notes
    until: float = inf  # of thread_time(), for the differences of cases
    refused: list[Exact] = field(default_factory=list)  # those that could not be asked of the example

    @property
    def reference(self) -> Callable[..., Any] | None:
        """An independent forward."""
        return next((exact.forward for exact in self.oracles.exact if exact.independent), None)

    @property
    def intended(self) -> bool:
        """Whether the gradient that is meant is not the derivative."""
        return any(exact.argument == "intended" for exact in self.oracles.exact)

    def of_example(self, run: Run) -> list[Found]:
        """What every oracle says."""
        found = [one for exact in self.oracles.exact for one in self._against(exact, run)]
        if found and run.is_large:
            said = f"the {found[0].row.oracle} judges every element of a large example"
            self.notes.add(f"central differences and dot product were not asked: {said}")
            return found
        if self.oracles.slopes:
            known = {one.row.name: one.row for one in self._uncontradicted(found, run)}
            found += [Found(row, run) for row in Differences(run, known, self.generator, self.notes.said).rows()]
        found = self._uncontradicted(found, run)
        if all(one.is_fine for one in found):
            if any(one.row.kinks for one in found):
                return found + self._together(run)
            return self._uncontradicted(found + (self._dot_product(run) if self.oracles.forward_mode else []), run)
        return found

    def _uncontradicted(self, found: list[Found], run: Run) -> list[Found]:
        """Without what contradicts gradients that the reference confirms, which is final; a note says so.

        What contradicts those that only autograd through the same forward confirms is inconclusive.
        """
        sure = {one.row.name for one in found if one.exact and one.exact.independent and one.row.passed}
        agreed = {one.row.name for one in found if one.exact and one.row.passed}
        kept = []
        for one in found:
            names = {one.row.name} if one.row.name in run.gradients else set(run.gradients)
            if one.row.passed or one.exact or one.run is None or not names <= agreed:
                kept.append(one)
            elif names <= sure:
                self.notes.add(f"the reference is final, although {one.row.oracle} contradicts it for {one.row.label}")
            else:
                said = f"the oracles disagree: autograd agrees with backward, and {one.row.oracle} with neither"
                row = replace(one.row, reason=f"{said}; {one.row.reason}", inconclusive=True)
                kept.append(replace(one, row=row))
        return kept

    def of_case(self, run: Run) -> list[Found]:
        """What the first says that can be asked."""
        if run.group == "values" and _is_too_large(run, self.generator):
            self.notes.add("the gradients are too large for the number format", run.case)
            return []
        exact_ones = [exact for exact in self.oracles.exact if exact not in self.refused]
        for exact in exact_ones:
            if found := self._against(exact, run):
                at_kinks = any(one.row.kinks for one in found) and all(one.row.passed for one in found)
                return found + (self._together(run) if at_kinks else [])
        if self.oracles.slopes and not exact_ones:
            differences = Differences(run, {}, self.generator, self.notes.said, self.until)
            return [Found(row, run) for row in differences.rows()]
        return []

    def _against(self, exact: Exact, run: Run) -> list[Found]:
        """What one exact oracle says; nothing where it cannot be asked."""
        elements = sum(v.numel() for v in (*run.arguments, *run.outputs) if isinstance(v, Tensor))
        if run.is_large and (needed := NEEDED * 8 * elements) > (free := free_memory()):
            said = f"it would take about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free"
            return self._refuse(exact, f"{said}; elementwise=True checks in chunks", run)
        try:
            truth = exact.truth(run, doubts=run.is_well_known and not run.is_large)
        except Exception as error:  # whatever a forward raises that was not made for autograd
            if exact.argument and not run.case:
                if isinstance(error, OtherOutputs):
                    given = ", ".join(str(tuple(output.shape)) for output in run.outputs)
                    raise ValueError(
                        f"{exact.argument}: {error}, and those of forward {given}: give the same"
                    ) from error
                said = f"the {exact.argument} could not be asked: {quoted(error)}"
                raise ValueError(f"{said}; give one that takes forward's arguments, in float64 too") from error
            return self._refuse(exact, quoted(error), run)
        if not truth.finite:
            return self._refuse(exact, "its own values are not finite", run)
        if truth.refused and not run.case:
            self.notes.add(f"{exact.title} is known in float64 only: {truth.refused}", run.case)
        found = self._held(exact, run, truth)
        if (run.case or run.is_large) and not all(one.row.passed for one in found):  # perhaps badly conditioned
            truth = exact.truth(run, doubts=True)
            found = self._held(exact, run, truth)
        if any(self._may_be_rounding(one, run) for one in found):
            try:
                found = self._held(exact, run, exact.scattered(run, truth))
            except Exception as error:  # it takes these values and nothing beside them
                self.notes.add(f"how the error scatters is not known: {quoted(error)}", run.case)
        return found

    def _refuse(self, exact: Exact, why: str, run: Run) -> list[Found]:
        self.notes.add(f"{exact.title} could not be asked: {why}", run.case)
        if not run.case:
            self.refused.append(exact)
        return []

    def _may_be_rounding(self, one: Found, run: Run) -> bool:
        size = max(one.claims[one.row.name].rms, run.ordinary.get(one.row.name, 0.0))
        dtype = torch.float32 if run.said.leeway.single else run.outputs[0].dtype
        return not one.row.passed and one.row.absolute_error < SCATTERING.get(dtype, 0.0) * size

    def _held(self, exact: Exact, run: Run, truth: Truth) -> list[Found]:
        """The verdicts on the outputs, where the oracle is independent, and then on the gradients."""
        found = []
        for claims, output in exact.of_outputs(run, truth) if exact.independent else []:
            row = judge(claims, output)
            row = row if row.passed else replace(row, reason=f"forward is wrong: {row.reason}")
            found.append(Found(row, claims={row.name: claims}))
        if not all(one.row.passed for one in found):
            return found
        claims_of = {name: exact.of_gradient(name, run, truth) for name in truth.gradients}
        for name, claims in claims_of.items():
            actual = run.gradients[name]
            if actual is not None and actual.shape == claims.value.shape and actual.dtype == claims.dtype:
                claims = settled(claims, actual, exact, truth, run)
            claims_of[name] = replace(claims, blind="") if run.case else claims
            found.append(Found(judge(claims_of[name], actual), run, claims_of, exact))
        return found

    def _together(self, run: Run) -> list[Found]:
        """What each element may claim at a kink, they may not claim all at once."""
        if self.intended or not all(g is not None and g.isfinite().all() for g in run.gradients.values()):
            return []
        try:
            directions = list(together(self.reference or run.subject.forward, run, self.generator))
        except Exception as error:  # forward takes no values beside these
            self.notes.add(f"ties could not be judged together: {quoted(error)}", run.case)
            return []
        return [_along(direction, run) for direction in directions]

    def _dot_product(self, run: Run) -> list[Found]:
        try:
            return [_along(dot_product(self.reference or run.subject.forward, run, self.generator), run)]
        except NoForwardMode:  # as most Functions
            return []
        except Exception as error:
            self.notes.add(f"dot product could not be asked: {quoted(error)}")
            return []


def _along(direction: Direction, run: Run) -> Found:
    return Found(judge_along(direction, [g for g in run.gradients.values() if g is not None]), run)


def _is_too_large(run: Run, generator: Generator) -> bool:
    """Whether infinity and NaN come of a range that is too small, as of float16: in float64 there are none."""
    given = [g for g in run.gradients.values() if g is not None]
    if all(g.isfinite().all() or torch.finfo(g.dtype).bits > 16 for g in given):
        return False
    wide = Differences(run, {}, generator, []).wide
    pairs = [(w, run.gradients[name]) for name, w in wide.gradients.items() if w is not None and w.numel()]
    most = max((w.abs().max().item() / torch.finfo(g.dtype).max for w, g in pairs if g is not None), default=0.0)
    return wide is not run and all(w.isfinite().all() for w, _ in pairs) and most > 1 / 16
