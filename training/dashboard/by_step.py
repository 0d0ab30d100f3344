"""Inside of backpropagation through time: ∂C/∂h_t and the gates at every step of a recurrent layer, and their pictures.

C is the cost of what the last step predicts, so that ∂C/∂h_t says how much of it comes back to step t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from manual_backprop.losses import Loss
from manual_backprop.tape import Tape
from training.dashboard import figures
from training.data import Examples
from training.families.model import Model
from training.learners.base import Learner, own

SEQUENCES = 16  # of the test set, whose gradients are averaged
UNITS = 64  # of a layer that are drawn
LABELS = 70  # of steps that are drawn
LAYERS = 4  # whose gates are drawn, the first ones
SIGNED = ("c", "h")  # from −1 to 1, or beyond it; gates are from 0 to 1


class StepByStep(Tape):
    """Takes each call of a recurrent layer as T calls of one step.

    So backward sees ∂C/∂h_t = dy_t + dh between the steps. `gates` and `gradients` hold, by call, what is seen: each
    gate and each ∂C/∂h_t as (T, B, N).
    """

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        super().__init__(buffers=buffers)
        self.gates: dict[str, dict[str, Tensor]] = {}
        self.gradients: dict[str, Tensor] = {}

    def forward(self, layer: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if not hasattr(layer, "gates"):
            return super().forward(layer, name, *arguments, **options)
        count = len(layer.OUTPUTS) - 1
        x, states, weights = arguments[0], arguments[1 : 1 + count], arguments[1 + count :]
        steps = range(x.shape[1])[:: -1 if options.pop("reverse", False) else 1]
        ys: list[Any] = [None] * len(steps)
        caches = list(ys)
        for t in steps:
            ys[t], *states, caches[t] = layer.forward(x[:, t : t + 1], *states, *weights, **options)
        self._remember(name, (steps, caches))
        seen = [layer.gates(cache) for cache in caches]
        self.gates[name] = {gate: torch.cat([step[gate] for step in seen]) for gate in seen[0]}
        return torch.cat(ys, dim=1), *states

    def backward(self, layer: Any, name: str, *d_outputs: Tensor, **options: Any) -> Any:
        if name not in self.gates:
            return super().backward(layer, name, *d_outputs, **options)
        dy, *d_states = d_outputs
        steps, caches = self.take(name)
        dx: list[Any] = [None] * len(steps)
        d_h = list(dx)
        sums: list[Tensor] = []
        for t in reversed(steps):
            d_h[t] = dy[:, t] + d_states[0]
            dx[t], *gradients = layer.backward(dy[:, t : t + 1], *d_states, caches[t], **options)
            d_states, own = gradients[: len(d_states)], gradients[len(d_states) :]
            sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
        self.gradients[name] = torch.stack(d_h)
        return None if dx[0] is None else torch.cat(dx, dim=1), *d_states, *sums


@dataclass(frozen=True, eq=False)
class Inside:
    """By a recurrent layer's call: the mean over sequences of ‖∂C/∂h_t‖, (T,), and gates of the first one, (T, N)."""

    x: Tensor  # the first sequence
    gradients: dict[str, Tensor]
    gates: dict[str, dict[str, Tensor]]

    @property
    def steps(self) -> int:
        return len(next(iter(self.gradients.values())))


def inside(model: Model, loss: Loss, learner: Learner, examples: Examples) -> Inside | None:
    """Of the first examples, each from an empty state, at the learner's parameters; None without a recurrent layer.

    By the hand-written pass, in float64 on the CPU, whichever implementation the learner is.
    """
    x, y = examples.batch(torch.arange(min(SEQUENCES, len(examples)), device=examples.device), torch.float64)
    p = {name: v.detach().to("cpu", torch.float64) for name, v in learner.parameters.items()}
    tape = StepByStep(own(learner.buffers, torch.device("cpu"), torch.float64))
    last = slice(examples.targets - 1, None, examples.targets)
    with torch.inference_mode():
        output = model.forward(p, x.cpu(), tape)
        if not tape.gates:
            return None
        _, cache = loss.forward(output[last], y.cpu()[last], count=1)
        d_output = torch.zeros_like(output)
        d_output[last] = loss.backward(1.0, cache)
        model.backward(p, d_output, {}, tape)
    gradients = {name: tape.gradients[name].norm(dim=2).mean(dim=1) for name in tape.gates}
    first = {name: {gate: v[:, 0] for gate, v in gates.items()} for name, gates in tape.gates.items()}
    return Inside(x[0], gradients, first)


def gradient_by_step(gradients: Mapping[str, Tensor], steps: Sequence[str]) -> Image.Image:
    """The size of ∂C/∂h_t by step, a line for each layer, on a logarithmic scale; what is zero is left out."""
    figure = figures.new_figure(max(5.0, 1.5 + 0.13 * min(len(steps), LABELS)), 4.4)
    axes = figure.add_subplot()
    for (name, sizes), color in zip(gradients.items(), cycle(figures.COLORS), strict=False):
        shown = sizes.where((sizes > 0) & sizes.isfinite(), torch.nan)
        axes.plot(range(len(sizes)), shown, ".-", color=color, label=name)
    axes.set_yscale("log")
    axes.set_title("‖∂C/∂h‖ by time step, C of the last step's prediction")
    _label(axes, steps)
    axes.grid(axis="y", alpha=0.3)
    if len(gradients) <= len(figures.COLORS):
        figures.legend(axes)
    return figures.drawn(figure)


def gates_by_step(name: str, gates: Mapping[str, Tensor], steps: Sequence[str]) -> Image.Image:
    """A heat map of each gate: time to the right, units upwards, every k-th of them where there are many."""
    width = max(5.0, 1.5 + 0.13 * min(len(steps), LABELS))
    figure = figures.new_figure(width, 0.6 + 2.0 * len(gates))
    for row, (gate, values) in enumerate(gates.items(), 1):
        axes = figure.add_subplot(len(gates), 1, row)
        every = -(-values.shape[1] // UNITS)
        shown = values[:, ::every].T.numpy()
        full = max(1.0, float(abs(shown).max())) if gate in SIGNED else 1.0
        colors, low = (figures.signed_colors(), -full) if gate in SIGNED else ("Blues", 0.0)
        edges = (-0.5, len(shown[0]) - 0.5, -0.5 * every, (len(shown) - 0.5) * every)
        axes.imshow(shown, colors, aspect="auto", origin="lower", extent=edges, vmin=low, vmax=full)
        scale = f"orange −{full:.3g} to blue {full:.3g}" if gate in SIGNED else "white 0 to blue 1"
        axes.set_title(f"{name}: {gate}, {scale}", fontsize=10)
        axes.set_ylabel("unit")
        axes.set_xticks([])
    _label(axes, steps)
    return figures.drawn(figure)


def _label(axes: Any, steps: Sequence[str]) -> None:
    shown = range(0, len(steps), -(-len(steps) // LABELS))
    upright = max(map(len, steps)) > 1
    names = [steps[t] for t in shown]
    axes.set_xticks(shown, names, fontsize=7, rotation=90 if upright else 0, parse_math=False)
