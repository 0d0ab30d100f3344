"""Exact oracles: autograd through a forward. What it says is final wherever that forward is smooth (kinks.py)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from gradient_check.claims import Claims, Doubt, claimed
from gradient_check.oracles import OtherOutputs, contiguous, copies, doubled, gradients_and_outputs, moved_by
from gradient_check.run import Run
from gradient_check.tolerances import BLINDING

EPSILON = torch.finfo(torch.float64).eps
NEAR = 1 / 64  # how far off rounding is drawn anew, also where a saturated function moves little
ANEW = 64  # units of rounding: so far off, the same numbers are rounded otherwise
DRAWS = 6
JUMP = 1e-4  # of the root mean square: what one unit of rounding moves so far lies at a kink, or is lost in rounding

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Truth:
    """Gradients by name and the oracle's outputs, in float64, and in the dtype on trial where autograd has it."""

    gradients: Gradients
    outputs: tuple[Tensor, ...]
    expected: Gradients | None
    expected_outputs: tuple[Tensor, ...] | None
    moved: dict[str, Tensor] = field(default_factory=dict)  # how far one unit of float64's rounding moves it
    errors: dict[str, Tensor] = field(default_factory=dict)  # of the oracle in the dtype on trial, at inputs nearby
    scatter: dict[str, Tensor] = field(default_factory=dict)  # of the error of what is on trial, at inputs nearby
    refused: str = ""  # why there is nothing in the dtype on trial

    @property
    def finite(self) -> bool:
        return all(bool(t.isfinite().all()) for t in (*self.gradients.values(), *self.outputs))

    def doubt(self, name: str, run: Run) -> Doubt:
        """What is known of a gradient and of an output alike."""
        return Doubt(
            errors=self.errors.get(name),
            moved=self.moved.get(name),
            ordinary=run.ordinary.get(name, 0.0),
            scatter=self.scatter.get(name),
            floor=run.floors.get(name, 0.0),
            longest_sum=run.longest_sum,
            leeway=run.said.leeway,
        )

    def jumps(self, name: str) -> Tensor | None:
        """The elements that rounding in the inputs moves by more than a digit: those at a kink, if there is one."""
        if name not in self.moved:
            return None
        rms = self.gradients[name].norm().item() / sqrt(max(self.gradients[name].numel(), 1))
        return self.moved[name].cpu() > JUMP * rms


@dataclass(frozen=True)
class Exact:
    """Autograd through `forward`: that on trial, or another one that the caller gave as `argument`."""

    title: str
    forward: Callable[..., Any]
    argument: str = ""

    @property
    def independent(self) -> bool:
        """Whether the outputs are to be the same, too."""
        return self.argument == "reference"

    def truth(self, run: Run, doubts: bool) -> Truth:
        """Whatever `forward` raises where it was not made for autograd or for float64 passes through."""
        try:
            gradients, outputs = self._gradients(
                run, *(doubled(contiguous(v)) for v in (run.arguments, run.cotangents))
            )
        except OtherOutputs as other:
            if not self.independent or len(other.outputs) != len(run.outputs):
                raise
            return Truth({}, other.outputs, None, None)
        expected, own, refused = gradients, outputs, ""
        if any(run.arguments[i].dtype != torch.float64 for i in run.subject.differentiable):
            try:
                expected, own = self._gradients(run, contiguous(run.arguments), contiguous(run.cotangents))
            except Exception as error:  # not implemented at that dtype: there is no autograd to ask
                refused = f"{type(error).__name__}: {error}"
        truth = Truth(gradients, outputs, None if refused else expected, None if refused else own, refused=refused)
        if doubts and truth.finite:
            self._doubt(truth, run, contiguous(run.arguments), contiguous(run.cotangents))
        return truth

    def beside(self, run: Run, distance: float, draw: int) -> Gradients:
        """The gradients at arguments nearby, moved at random by that part of max(1, |v|)."""
        generator = torch.Generator().manual_seed(draw)
        arguments = doubled(contiguous(run.arguments))
        for i in run.subject.differentiable:
            sign = 2.0 * torch.randint(0, 2, arguments[i].shape, generator=generator, device="cpu") - 1
            arguments[i] = arguments[i] + distance * arguments[i].abs().clamp(min=1) * sign.to(arguments[i])
        return self._gradients(run, arguments, doubled(contiguous(run.cotangents)))[0]

    def scattered(self, run: Run, truth: Truth) -> Truth:
        """With how the error scatters where rounding falls another way: an error that is rounding does, and a mistake
        does not, nor does a lower precision inside, for which inputs so near are the same."""
        errors: dict[str, list[Tensor]] = {}
        for draw in range(DRAWS):
            near = list(contiguous(run.arguments))
            for i in run.subject.differentiable:
                dtype = torch.float32 if run.said.leeway.single else near[i].dtype
                near[i] = moved_by((ANEW + 7 * draw) * torch.finfo(dtype).eps, near[i], draw)
            cotangents = contiguous(run.cotangents)
            outputs, pullback = run.subject.run(copies(near))
            given = dict(zip(run.gradients, pullback(copies(cotangents)), strict=True)) | _named(outputs)
            right = self._at(run, doubled(near), doubled(cotangents))
            for name, value in given.items():
                if value is not None and value.shape == right[name].shape:
                    errors.setdefault(name, []).append(value.double() - right[name])
        stacks = {name: torch.stack(some) for name, some in errors.items()}
        return replace(
            truth, scatter={k: (v - v.mean(0)).abs().amax(0).nan_to_num(0.0, 0.0) for k, v in stacks.items()}
        )

    def of_outputs(self, run: Run, truth: Truth) -> list[tuple[Claims, Tensor]]:
        """What the outputs should be: a wrong forward with its own right derivative fails here."""
        pairs = []
        for i, output in enumerate(run.outputs):
            name = output_name(i, len(run.outputs))
            own = None if truth.expected_outputs is None else truth.expected_outputs[i]
            doubt = replace(truth.doubt(name, run), expected=own)
            claims = claimed(name, name, self.title, truth.outputs[i], doubt, output.dtype, output.device)
            pairs.append((replace(claims, blind=""), output))
        return pairs

    def of_gradient(self, name: str, run: Run, truth: Truth, smooth: Tensor | None = None) -> Claims:
        """What one gradient should be; `smooth` are the elements whose movement by rounding counts, or all."""
        argument, doubt = run.argument(name), truth.doubt(name, run)
        doubt = replace(
            doubt,
            expected=None if truth.expected is None else truth.expected[name],
            known=truth.gradients[name].numel() if name in truth.errors and run.is_well_known else 1,
            summands=self._summands(doubt.moved, run) if name in run.said.zeros else None,
        )
        if doubt.moved is not None and smooth is not None:
            doubt = replace(doubt, moved=doubt.moved.cpu() * smooth)
        value, hides = truth.gradients[name], {} if run.case else BLINDING
        return claimed(name, run.said.titles[name], self.title, value, doubt, argument.dtype, argument.device, hides)

    def _summands(self, moved: Tensor | None, run: Run) -> float:
        """Of a gradient that is declared zero: the size of what cancels in it, from how far rounding moves it."""
        if moved is not None and moved.norm() > 0:
            return moved.norm().item() / EPSILON
        return sqrt(sum(c.double().norm().item() ** 2 for c in run.cotangents))

    def _doubt(self, truth: Truth, run: Run, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> None:
        """Found by moving arguments and cotangents: by one unit of rounding, or far enough to be rounded anew."""
        for draw in range(2):
            again = self._at(run, *_moved(EPSILON, run, doubled(arguments), doubled(cotangents), draw))
            _keep_most(truth.moved, again, {**truth.gradients, **_named(truth.outputs)})
        if truth.expected is not None and truth.expected is not truth.gradients:
            for draw in range(4):
                near, fed = _moved(NEAR, run, arguments, cotangents, draw)
                exact = self._at(run, doubled(near), doubled(fed))
                _keep_most(truth.errors, self._at(run, near, fed), exact)

    def _at(self, run: Run, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
        """Gradients and outputs by name."""
        gradients, outputs = self._gradients(run, arguments, cotangents)
        return {**gradients, **_named(outputs)}

    def _gradients(
        self, run: Run, arguments: Sequence[Any], cotangents: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        found, outputs = gradients_and_outputs(self.forward, arguments, run.subject.differentiable, cotangents)
        return dict(zip(run.subject.gradient_names, found, strict=True)), outputs


def output_name(i: int, count: int) -> str:
    return "output" if count == 1 else f"output {i}"


def _named(outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    return {output_name(i, len(outputs)): output for i, output in enumerate(outputs)}


def _moved(
    part: float, run: Run, arguments: Sequence[Any], cotangents: Sequence[Tensor], draw: int
) -> tuple[list[Any], list[Tensor]]:
    """Everything by that part of itself."""
    positions = run.subject.differentiable
    near = [moved_by(part, v, draw) if i in positions else v for i, v in enumerate(arguments)]
    return near, [moved_by(part, c, draw) for c in cotangents]


def _keep_most(most: dict[str, Tensor], found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    for name, value in found.items():
        error = (value.double() - exact[name]).abs().nan_to_num(0.0, 0.0)
        most[name] = torch.maximum(most[name], error) if name in most else error
