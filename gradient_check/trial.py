"""The trial of one backward pass at one dtype: every oracle on the example, then every case."""

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradient_check.cases import Case, cases
from gradient_check.claims import Claims, Direction
from gradient_check.exact import Exact, Truth, output_name
from gradient_check.isolation import WATCH
from gradient_check.kinks import settled, together
from gradient_check.oracles import contiguous, copies, doubled, nudged
from gradient_check.properties import Repeated, alone, in_any_layout, linear, unsettled, written_to
from gradient_check.report import Diagnosis, Report, Row, quoted
from gradient_check.run import LARGE, Run
from gradient_check.sizes import Sizes
from gradient_check.slopes import Differences, dot_product
from gradient_check.structure import Malformed, in_complex
from gradient_check.subject import Gradients, Pullback, Subject
from gradient_check.tolerances import FLOOR, SAME, SCATTERING, Declared, tolerance_of_sums
from gradient_check.verdict import judge, judge_along

RESHAPED = ("batch", "rows", "axes")  # groups of cases that feed arguments of other shapes
STREAM = 0x0DD5EED  # keeps the cotangent from being the very numbers that an example drew from the same small seed
ENOUGH = 3  # edge cases, to show a gradient that should be zero everywhere in the example
ILL_POSED = 0.1  # of an output's norm: moved so far by one unit of rounding in the inputs, it has no digit left


@dataclass
class Found:
    """A verdict, and what it was made of: for the diagnosis."""

    row: Row
    run: Run | None = None
    claims: Mapping[str, Claims] = field(default_factory=dict)
    exact: Exact | None = None

    @property
    def is_trivial(self) -> bool:
        """Whether it fails only because the gradient should be zero everywhere, which shows nothing."""
        claims = self.claims.get(self.row.name)
        return claims is not None and claims.trivial and self.row.agrees and not self.row.case


@dataclass
class Trial:
    """`report()` runs it. `arguments` are in the dtype on trial; `zeros` and `titles` go by the names of gradients."""

    subject: Subject
    arguments: list[Any]
    exact: Sequence[Exact]
    slopes: bool  # whether central differences are asked
    forward_mode: bool  # whether the dot product is
    groups: Sequence[str]  # of cases
    zeros: frozenset[str]
    titles: Mapping[str, str]
    candidates: Mapping[str, Tensor]
    declared: Declared
    seed: int
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # cases by why
    scales: dict[str, float] = field(default_factory=dict)  # root mean square of the example's gradients and outputs
    seen: dict[str, list[bool]] = field(default_factory=dict)  # of each gradient, in which cases it is not all zero

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(STREAM ^ self.seed)

    def report(self) -> Report:
        if died := self._enter("the example"):
            return Report((replace(died, case=""),), ("edge cases were skipped, because the process died",))
        outputs, cotangents, found = self._example()
        if max(output.numel() for output in outputs) > LARGE:
            self.notes.append("edge cases were skipped, because the example is large: give a small one for them")
        elif all(one.row.passed or one.is_trivial for one in found):
            positions, names = self.subject.differentiable, self.subject.names
            pairs = self.subject.structure.pairs
            sizes = Sizes(
                self.arguments, names, outputs, self._run, self.subject.forward, self._reference, self.notes, pairs,
                self._enter, WATCH.get().isolated,
            )  # fmt: skip
            with warnings.catch_warnings(action="ignore"):  # of what forward says to inputs that nobody asked for
                for case in cases(self.groups, self.arguments, positions, names, cotangents, self.generator, sizes):
                    died = self._enter(case.name)
                    found += [Found(died)] if died else self._case(case)
                    if case.group in RESHAPED and all(one.row.passed or one.is_trivial for one in found):
                        found += [Found(row) for row in self.repeated.after(case.name)]
                found += [Found(row) for row in sizes.failures]
                double = all(self.arguments[i].dtype == torch.float64 for i in positions)
                if "layouts" in self.groups and double and all(one.row.passed or one.is_trivial for one in found):
                    died = self._enter("cotangents in each dtype")
                    rows = [died] if died else in_any_layout(self.subject, self.arguments, cotangents, self.notes)
                    found += [Found(row) for row in rows]
        elif self.groups:
            self.notes.append("edge cases were skipped, because the example itself failed")
        rows = [self._diagnosed(self._shown(one)) for one in found]
        rows = [replace(row, label=self.titles.get(row.name, row.label)) for row in rows]
        complex_ones = {f"d{self.subject.names[i]}" for i in self.subject.structure.pairs}
        rows = [in_complex(row) if row.name in complex_ones else row for row in rows]
        self.notes += [f"edge cases were skipped ({', '.join(names)}): {why}" for why, names in self.skipped.items()]
        declared = ["the gradients are held against what was declared as intended, which is not the derivative"]
        notes = [*(declared if self._declared else []), *self.declared.sentences(), *self.notes, *self.subject.notes]
        return Report(tuple(rows), tuple(dict.fromkeys(notes)))

    def rows_of(self, case: Case) -> list[Row]:
        """Of what is fed instead of the example."""
        return [self._diagnosed(one) for one in self._case(case)]

    def _enter(self, case: str) -> Row | None:
        """Go into a case; or, where an earlier process died in it, the row that says so."""
        dtype = str(self.arguments[self.subject.differentiable[0]].dtype).removeprefix("torch.")
        death = WATCH.get().enter(case if dtype == "float64" else f"{case} in {dtype}")
        if death is None:
            return None
        return Row("process", "process", (), False, str(death), case=case, diagnosis=Diagnosis("died", str(death)))

    def _example(self) -> tuple[Sequence[Tensor], Sequence[Tensor], list[Found]]:
        before = copies(self.arguments)
        outputs, pullback = self._forward()
        if random := unsettled(self.subject, before, outputs):
            return outputs, [], [Found(random)]
        cotangents = [self._random(output, self.generator) for output in outputs]
        before, fed = [*before, *copies(outputs), *cotangents], copies(cotangents)
        gradients = self._pull(pullback, fed)
        if isinstance(gradients, Row):
            return outputs, cotangents, [Found(gradients)]
        run = Run(self.subject, self.arguments, cotangents, outputs, gradients, self.titles, self.zeros, self.declared)
        self.scales = {name: _rms(gradient) for name, gradient in gradients.items() if gradient is not None}
        self.scales |= {output_name(i, len(outputs)): _rms(output) for i, output in enumerate(outputs)}
        pure = written_to(before, [*self.arguments, *outputs, *fed])
        del before, fed  # in a large example they count
        found = self._asked(run)
        if not any(one.row.oracle for one in found):
            raise ValueError(f"no oracle could be asked: {'; '.join(self.notes)}")
        first = tuple(gradients.values())
        slack = max(run.declared.nondeterministic, 4 * tolerance_of_sums(outputs[0].dtype, run.terms).norm)
        self.repeated = Repeated(self.subject, self.arguments, outputs, cotangents, pullback, first, slack)
        rows = [pure or self.repeated.at_once(self.notes)]
        if rows[0].passed:
            others = [self._random(output, self.generator) for output in outputs]
            judged = [name for name in gradients if name not in self.zeros]
            judged_first = tuple(gradients[name] for name in judged)
            rows.append(linear(judged, cotangents, others, self._only(pullback, judged), judged_first, run.terms))
            if self.subject.only and len(gradients) > 1 and all(row.passed for row in rows):
                rows.append(alone(self.subject, self.arguments, cotangents, first, run.terms, self.notes))
        return outputs, cotangents, found + [Found(row) for row in rows]

    def _asked(self, run: Run) -> list[Found]:
        """What every oracle says of the example."""
        found: list[Found] = []
        for exact in self.exact:
            found += self._against(exact, run)
        if found and run.is_large:
            said = f"the {found[0].row.oracle} judges every element of a large example"
            self.notes.append(f"central differences and dot product were not asked: {said}")
            return found
        if self.slopes:
            known = {one.row.name: one.row for one in found}
            rows = Differences(run, known, self.generator, self.notes).rows()
            found += [Found(row, run) for row in rows]
        passed = all(one.row.passed for one in found)
        kinks = any(one.row.kinks for one in found)
        if passed and kinks:
            found += self._together(run)
        elif passed and self.forward_mode:
            forward = self._reference or self.subject.forward
            try:
                found.append(self._along(dot_product(forward, run, self.generator), run))
            except Exception as error:  # no forward mode, or no float64
                self.notes.append(f"dot product could not be asked: {quoted(error)}")
        return found

    def _forward(self) -> tuple[tuple[Tensor, ...], Pullback]:
        try:
            outputs, pullback = self.subject.run(self.arguments)
        except ValueError:
            raise
        except Exception as error:
            said = f"forward raised {quoted(error)}; it was given {self._described()}"
            raise ValueError(f"{said}: change the example") from error
        if not all(output.isfinite().all() for output in outputs):
            said = "forward gives values that are not finite"
            raise ValueError(f"{said}; choose another example than {self._described()}")
        return outputs, pullback

    def _pull(self, pullback: Pullback, cotangents: Sequence[Tensor]) -> dict[str, Tensor | None] | Row:
        """The gradients by name, or a row that says why there are none."""
        names = self.subject.gradient_names
        try:
            return dict(zip(names, pullback(cotangents), strict=True))
        except Malformed as error:
            return Row("gradients", "gradients", (), False, str(error), diagnosis=Diagnosis(error.kind, str(error)))
        except Exception as error:
            said = f"{self.subject.written} raised {quoted(error)} {_place(error)}"
            return Row("gradients", "gradients", (), False, said, diagnosis=Diagnosis("raised", said))

    def _against(self, exact: Exact, run: Run) -> list[Found]:
        """What one exact oracle says; nothing where it cannot be asked."""
        try:
            truth = exact.truth(run, doubts=run.is_well_known and not run.is_large)
        except Exception as error:  # whatever a forward raises that was not made for autograd
            if exact.argument and not run.case:
                said = f"the {exact.argument} could not be asked: {quoted(error)}"
                raise ValueError(f"{said}; give one that takes forward's arguments, in float64 too") from error
            self._skip(run, f"{exact.title} could not be asked: {quoted(error)}")
            return []
        if not truth.finite:
            self._skip(run, f"{exact.title} could not be asked: its own values are not finite")
            return []
        if not run.case:
            self.scales |= {name: _rms(gradient) for name, gradient in truth.gradients.items()}
        found = self._held(exact, run, truth)
        if (run.case or run.is_large) and not all(
            one.row.passed for one in found
        ):  # perhaps it is badly conditioned there
            truth = exact.truth(run, doubts=True)
            found = self._held(exact, run, truth)
        most = SCATTERING.get(run.outputs[0].dtype, 0.0)
        if any(
            not one.row.passed and one.row.absolute_error < most * self.scales.get(one.row.name, 0.0) for one in found
        ):
            try:
                found = self._held(exact, run, exact.scattered(run, truth))
            except Exception as error:  # it takes these values and nothing beside them
                self._skip(run, f"how the error scatters is not known: {quoted(error)}")
        return found

    def _held(self, exact: Exact, run: Run, truth: Truth) -> list[Found]:
        found: list[Found] = []
        if exact.independent:
            rows = [judge(claims, output) for claims, output in exact.of_outputs(run, truth)]
            found = [
                Found(row if row.passed else replace(row, reason=f"forward is wrong: {row.reason}")) for row in rows
            ]
            if not all(row.passed for row in rows):
                return found
        claims = {name: exact.of_gradient(name, run, truth) for name in truth.gradients}
        for name, claim in claims.items():
            actual = run.gradients[name]
            if actual is not None and actual.shape == claim.value.shape and actual.dtype == claim.dtype:
                claims[name] = settled(claim, actual, exact, truth, run)
            if run.case and claim.value.numel():
                self.seen.setdefault(name, []).append(not claim.trivial)
            if run.case:
                claims[name] = replace(claims[name], blind="")
            found.append(Found(judge(claims[name], actual), run, claims, exact))
        return found

    def _case(self, case: Case) -> list[Found]:
        found = self._found_in(case)
        failed = not all(one.row.passed for one in found)
        if failed and self._ill_posed(case):
            return []
        if failed and case.group == "layouts":
            cotangents = None if case.cotangents is None else contiguous(case.cotangents)
            plain = replace(case, arguments=contiguous(case.arguments), cotangents=cotangents)
            if all(one.row.passed for one in self._found_in(plain)):
                what = "inputs" if case.cotangents is None else "cotangents"
                said = Diagnosis("strided", f"right for contiguous {what}, wrong when they are not: {case.name}")
                found = [one if one.row.passed else replace(one, row=replace(one.row, diagnosis=said)) for one in found]
        return [replace(one, row=replace(one.row, case=case.name)) for one in found]

    def _found_in(self, case: Case) -> list[Found]:
        before = copies(case.arguments)
        try:
            outputs, pullback = self.subject.run(case.arguments)
        except Exception as error:  # forward does not take it, and that is its right
            self.skipped.setdefault(f"forward raised {quoted(error)}", []).append(case.name)
            return []
        if not all(output.isfinite().all() for output in outputs):
            self.skipped.setdefault("forward gives values that are not finite", []).append(case.name)
            return []
        generator = torch.Generator().manual_seed(STREAM ^ self.seed ^ 1)
        cotangents = case.cotangents or [self._random(output, generator) for output in outputs]
        kept = copies(cotangents)
        gradients = self._pull(pullback, cotangents)
        if isinstance(gradients, Row):
            return [Found(gradients)]
        if self.subject.only:  # autograd gave every gradient of the example; None is zero here
            for i, name in zip(self.subject.differentiable, gradients, strict=True):
                if gradients[name] is None:
                    gradients[name] = torch.zeros_like(case.arguments[i])
        pure = written_to([*before, *kept], [*case.arguments, *cotangents])
        run = Run(
            self.subject, case.arguments, kept, outputs, gradients, self.titles, self.zeros, self.declared,
            case.name, case.group, self.scales, self._floors(case),
        )  # fmt: skip
        found = [Found(pure)] if pure else []
        for exact in self.exact:
            if answered := self._against(exact, run):
                if any(one.row.kinks for one in answered) and all(one.row.passed for one in answered):
                    answered += self._together(run)
                return found + answered
        if self.slopes and not self.exact:
            rows = Differences(run, {}, self.generator, self.notes).rows()
            found += [Found(row, run) for row in rows]
        return found

    def _floors(self, case: Case) -> dict[str, float]:
        """What an element may be off by in a case: the rounding of a gradient as large as the example's.

        At special values a forward pass may cancel and lose half of its digits, and autograd through it too. A number
        that is so many times larger than those of the example is rounded so many times more.
        """
        positions = self.subject.differentiable
        pairs = [(case.arguments[i], self.arguments[i]) for i in positions]
        largest = [(a.abs().max().item(), b.abs().max().item()) for a, b in pairs if a.numel() and b.numel()]
        growth = max([1.0, *(a / b for a, b in largest if b > 0)])
        floors = {}
        for i, name in zip(positions, self.subject.gradient_names, strict=True):
            epsilon = torch.finfo(case.arguments[i].dtype).eps
            rounding = FLOOR[case.arguments[i].dtype] * epsilon * growth
            rounding = max(rounding, sqrt(epsilon)) if case.group == "values" else rounding
            floors[name] = self.scales.get(name, 0.0) * rounding
        if case.group in ("batch", "axes"):  # of an output a sum of few may cancel
            dtype = self.arguments[positions[0]].dtype
            unit = FLOOR[dtype] * torch.finfo(dtype).eps
            floors |= {name: unit * size for name, size in self.scales.items() if name.startswith("output")}
        return floors

    def _ill_posed(self, case: Case) -> bool:
        """Whether rounding alone decides what forward gives, as it does at a singular matrix: it has no slope there."""
        near = nudged(case.arguments, self.subject.differentiable)
        try:
            pairs = zip(self._run(case.arguments), self._run(near), strict=True)
        except Exception as error:  # the case is what forward takes, and nothing beside it
            self.notes.append(f"beside {case.name}, forward raised {quoted(error)}")
            return False
        return any(not (b - a).norm() <= ILL_POSED * a.norm() for a, b in pairs)

    def _together(self, run: Run) -> list[Found]:
        """What each element may claim at a kink, they may not claim all at once."""
        if self._declared or not all(g is not None and g.isfinite().all() for g in run.gradients.values()):
            return []
        try:
            directions = list(together(self._reference or self.subject.forward, run, self.generator))
        except Exception as error:  # forward takes no values beside these
            self._skip(run, f"ties could not be judged together: {quoted(error)}")
            return []
        return [self._along(direction, run) for direction in directions]

    def _along(self, direction: Direction, run: Run) -> Found:
        return Found(judge_along(direction, [g for g in run.gradients.values() if g is not None]), run)

    def _shown(self, one: Found) -> Found:
        """A gradient that should be zero everywhere in the example is shown by the cases, if there are enough."""
        seen = self.seen.get(one.row.name, [])
        if not one.is_trivial or len(seen) < ENOUGH:
            return one
        where = f"{sum(seen)} of {len(seen)} edge cases show it where it is not" if any(seen) else ""
        where = where or f"and in all {len(seen)} edge cases"
        self.notes.append(f"{one.row.name} is zero everywhere in the example, {where}")
        return replace(one, row=replace(one.row, passed=True, reason=""))

    def _diagnosed(self, one: Found) -> Row:
        """The row, with the known mistake that it shows."""
        row, run = one.row, one.run
        if row.passed or row.diagnosis or row.inconclusive or run is None or row.name not in run.gradients:
            return row
        given = run.gradients[row.name]
        if given is None or row.agrees or not one.claims:
            return row
        claims = one.claims[row.name]
        if row.index and claims.kinks is not None:
            wrong = claims.disputed(given.detach().cpu())
            if not (wrong & ~claims.kinks).any():
                text = f"only wrong at a kink: {int(wrong.sum())} elements are not between the slopes of the two sides"
                return replace(row, diagnosis=Diagnosis("kink", text))
        from gradient_check.diagnosis import Evidence, diagnose

        evidence = Evidence(
            arguments=dict(zip(self.subject.names, doubled(contiguous(run.arguments)), strict=True)),
            outputs=doubled(run.outputs),
            cotangents=doubled(contiguous(run.cotangents)),
            forward=None if one.exact is None else one.exact.forward,
            candidates=self.candidates,
            noise=SAME[claims.dtype],
        )
        known = {name: claim.value for name, claim in one.claims.items()}
        return replace(row, diagnosis=diagnose(row.name, run.gradients, known, evidence))

    def _skip(self, run: Run, why: str) -> None:
        if run.case:
            self.skipped.setdefault(why, []).append(run.case)
        else:
            self.notes.append(why)

    @property
    def _reference(self) -> Callable[..., Any] | None:
        return next((exact.forward for exact in self.exact if exact.independent), None)

    @property
    def _declared(self) -> bool:
        return any(exact.argument == "intended" for exact in self.exact)

    def _run(self, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        return self.subject.run(arguments)[0]

    def _only(self, pullback: Pullback, names: Sequence[str]) -> Pullback:
        wanted = [self.subject.gradient_names.index(name) for name in names]

        def some(cotangents: Sequence[Any]) -> Gradients:
            gradients = pullback(cotangents)
            return tuple(gradients[i] for i in wanted)

        return some

    def _random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return drawn.to(like.device, like.dtype)

    def _described(self) -> str:
        return ", ".join(
            f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} = {value!r}"
            for name, value in zip(self.subject.names, self.subject.structure.given(self.arguments), strict=True)
        )


def _rms(tensor: Tensor) -> float:
    norm = torch.linalg.vector_norm(tensor.nan_to_num(0.0, 0.0, 0.0), dtype=torch.float64)
    return norm.item() / sqrt(max(tensor.numel(), 1))


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"({Path(frame.filename).name}, line {frame.lineno})"
