"""The trial of one backward pass at one dtype: every oracle on the example, then every edge case."""

import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, sqrt
from pathlib import Path
from time import thread_time
from typing import Any

import torch
from torch import Tensor

from gradient_check.asking import Asking, Oracles
from gradient_check.cases import Case, cases
from gradient_check.exact import output_name
from gradient_check.findings import Found, explained
from gradient_check.isolation import WATCH
from gradient_check.oracles import contiguous, copies, drawn_like, longest_sum, nudged
from gradient_check.properties import (
    Repeated,
    alone,
    computes_in_single,
    distance,
    in_any_layout,
    linear,
    same,
    unsettled,
    written_to,
)
from gradient_check.report import Diagnosis, Notes, Report, Row, quoted
from gradient_check.run import LARGE, Run, Said
from gradient_check.sizes import Sizes
from gradient_check.structure import Malformed, in_complex
from gradient_check.subject import Gradients, Overwritten, Pullback, Subject
from gradient_check.tolerances import FLOOR, tolerance_of_sums

STREAM = 0x0DD5EED  # keeps the cotangent from being the very numbers that an example drew from the same small seed
RESHAPED = ("batch", "rows", "axes")  # groups of cases that feed arguments of other shapes
CAUSES = ("random", "in place", "stale")  # of wrong gradients: they come first
CASES_ENOUGH = 3  # edge cases, to show a gradient that should be zero everywhere in the example
IN_CASES, IN_ONE = 5.0, 2.0  # seconds of one core for the edge cases, and for one of them, where differences judge
ILL_POSED = 0.1  # of an output's norm: moved so far by one unit of rounding in the inputs, it has no digit left


@dataclass
class Trial:
    """`report()` runs it. `arguments` are in the dtype on trial."""

    subject: Subject
    arguments: list[Any]
    oracles: Oracles
    said: Said
    groups: Sequence[str]  # of cases
    seed: int
    within: str = ""  # " in float32", where there are several dtypes
    notes: Notes = field(default_factory=Notes)
    scales: dict[str, float] = field(default_factory=dict)  # root mean square of the example's gradients and outputs
    seen: dict[str, list[bool]] = field(default_factory=dict)  # of each gradient, in which cases it is not all zero

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(STREAM ^ self.seed)
        self.asking = Asking(self.oracles, self.generator, self.notes)

    def report(self) -> Report:
        if died := self._enter("the example"):
            return Report((replace(died, case=""),), ("edge cases were skipped, because the process died",))
        outputs, cotangents, found = self._example()
        if max(output.numel() for output in outputs) > LARGE:
            self.notes.add("edge cases were skipped, because the example is large: give a small one for them")
        elif all(one.is_fine for one in found):
            with warnings.catch_warnings(action="ignore"):  # of what forward says to inputs that nobody asked for
                found += self._edge_cases(outputs, cotangents)
        elif self.groups:
            self.notes.add("edge cases were skipped, because the example itself failed")
        rows = self._explained([self._shown(one) for one in found])
        rows.sort(key=lambda row: row.diagnosis is None or row.diagnosis.kind not in CAUSES)
        rows = [replace(row, label=self.said.titles.get(row.name, f"{row.label}{self.within}")) for row in rows]
        complex_ones = {f"d{self.subject.names[i]}" for i in self.subject.structure.pairs}
        rows = [in_complex(row) if row.name in complex_ones else row for row in rows]
        intended = ["the gradients are held against what was declared as intended, which is not the derivative"]
        notes = [*(intended if self.asking.intended else []), *self.said.leeway.sentences(), *self.notes.lines()]
        return Report(tuple(rows), tuple(dict.fromkeys([*notes, *self.subject.notes])))

    def rows_of(self, case: Case) -> list[Row]:
        """Of what is fed instead of the example."""
        return self._explained(self._case(case))

    def _explained(self, found: Sequence[Found]) -> list[Row]:
        return explained(found, self.subject.structure, self.notes)

    def _enter(self, case: str) -> Row | None:
        """Go into a case; or, where an earlier process died in it, the row that says so."""
        dtype = str(self.arguments[self.subject.differentiable[0]].dtype).removeprefix("torch.")
        death = WATCH.get().enter(case if dtype == "float64" else f"{case} in {dtype}")
        return replace(death.row, case=case) if death else None

    def _example(self) -> tuple[Sequence[Tensor], Sequence[Tensor], list[Found]]:
        before = copies(self.arguments)
        outputs, pullback = _forward(self.subject, self.arguments)
        if random := unsettled(self.subject, before, outputs):
            return outputs, [], [Found(random)]
        if computes_in_single(self.subject, self.arguments, self.notes.said):
            single = tolerance_of_sums(torch.float32, longest_sum((*self.arguments, *outputs))).norm
            self.said = replace(self.said, leeway=replace(self.said.leeway, single=single))
        cotangents = [drawn_like(output, self.generator) for output in outputs]
        before, fed = [*before, *copies(outputs), *cotangents], copies(cotangents)
        gradients = _pull(self.subject, pullback, fed)
        if isinstance(gradients, Row):
            return outputs, cotangents, [Found(gradients)]
        run = Run(self.subject, self.arguments, cotangents, outputs, gradients, self.said)
        if spoilt := written_to(before, [*self.arguments, *outputs, *fed]):  # what an oracle would be asked about
            return outputs, cotangents, [Found(spoilt)]
        del before, fed  # in a large example they count
        found = self.asking.of_example(run)
        if not any(one.row.oracle for one in found):
            raise ValueError(f"no oracle could be asked: {'; '.join(self.notes.lines())}")
        sizes = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        sizes |= {one.row.name: one.claims[one.row.name].value for one in found if one.row.name in one.claims}
        sizes |= {output_name(i, len(outputs)): output for i, output in enumerate(outputs)}
        self.scales = {name: _rms(tensor) for name, tensor in sizes.items()}
        first = tuple(gradients.values())
        slack = max(run.said.leeway.nondeterministic, 4 * tolerance_of_sums(outputs[0].dtype, run.longest_sum).norm)
        self.repeated = Repeated(self.subject, self.arguments, outputs, cotangents, pullback, first, slack)
        rows = [self.repeated.at_once(self.notes.said)]
        if rows[0].passed:
            others = [drawn_like(output, self.generator) for output in outputs]
            if _overwritten(pullback, others, first):
                said = "a later call of backward wrote into the gradients that an earlier one had returned"
                stale = replace(rows[0], passed=False, reason=said, diagnosis=Diagnosis("stale", said))
                return outputs, cotangents, [Found(stale)]
            judged = [name for name in gradients if name not in self.said.zeros]
            pull = _only(pullback, [i for i, name in enumerate(gradients) if name in judged])
            judged_first = tuple(gradients[name] for name in judged)
            loose = max(run.said.leeway.nondeterministic, run.said.leeway.single)
            rows.append(linear(judged, cotangents, others, pull, judged_first, run.longest_sum, loose))
            if self.subject.only and len(gradients) > 1 and all(row.passed for row in rows):
                own = alone(self.subject, self.arguments, cotangents, first, run.longest_sum, loose, self.notes.said)
                rows.append(own)
        return outputs, cotangents, found + [Found(row) for row in rows]

    def _edge_cases(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Found]:
        positions, names = self.subject.differentiable, self.subject.names
        sizes = Sizes(
            self.subject, self.arguments, outputs, self.asking.reference, self.notes, self._enter, WATCH.get().isolated
        )
        found: list[Found] = []
        judged = len(self.asking.refused) < len(self.oracles.exact)  # by what takes little time
        latest = thread_time() + (inf if judged else IN_CASES)
        for case in cases(self.groups, self.arguments, positions, names, cotangents, self.generator, sizes):
            if thread_time() > latest:
                said = f"edge cases were skipped from {case.name!r} on, because those before took {IN_CASES:g} s"
                self.notes.add(f"{said}: give a smaller example, or a reference")
                break
            self.asking.until = thread_time() + IN_ONE
            died = self._enter(case.name)
            found += [Found(died)] if died else self._case(case)
            if case.group in RESHAPED and all(one.is_fine for one in found):
                found += [Found(row) for row in self.repeated.after(case.name)]
        double = all(self.arguments[i].dtype == torch.float64 for i in positions)
        if "layouts" in self.groups and double and all(one.is_fine for one in found):
            died = self._enter("cotangents in each dtype")
            rows = [died] if died else in_any_layout(self.subject, self.arguments, cotangents, self.notes.said)
            found += [Found(row) for row in rows]
        return found + [Found(row) for row in sizes.failures]

    def _case(self, case: Case) -> list[Found]:
        found = self._found_in(case)
        failed = not all(one.row.passed for one in found)
        if failed and _is_ill_posed(self.subject, case, self.notes):
            self.notes.add("rounding alone decides what forward gives", case.name)
            return []
        if failed and case.group == "layouts":
            cotangents = None if case.cotangents is None else contiguous(case.cotangents)
            plain = replace(case, arguments=contiguous(case.arguments), cotangents=cotangents)
            side_by_side = self._found_in(plain)
            if all(one.row.passed for one in side_by_side) and _differ(found, side_by_side):
                what = "inputs" if case.cotangents is None else "cotangents"
                said = Diagnosis("strided", f"right for contiguous {what}, wrong when they are not: {case.name}")
                found = [one if one.row.passed else replace(one, row=replace(one.row, diagnosis=said)) for one in found]
        return [replace(one, row=replace(one.row, case=case.name)) for one in found]

    def _found_in(self, case: Case) -> list[Found]:
        before = copies(case.arguments)
        try:
            outputs, pullback = self.subject.run(case.arguments)
        except Exception as error:  # forward does not take it, and that is its right
            self.notes.add(f"forward raised {quoted(error)}", case.name)
            return []
        if not all(output.isfinite().all() for output in outputs):
            self.notes.add("forward gives values that are not finite", case.name)
            return []
        generator = torch.Generator().manual_seed(STREAM ^ self.seed ^ 1)
        cotangents = case.cotangents or [drawn_like(output, generator) for output in outputs]
        kept = copies(cotangents)
        gradients = _pull(self.subject, pullback, cotangents)
        if isinstance(gradients, Row):
            if case.group == "values" and "LinAlgError" in gradients.reason:  # forward's matrix is all but singular
                self.notes.add(gradients.reason, case.name)
                return []
            return [Found(gradients)]
        if self.subject.only:  # autograd gave every gradient of the example; None is zero here
            for i, name in zip(self.subject.differentiable, gradients, strict=True):
                if gradients[name] is None:
                    gradients[name] = torch.zeros_like(case.arguments[i])
        pure = written_to([*before, *kept], [*case.arguments, *cotangents])
        run = Run(
            self.subject, case.arguments, kept, outputs, gradients, self.said,
            case.name, case.group, self.scales, self._floors(case, outputs, kept),
        )  # fmt: skip
        found = self.asking.of_case(run)
        for one in found:
            claims = one.claims.get(one.row.name)
            if claims is not None and claims.value.numel():
                self.seen.setdefault(one.row.name, []).append(not claims.trivial)
        return [Found(pure), *found] if pure else found

    def _floors(self, case: Case, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> dict[str, float]:
        """What an element may be off by in a case: the rounding of a gradient as large as the example's.

        At special values a forward pass may cancel and lose half of its digits, and autograd through it too. A number
        that is so many times larger than those of the example is rounded so many times more. And where an output hardly
        moves, as that of a saturated function, its own rounding is what a gradient may be off by.
        """
        positions = self.subject.differentiable
        pairs = [(case.arguments[i], self.arguments[i]) for i in positions]
        largest = [(a.abs().max().item(), b.abs().max().item()) for a, b in pairs if a.numel() and b.numel()]
        growth = max([1.0, *(a / b for a, b in largest if b > 0)])
        claimed = max(_rms(output) * _rms(cotangent) for output, cotangent in zip(outputs, cotangents, strict=True))
        floors = {}
        for i, name in zip(positions, self.subject.gradient_names, strict=True):
            dtype = torch.float32 if self.said.leeway.single else case.arguments[i].dtype
            rounding = FLOOR[dtype] * torch.finfo(dtype).eps * growth
            rounding = max(rounding, sqrt(torch.finfo(dtype).eps)) if case.group == "values" else rounding
            if case.group == "layouts":  # a cotangent of equal numbers may cancel in a sum
                rounding += tolerance_of_sums(dtype, longest_sum(case.arguments)).norm
            floors[name] = max(self.scales.get(name, 0.0) * rounding, _lost(claimed, case.arguments[i]))
        if case.group in RESHAPED:  # of an output a sum of few may cancel
            dtype = self.arguments[positions[0]].dtype
            unit = FLOOR[dtype] * torch.finfo(dtype).eps
            floors |= {name: unit * size for name, size in self.scales.items() if name.startswith("output")}
        return floors

    def _shown(self, one: Found) -> Found:
        """A gradient that should be zero everywhere in the example is shown by the cases, if there are enough."""
        seen = self.seen.get(one.row.name, [])
        if not one.is_trivial or len(seen) < CASES_ENOUGH:
            return one
        where = f"{sum(seen)} of {len(seen)} edge cases show it where it is not" if any(seen) else ""
        where = where or f"and in all {len(seen)} edge cases"
        self.notes.add(f"{one.row.name} is zero everywhere in the example, {where}")
        return replace(one, row=replace(one.row, passed=True, reason=""))


def _forward(subject: Subject, arguments: Sequence[Any]) -> tuple[tuple[Tensor, ...], Pullback]:
    """The outputs of the example, and the pullback. Raises ValueError for one that forward does not take."""
    own = zip(subject.names, subject.structure.given(arguments), strict=True)
    given = ", ".join(f"{k} {tuple(v.shape)}" if isinstance(v, Tensor) else f"{k} = {v!r}" for k, v in own)
    try:
        outputs, pullback = subject.run(arguments)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"forward raised {quoted(error)}; it was given {given}: change the example") from error
    if not all(output.isfinite().all() for output in outputs):
        raise ValueError(f"forward gives values that are not finite; choose another example than {given}")
    return outputs, pullback


def _pull(subject: Subject, pullback: Pullback, cotangents: Sequence[Tensor]) -> dict[str, Tensor | None] | Row:
    """The gradients by name, or a row that says why there are none."""
    try:
        return dict(zip(subject.gradient_names, pullback(cotangents), strict=True))
    except Malformed as error:
        return Row("gradients", "gradients", (), False, str(error), diagnosis=Diagnosis(error.kind, str(error)))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{subject.written} raised {quoted(error)} ({Path(frame.filename).name}, line {frame.lineno})"
        return Row("gradients", "gradients", (), False, said, diagnosis=Diagnosis("raised", said))


def _overwritten(pullback: Pullback, others: Sequence[Tensor], first: Gradients) -> bool:
    """Whether a call for other cotangents changes gradients that were returned before."""
    kept = copies(first)
    try:
        pullback(copies(others))
    except Overwritten:
        return True
    except Exception:  # `linear` asks the same, and quotes it
        return False
    return not all(map(same, kept, first))


def _only(pullback: Pullback, wanted: Sequence[int]) -> Pullback:
    """For some of the gradients."""

    def some(cotangents: Sequence[Any]) -> Gradients:
        gradients = pullback(cotangents)
        return tuple(gradients[i] for i in wanted)

    return some


def _is_ill_posed(subject: Subject, case: Case, notes: Notes) -> bool:
    """Whether rounding alone decides what forward gives, as it does at a singular matrix: it has no slope there."""
    near = nudged(case.arguments, subject.differentiable)
    try:
        pairs = zip(subject.run(case.arguments)[0], subject.run(near)[0], strict=True)
    except Exception as error:  # the case is what forward takes, and nothing beside it
        notes.add(f"beside it, forward raised {quoted(error)}", case.name)
        return False
    return any(not (b - a).norm() <= ILL_POSED * a.norm() for a, b in pairs)


def _rms(tensor: Tensor) -> float:
    norm = torch.linalg.vector_norm(tensor.nan_to_num(0.0, 0.0, 0.0), dtype=torch.float64)
    return norm.item() / sqrt(max(tensor.numel(), 1))


def _lost(claimed: float, argument: Tensor) -> float:
    """The size of a gradient that is lost in the rounding of forward's own outputs, which count so much together."""
    size = _rms(argument)
    lost = torch.finfo(argument.dtype).eps * claimed / size if size else 0.0
    return lost if isfinite(lost) else 0.0


def _differ(found: Sequence[Found], others: Sequence[Found]) -> bool:
    """Whether the gradients themselves are others, rather than that they were judged along other directions."""
    one, other = (next((each.run for each in some if each.run), None) for some in (found, others))
    if one is None or other is None:
        return True
    pairs = zip(one.gradients.values(), other.gradients.values(), strict=True)
    return any(
        a is None or b is None or not distance(a, b) <= 4 * tolerance_of_sums(a.dtype, one.longest_sum).norm
        for a, b in pairs
    )
