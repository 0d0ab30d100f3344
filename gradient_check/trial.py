"""The trial of one backward pass at one dtype: every oracle on the example, then every case."""

import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradient_check.batch import Sizes
from gradient_check.cases import Case, cases
from gradient_check.compare import Judgement, judge, judge_all
from gradient_check.diagnosis import Evidence
from gradient_check.oracles import nudged, outputs_of
from gradient_check.properties import Repeated, alone, copies, in_any_layout, linear, unsettled, written_to
from gradient_check.report import Diagnosis, Report, Row, quoted
from gradient_check.slopes import ORACLE, all_cleared, differences, dot_product, excused_at_kinks, together
from gradient_check.subject import Gradients, Pullback, Run, Subject
from gradient_check.tolerances import FLOOR, magnified
from gradient_check.truth import Autograd, Doubts, Truth, doubled, plain

RESHAPED = ("batch", "rows", "axes")  # groups of cases that feed arguments of other shapes
STREAM = 0x0DD5EED  # keeps the cotangent from being the very numbers that an example drew from the same small seed
EPSILON = torch.finfo(torch.float64).eps
WELL_KNOWN = ("", "rows")  # where the oracle's own error is asked for at once: in the example and in long sums
BLIND = 0.1  # of the norm: central differences that are no better, where nothing else judges, show nothing
ILL_POSED = 0.1  # of an output's norm: moved so far by one unit of rounding in the inputs, it has no digit left


@dataclass
class Trial:
    """`report()` runs it. `arguments` are in the dtype on trial; `zeros` and `titles` go by the names of gradients."""

    subject: Subject
    arguments: list[Any]
    reference: Callable[..., Any] | None
    oracles: Sequence[str]
    groups: Sequence[str]
    zeros: frozenset[str]
    titles: Mapping[str, str]
    candidates: Mapping[str, Tensor]
    seed: int
    notes: list[str] = field(default_factory=list)
    scales: dict[str, float] = field(default_factory=dict)  # root mean square of each gradient of the example
    sizes: dict[str, float] = field(default_factory=dict)  # and of each output

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(STREAM ^ self.seed)

    def report(self) -> Report:
        outputs, cotangents, rows = self._example()
        if all(row.passed for row in rows):
            positions, names = self.subject.differentiable, self.subject.names
            sizes = Sizes(self.arguments, names, outputs, self._run, self.reference, self.notes)
            with warnings.catch_warnings(action="ignore"):  # of what forward says to inputs that nobody asked for
                for case in cases(self.groups, self.arguments, positions, names, cotangents, self.generator, sizes):
                    rows += self.case(case)
                    if case.group in RESHAPED and all(row.passed for row in rows):
                        rows += self.repeated.after(case.name)
                double = _all_double(self.arguments[i] for i in positions)
                if "layouts" in self.groups and double and all(row.passed for row in rows):
                    rows += in_any_layout(self.subject, self.arguments, cotangents, self.notes)
        elif self.groups:
            self.notes.append("nothing else was fed, because the example itself failed")
        rows = [replace(row, label=self.titles.get(row.name, row.label)) for row in rows]
        return Report(tuple(rows), tuple(dict.fromkeys([*self.notes, *self.subject.notes])))

    def _example(self) -> tuple[Sequence[Tensor], Sequence[Tensor], list[Row]]:
        arguments = copies(self.arguments)
        outputs, pullback = self._forward()
        if random := unsettled(self.subject, arguments, outputs):
            return outputs, [], [random]
        cotangents = [self._random(output, self.generator) for output in outputs]
        before, fed = [*arguments, *copies(outputs), *cotangents], copies(cotangents)
        gradients = self._pull(pullback, fed)
        if isinstance(gradients, Row):
            return outputs, cotangents, [gradients]
        run = Run(self.arguments, cotangents, outputs, gradients)
        self.scales = {name: _rms(gradient) for name, gradient in gradients.items() if gradient is not None}
        pure = written_to(before, [*self.arguments, *outputs, *fed])
        rows = []
        for oracle in self._whole_oracles:
            rows += self._against(oracle, run)
        if "differences" in self.oracles:
            rows += self._differences(run, rows)
        if "dot product" in self.oracles and all(row.passed for row in rows):
            rows += self._dot_product(run, at_kink=any(row.kinks for row in rows))
        if not any(row.oracle for row in rows):
            raise ValueError(f"no oracle could be asked: {'; '.join(self.notes)}")
        first = tuple(gradients.values())
        self.repeated = Repeated(self.subject, self.arguments, outputs, cotangents, pullback, first)
        rows.append(pure or self.repeated.at_once(self.notes))
        if all(row.passed or row.diagnosis is None for row in rows):
            others = [self._random(output, self.generator) for output in outputs]
            judged = [name for name in gradients if name not in self.zeros]
            rows.append(
                linear(
                    judged,
                    cotangents,
                    others,
                    self._only(pullback, judged),
                    tuple(gradients[n] for n in judged),
                    self._terms(run),
                )
            )
            if self.subject.only and len(gradients) > 1 and all(row.passed for row in rows):
                rows.append(alone(self.subject, self.arguments, cotangents, first, self._terms(run), self.notes))
        return outputs, cotangents, rows

    def _forward(self) -> tuple[tuple[Tensor, ...], Pullback]:
        try:
            outputs, pullback = self.subject.run(self.arguments)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"forward raised {quoted(error)}; it was given {self._given()}: change the example"
            ) from error
        if not all(output.isfinite().all() for output in outputs):
            raise ValueError(f"forward gives values that are not finite; choose another example than {self._given()}")
        return outputs, pullback

    def _pull(self, pullback: Pullback, cotangents: Sequence[Tensor]) -> dict[str, Tensor | None] | Row:
        """The gradients by name, or a row that says why there are none."""
        names = self.subject.gradient_names
        try:
            gradients = pullback(cotangents)
        except Exception as error:
            said = f"{self.subject.written} raised {quoted(error)} {_place(error)}"
            return Row("gradients", "gradients", (), False, said, diagnosis=Diagnosis("raised", said))
        if len(gradients) != len(names):
            reason = self._miscounted(gradients)
            kind = "missing" if len(gradients) < len(names) else "shape"
            return Row("gradients", "gradients", (), False, reason, diagnosis=Diagnosis(kind, reason))
        return dict(zip(names, gradients, strict=True))

    def _miscounted(self, gradients: Gradients) -> str:
        names = self.subject.gradient_names
        fixed = [
            f"{name} ({'declared' if value.is_floating_point() else value.dtype})"
            for i, (name, value) in enumerate(zip(self.subject.names, self.arguments, strict=True))
            if i not in self.subject.differentiable and isinstance(value, Tensor)
        ]
        rest = f"; none is due for {', '.join(fixed)}" if fixed and len(gradients) > len(names) else ""
        return f"backward returned {len(gradients)} gradients for the {len(names)} arguments {', '.join(names)}{rest}"

    @property
    def _whole_oracles(self) -> list[str]:
        """Those that know every gradient exactly."""
        return [oracle for oracle in ("reference", "autograd") if oracle in self.oracles]

    def _against(self, oracle: str, run: Run) -> list[Row]:
        forward = self.reference if oracle == "reference" else self.subject.forward
        assert forward is not None
        autograd = Autograd(forward, self.subject.differentiable, self.subject.gradient_names)
        try:
            truth = autograd.truth(run.arguments, run.cotangents)
            finite = truth.finite
            asked = finite and run.case in WELL_KNOWN
            doubts = autograd.doubts(truth, run.arguments, run.cotangents) if asked else Doubts()
        except Exception as error:  # whatever a forward raises that was not made for autograd
            if not run.case and oracle == "reference":
                said = f"the reference could not be asked: {quoted(error)}"
                raise ValueError(f"{said}; give one that takes forward's arguments, in float64 too") from error
            if not run.case:
                self.notes.append(f"{oracle} could not be asked: {quoted(error)}")
            return []
        if not finite:
            if not run.case:
                self.notes.append(f"{oracle} could not be asked: its own values are not finite")
            return []
        rows = self._outputs(forward, run, truth) if oracle == "reference" else []
        if not all(row.passed for row in rows):
            return rows
        if not run.case:
            self.scales |= {name: _rms(gradient) for name, gradient in truth.gradients.items()}
        judgements, found = self._judge(oracle, run, truth, doubts, forward)
        if run.case and not all(row.passed for row in found):  # perhaps it is badly conditioned there
            doubts = autograd.doubts(truth, run.arguments, run.cotangents)
            judgements, found = self._judge(oracle, run, truth, doubts, forward)
        for row in found:
            position = self._position(row.name)
            actual, against = run.gradients[row.name], judgements[row.name]
            rows.append(excused_at_kinks(row, actual, against, forward, position, run))
        return rows

    def _judgements(self, oracle: str, run: Run, truth: Truth, doubts: Doubts) -> dict[str, Judgement]:
        judgements = {}
        for name, gradient in truth.gradients.items():
            argument = run.arguments[self._position(name)]
            judgements[name] = Judgement(
                expected=None if truth.expected is None else truth.expected[name],
                truth=gradient,
                label=self.titles[name],
                dtype=argument.dtype,
                device=argument.device,
                moved=doubts.moved.get(name),
                errors=doubts.errors.get(name),
                known=gradient.numel() if name in doubts.errors and run.case in WELL_KNOWN else 1,
                floor=self._floor(name, run),
                terms=self._terms(run),
                allow_trivial=bool(run.case),
                capped=not run.case,
                summands=self._summands(doubts.moved.get(name), run) if name in self.zeros else None,
                oracle=oracle,
            )
        return judgements

    def _floor(self, name: str, run: Run) -> float:
        """What an element may be off by in a case: the rounding of a gradient as large as the example's.

        At special values a forward pass may cancel and lose half of its digits, and autograd through it too.
        """
        if not run.case:
            return 0.0
        dtype = run.arguments[self._position(name)].dtype
        epsilon = torch.finfo(dtype).eps
        rounding = FLOOR[dtype] * epsilon * self._growth(run)
        return self.scales.get(name, 0.0) * (max(rounding, sqrt(epsilon)) if run.case == "values" else rounding)

    def _growth(self, run: Run) -> float:
        """How many times larger the largest number is that is fed than the example's: so much larger is rounding."""
        pairs = [(run.arguments[i], self.arguments[i]) for i in self.subject.differentiable]
        largest = [(a.abs().max().item(), b.abs().max().item()) for a, b in pairs if a.numel() and b.numel()]
        return max([1.0, *(a / b for a, b in largest if b > 0)])

    def _judge(
        self, oracle: str, run: Run, truth: Truth, doubts: Doubts, forward: Callable[..., Any]
    ) -> tuple[Mapping[str, Judgement], Sequence[Row]]:
        judgements = self._judgements(oracle, run, truth, doubts)
        evidence = Evidence(
            arguments=dict(zip(self.subject.names, doubled(plain(run.arguments)), strict=True)),
            outputs=truth.outputs,
            cotangents=doubled(plain(run.cotangents)),
            forward=forward,
            candidates=self.candidates,
        )
        return judgements, judge_all(run.gradients, judgements, evidence).rows

    def _outputs(self, forward: Callable[..., Any], run: Run, truth: Truth) -> list[Row]:
        """The outputs against the reference's: a wrong forward with its own right derivative fails here."""
        rows = []
        for i, output in enumerate(run.outputs):
            name = "output" if len(run.outputs) == 1 else f"output {i}"
            form = Judgement(None, truth.outputs[i], name, output.dtype, output.device, oracle="reference")
            form = replace(form, terms=self._terms(run), allow_trivial=True, capped=False)
            if not run.case:
                self.sizes[name] = _rms(output)
            elif run.case in RESHAPED:  # a sum of few may cancel
                rounding = FLOOR[output.dtype] * torch.finfo(output.dtype).eps
                form = replace(form, floor=self.sizes.get(name, 0.0) * rounding)
            row = judge(name, output, form)
            if not row.passed and run.case in RESHAPED:  # perhaps it is badly conditioned there
                row = judge(name, output, replace(form, expected=self._own_output(forward, run, i)))
            rows.append(row if row.passed else replace(row, reason=f"forward is wrong: {row.reason}"))
        return rows

    def _own_output(self, forward: Callable[..., Any], run: Run, i: int) -> Tensor | None:
        """The output of the reference in the dtype on trial, if it has it."""
        try:
            with torch.no_grad():
                return outputs_of(forward(*plain(run.arguments)))[i]
        except Exception as error:
            self.notes.append(f"the reference could not be asked in the example's dtype: {quoted(error)}")
            return None

    def _summands(self, moved: Tensor | None, run: Run) -> float:
        """Of a gradient that is declared zero: the size of what cancels in it, from how far rounding moves it."""
        if moved is not None and moved.norm() > 0:
            return moved.norm().item() / EPSILON
        return sqrt(sum(c.double().norm().item() ** 2 for c in run.cotangents))

    def _dot_product(self, run: Run, at_kink: bool) -> list[Row]:
        if at_kink:
            self.notes.append("dot product was not asked: at a kink, forward mode may take another slope")
            return []
        if any(gradient is None for gradient in run.gradients.values()):
            return []
        forward, positions = self.reference or self.subject.forward, self.subject.differentiable
        try:
            return [dot_product(forward, positions, run, self.generator)]
        except Exception as error:  # no forward mode, or no float64
            self.notes.append(f"dot product could not be asked: {quoted(error)}")
            return []

    def _differences(self, run: Run, judged: Sequence[Row]) -> list[Row]:
        """Central differences, of what was not found wrong already.

        They judge in float64: of lower precision, the function's own gradients there, which then judge those on trial.
        """
        wide = self._in_double(run)
        moved = cache(partial(self._moved, wide))  # asked for only where something fails, and then once
        known, wrong = {row.name for row in judged}, {row.name for row in judged if not row.passed}
        positions = [i for i in self.subject.differentiable if run.arguments[i].numel()]
        at_once = None
        if run.case or (known and not wrong):  # otherwise each for itself, which is more exact
            at_once = self._all_cleared(positions, wide)
        if at_once and (wide is run or known):
            return [at_once]
        rows = []
        for name in run.gradients:
            position = self._position(name)
            if name in wrong or position not in positions:
                continue
            terms, ordinary = self._terms(run), self.scales.get(name, 0.0) if run.case else 0.0
            row = Row(name, name, tuple(run.arguments[position].shape), True, oracle=ORACLE)
            if not at_once:
                try:
                    row = differences(self.subject.forward, position, wide, name, terms, ordinary, self.generator)
                except Exception as error:  # forward takes the example and nothing beside it
                    self.notes.append(f"differences could not be asked for {name}: {quoted(error)}")
                    continue
            if not row.passed and run.case and row.absolute_error <= _lost_in_rounding(moved().get(name)):
                continue
            if row.passed and name not in known and wide is not run:
                row = replace(self._beside_own(name, run, wide, moved), kinks=row.kinks)
            rows.append(row if run.case or name in known else self._if_shown(row, run.gradients[name]))
        return rows

    def _in_double(self, run: Run) -> Run:
        """The same in float64, by what is on trial; the run itself if it is that already, or has no float64."""
        if all(run.arguments[i].dtype == torch.float64 for i in self.subject.differentiable):
            return run
        arguments, cotangents = doubled(plain(run.arguments)), doubled(plain(run.cotangents))
        try:
            outputs, pullback = self.subject.run(arguments)
            gradients = pullback(copies(cotangents))
        except Exception:  # a kernel of one dtype
            return run
        if len(gradients) != len(run.gradients) or not _all_double([*gradients, *outputs]):
            return run
        return replace(
            run, arguments=arguments, cotangents=cotangents, outputs=outputs,
            gradients=dict(zip(run.gradients, gradients, strict=True)),
        )  # fmt: skip

    def _beside_own(self, name: str, run: Run, wide: Run, moved: Callable[[], Mapping[str, Tensor]]) -> Row:
        """A gradient of lower precision against the same in float64, which central differences have confirmed."""
        truth, argument = wide.gradients[name], run.arguments[self._position(name)]
        assert truth is not None
        against = Judgement(
            None, truth, self.titles[name], argument.dtype, argument.device, terms=self._terms(run), oracle=ORACLE,
            floor=self._floor(name, run), allow_trivial=True, capped=not run.case,
        )  # fmt: skip
        row = judge(name, run.gradients[name], against)
        if not row.passed:
            against = replace(against, moved=moved().get(name))
            row = judge_all({name: run.gradients[name]}, {name: against}, Evidence()).rows[0]
        return replace(row, origin=f"beside its float64, which differences confirm: {row.origin}")

    def _moved(self, wide: Run) -> dict[str, Tensor]:
        """How far one unit of rounding in the arguments moves the gradients, by what is on trial, all contiguous."""
        arguments = plain(wide.arguments)
        near = nudged(arguments, self.subject.differentiable)
        try:
            before, after = (self.subject.run(fed)[1](plain(wide.cotangents)) for fed in (arguments, near))
        except Exception:  # it takes the arguments and nothing beside them
            return {}
        pairs = zip(wide.gradients, before, after, strict=True)
        return {name: (b - a).abs().nan_to_num(0.0) for name, a, b in pairs if a is not None and b is not None}

    def _all_cleared(self, positions: Sequence[int], wide: Run) -> Row | None:
        if not positions or not _all_double(wide.gradients.values()):
            return None
        ordinary = max(self.scales.values(), default=0.0) if wide.case else 0.0
        try:
            return all_cleared(self.subject.forward, positions, wide, ordinary, self.generator)
        except Exception:  # forward takes the case and nothing beside it
            return None

    def _if_shown(self, row: Row, gradient: Tensor | None) -> Row:
        """Where nothing else judges, differences that can tell nothing are a failure."""
        if not row.passed or gradient is None or row.name in self.zeros or not gradient.any():
            return row
        if row.kinks == gradient.numel():
            reason = "nothing is shown: every element sits at a kink, or forward bends too much nearby"
        elif row.tolerance > BLIND:
            reason = "nothing is shown: forward is too steep, or its values too large, for central differences"
        else:
            return row
        return replace(row, passed=False, reason=f"{reason}; choose another example, or give a reference")

    def case(self, case: Case) -> list[Row]:
        """The rows of what is fed beside the example, or instead of it."""
        rows = self._rows_of(case)
        if not all(row.passed for row in rows) and self._ill_posed(case.arguments):
            return []
        if case.group == "layouts" and not all(row.passed for row in rows):
            cotangents = None if case.cotangents is None else plain(case.cotangents)
            contiguous = replace(case, arguments=plain(case.arguments), cotangents=cotangents)
            if all(row.passed for row in self._rows_of(contiguous)):
                what = "inputs" if case.cotangents is None else "cotangents"
                strided = Diagnosis("strided", f"right for contiguous {what}, wrong when they are not: {case.name}")
                rows = [row if row.passed else replace(row, diagnosis=strided) for row in rows]
        return [replace(row, case=case.name) for row in rows]

    def _rows_of(self, case: Case) -> list[Row]:
        before = copies(case.arguments)
        try:
            outputs, pullback = self.subject.run(case.arguments)
        except Exception:  # forward does not take it, and that is its right
            return []
        if not all(output.isfinite().all() for output in outputs):
            return []
        generator = torch.Generator().manual_seed(STREAM ^ self.seed ^ 1)
        cotangents = case.cotangents or [self._random(output, generator) for output in outputs]
        kept = copies(cotangents)
        gradients = self._pull(pullback, cotangents)
        if isinstance(gradients, Row):
            return [gradients]
        if self.subject.only:  # autograd gave every gradient of the example; None is zero here
            gradients = {
                name: torch.zeros_like(case.arguments[self._position(name)]) if gradient is None else gradient
                for name, gradient in gradients.items()
            }
        pure = written_to([*before, *kept], [*case.arguments, *cotangents])
        rows = [pure] if pure else []
        run = Run(case.arguments, kept, outputs, gradients, case.group)
        for oracle in self._whole_oracles:
            if found := self._against(oracle, run):
                return rows + found + self._together(run, found)
        if "differences" in self.oracles and not self._whole_oracles:
            rows += self._differences(run, [])
        return rows

    def _ill_posed(self, arguments: Sequence[Any]) -> bool:
        """Whether rounding alone decides what forward gives, as it does at a singular matrix: it has no slope there."""
        near = nudged(arguments, self.subject.differentiable)
        try:
            pairs = zip(self._run(arguments), self._run(near), strict=True)
        except Exception:  # the case is what forward takes, and nothing beside it
            return False
        return any(not (b - a).norm() <= ILL_POSED * a.norm() for a, b in pairs)

    def _together(self, run: Run, rows: Sequence[Row]) -> list[Row]:
        """What each element may claim at a kink, they may not claim all at once."""
        if not (any(row.kinks for row in rows) and all(row.passed for row in rows)):
            return []
        forward, positions = self.reference or self.subject.forward, self.subject.differentiable
        try:
            return [together(forward, positions, run, self.generator)]
        except Exception:  # forward takes no values beside these
            return []

    def _run(self, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        return self.subject.run(arguments)[0]

    def _only(self, pullback: Pullback, names: Sequence[str]) -> Pullback:
        wanted = [self.subject.gradient_names.index(name) for name in names]

        def some(cotangents: Sequence[Any]) -> Gradients:
            gradients = pullback(cotangents)
            return tuple(gradients[i] for i in wanted)

        return some

    def _position(self, name: str) -> int:
        return self.subject.differentiable[self.subject.gradient_names.index(name)]

    def _terms(self, run: Run) -> int:
        """How many products may have been added up in one element: no more than the largest tensor has elements."""
        return max(v.numel() for v in (*run.arguments, *run.outputs) if isinstance(v, Tensor))

    def _random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return drawn.to(like.device, like.dtype)

    def _given(self) -> str:
        return ", ".join(
            f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} = {value!r}"
            for name, value in zip(self.subject.names, self.arguments, strict=True)
        )


def _lost_in_rounding(moved: Tensor | None) -> float:
    """How far off a gradient may be where forward is badly conditioned; differences cannot judge there."""
    return 0.0 if moved is None else magnified(torch.float64) * moved.abs().max().item()


def _all_double(tensors: Iterable[Tensor | None]) -> bool:
    return all(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)


def _rms(gradient: Tensor) -> float:
    return gradient.double().nan_to_num(0.0, 0.0, 0.0).norm().item() / sqrt(max(gradient.numel(), 1))


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"({Path(frame.filename).name}, line {frame.lineno})"
