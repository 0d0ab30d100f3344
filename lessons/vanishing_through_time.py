"""How the gradient of a state changes its size on the way back through time, by cell and recurrent matrix.

∂h_{t−1} = (∂h_t ⊙ σ′(z_t)) W_hh             RN1 and RN2, where the cost reads the last state only

The same matrix stands in every step. So per step ‖∂h‖ is multiplied by

at most σ_max                                the largest singular value of W_hh, because σ′ ≤ 1: a bound for every step
ρ in the long run, where σ′ is 1             the spectral radius of W_hh, because ‖v Wᵏ‖^(1/k) → ρ for nearly every v
about ρ · RMS(σ′)                            where the slopes differ: they make W_hh diag(σ′) of W_hh, and for large
                                             random W_hh its radius is that much smaller

The last line predicts a little too much: slopes that change from step to step let no direction of W_hh prevail.

LSTM and GRU have a second path from state to state that W_hh does not touch: ∂c_t ⊙ f_t (LS2), ∂h_t ⊙ u_t (GR1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from lessons.lesson import Report
from lessons.measure import AGREE, STEP
from lessons.steps import States, walk
from manual_backprop.models.recurrent import CELLS, GATES
from training.dashboard.figures import BLUE, COLORS, GREEN, VERMILION, new_figure
from training.data import Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Recurrent networks: the gradient vanishes or explodes through time"
CLAIM = (
    "On its way back through time the gradient is multiplied by about the same factor at every step, so over many "
    "steps it vanishes or explodes. In a plain recurrent layer the factor is about the spectral radius of the "
    "recurrent matrix times the size of σ′, and never more than the largest singular value. LSTM and GRU have a second "
    "path past that matrix, so their factor depends far less on it; at ordinary initial weights theirs vanishes too."
)
SEE = (
    "Left: the gradient of the state by how many steps it lies before the cost, for a tanh layer and three sizes of "
    "its recurrent matrix. Dashed: what the matrix alone predicts. The measured lines (solid) fall more steeply or "
    "rise less, because tanh saturates. Middle: one size, all cells. Right: the factor per step. Without saturation it "
    "lies on the diagonal (black); tanh bends away from it, relu has half of its slopes at 0, and GRU and LSTM "
    "start near ½, the value of their gates, and rise slowly. Dashed: predicted from the matrix and σ′."
)
SOURCE = "Hochreiter 1991; Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013"
WIDTH, STEPS, SEQUENCES = 200, 100, 10
RADII = (0.5, 1.0, 1.5, 2.0, 3.0)
NO_INPUT = "tanh, no input"
COLOR = {NO_INPUT: "black", "tanh": VERMILION, "relu": BLUE, "gru": GREEN, "lstm": COLORS[4]}
MOVED = 3  # steps before the cost, where a state is really moved
AS_PREDICTED = {NO_INPUT: 0.05, "tanh": 0.15, "relu": 0.15}  # relative error of the factor
SPREAD = 2  # times, at most, that the factor of a cell with gates rises from the least radius to the largest


@dataclass(frozen=True)
class Passage:
    """‖∂C/∂state‖ by steps before the cost: 0, 1, … T."""

    norms: Tensor  # (T + 1, sequences)
    slope: float  # RMS(σ′) over all steps
    error: float  # of a gradient, against moving the state

    @property
    def sizes(self) -> Tensor:
        """(T + 1,): the geometric mean over the sequences."""
        return self.norms.log().mean(dim=1).exp()

    @property
    def factor(self) -> float:
        """What a step multiplied the gradient by: from the slope of the straight line through (k, ln ‖∂C/∂state‖)."""
        k = torch.arange(len(self.norms), dtype=self.norms.dtype)
        k = k - k.mean()
        return torch.exp((k @ self.sizes.log()) / (k @ k)).item()

    @property
    def largest(self) -> float:
        """The largest factor of any step and sequence."""
        return (self.norms[1:] / self.norms[:-1]).max().item()


def recurrent_matrix(gates: int, generator: Generator) -> Tensor:
    """Random W_hh (gates · N, N), whose blocks have a spectral radius of 1."""
    blocks = torch.randn(gates, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    radii = torch.linalg.eigvals(blocks).abs().amax(dim=1)
    return (blocks / radii.view(-1, 1, 1)).flatten(0, 1)


def norms(gradients: Sequence[States]) -> Tensor:
    """(steps, sequences): the norm of the gradient of all of a state, the last step first."""
    return torch.stack([torch.cat(of_step, dim=1).norm(dim=1) for of_step in reversed(gradients)])


def passages(name: str, seed: int) -> tuple[dict[float, Passage], Tensor]:
    """A cell's passages for each radius, and the first block of its W_hh at radius 1.

    The state begins at 0, x ~ N(0, 1), and C = v · h_T with a random v of length 1 for each sequence.
    """
    cell = name if name in CELLS else "rnn"
    generator = Generator().manual_seed(seed)
    W_hh = recurrent_matrix(GATES[cell], generator)
    W_ih = torch.randn(len(W_hh), WIDTH, generator=generator, dtype=torch.float64) / sqrt(WIDTH)
    x = torch.randn(SEQUENCES, STEPS, WIDTH, generator=generator, dtype=torch.float64) * (name != NO_INPUT)
    v = torch.randn(SEQUENCES, WIDTH, generator=generator, dtype=torch.float64)
    v = v / v.norm(dim=1, keepdim=True)
    options: dict[str, Any] = {"activation": "relu"} if name == "relu" else {}
    zero, bias = torch.zeros_like(v), W_hh.new_zeros(len(W_hh))
    others = [zero] * (len(CELLS[cell].OUTPUTS) - 2)  # of an LSTM c

    found = {}
    for radius in RADII:
        weights = W_ih, radius * W_hh, bias, bias
        states, gradients = walk(CELLS[cell], x, [zero, *others], weights, [v, *others], **options)
        h = torch.stack([of_step[0] for of_step in states[1:]])
        slopes = (h > 0).to(h.dtype) if name == "relu" else 1 - h * h
        error = moved(CELLS[cell], x[:1, :MOVED], [zero[:1], *others], weights, v[:1], **options)
        found[radius] = Passage(norms(gradients), slopes.square().mean().sqrt().item(), error)
    return found, W_hh[:WIDTH]


def moved(
    cell: Any, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], v: Tensor, **options: Any
) -> float:
    """How much ‖∂C/∂h₀‖ differs from the slope of C as h₀ is moved along the gradient, relatively."""
    h, *others = (state[:1] for state in states)
    _, gradients = walk(cell, x, [h, *others], weights, [v, *others], **options)
    dh = gradients[0][0]
    length = dh.norm()

    def cost(at: Tensor) -> Tensor:
        _, last, *_ = cell.forward(x, at, *others, *weights, **options)
        return (v * last).sum()

    step = STEP * dh / length
    return abs(((cost(h + step) - cost(h - step)) / (2 * STEP) / length).item() - 1)


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    found: dict[str, dict[float, Passage]] = {}
    for name in COLOR:
        found[name], W = passages(name, seed)
        if name == "tanh":
            largest = torch.linalg.svdvals(W)[0].item()
    factor = {name: {radius: p.factor for radius, p in of_cell.items()} for name, of_cell in found.items()}
    predicted = {name: {r: r * p.slope for r, p in found[name].items()} for name in AS_PREDICTED}
    table = [["factor per step, by spectral radius of W_hh", *(f"{radius:g}" for radius in RADII)]]
    table += [["bound: largest singular value", *(f"{radius * largest:.2f}" for radius in RADII)]]
    for name in COLOR:
        if name in ("tanh", "relu"):
            table += [[f"{name}: predicted, radius · RMS(σ′)", *(f"{value:.3f}" for value in predicted[name].values())]]
        table += [[f"{name}: measured", *(f"{value:.3f}" for value in factor[name].values())]]

    errors = {name: max(abs(factor[name][r] / p - 1) for r, p in predicted[name].items()) for name in predicted}
    bounded = all(found[n][r].largest <= r * largest * (1 + 1e-9) for n in ("tanh", "relu", NO_INPUT) for r in RADII)
    spread = {name: factor[name][RADII[-1]] / factor[name][RADII[0]] for name in COLOR}
    error = max(p.error for of_cell in found.values() for p in of_cell.values())
    tanh, relu = factor["tanh"], factor["relu"]
    holds = all(errors[name] < limit for name, limit in AS_PREDICTED.items()) and bounded and error < AGREE
    holds &= tanh[1.0] < 0.9 and tanh[3.0] > 1.1
    holds &= all(
        spread[name] < SPREAD and factor[name][0.5] > 0.5 and factor[name][1.0] < 0.9 for name in ("gru", "lstm")
    )
    verdict = (
        f"without input a tanh layer has the factor that the spectral radius predicts, within {errors[NO_INPUT]:.0%}. "
        f"With input, a radius of 1 gives {tanh[1.0]:.2f} for tanh and {relu[1.0]:.2f} for relu, and a radius of 3 "
        f"{tanh[3.0]:.2f} and {relu[3.0]:.2f}, within {max(errors['tanh'], errors['relu']):.0%} of radius · RMS(σ′); "
        f"no step exceeds the largest singular value. From radius 0.5 to 3 the factor rises {spread['tanh']:.1f}-fold "
        f"for tanh, {spread['gru']:.1f}-fold for GRU and {spread['lstm']:.1f}-fold for LSTM, which start at "
        f"{factor['gru'][0.5]:.2f} and {factor['lstm'][0.5]:.2f}. Moving a state confirms its gradient, to {error:.0e}."
    )

    figure = new_figure(11, 3.8)
    left, middle, right = figure.subplots(1, 3)
    for radius, color in zip((0.5, 1.5, 3.0), (VERMILION, GREEN, BLUE), strict=True):
        left.plot(found["tanh"][radius].sizes, color=color, label=f"radius {radius:g}")
        draw_powers(left, radius, color)
    left.set_title("tanh, by spectral radius of W_hh")
    for name, color in COLOR.items():
        middle.plot(found[name][1.5].sizes, color=color, label=name)
    draw_powers(middle, 1.5, "black")
    middle.set_title("all cells, radius 1.5")
    for axes in (left, middle):
        axes.set_yscale("log")
        axes.set_xlabel("steps before the cost")
        axes.set_ylabel("‖∂C/∂state‖")
    for name, color in COLOR.items():
        right.plot(RADII, list(factor[name].values()), ".-", color=color, label=name)
        if name in predicted:
            right.plot(RADII, list(predicted[name].values()), "--", color=color, linewidth=1)
    right.axhline(1, color="gray", linewidth=0.8)
    right.set_ylim(0, 2.2)
    right.set_title("the factor: 1 keeps the gradient")
    right.set_xlabel("spectral radius of W_hh")
    right.set_ylabel("factor per step")
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=8)
    charts = {name: list(enumerate(p[1.5].sizes.tolist())) for name, p in found.items()}
    return Report(table, holds, verdict, figure, {"norm of the gradient by steps before the cost": charts})


def draw_powers(axes: Axes, radius: float, color: str) -> None:
    """What the matrix alone predicts: ρᵏ."""
    axes.plot([radius**k for k in range(STEPS + 1)], "--", color=color, linewidth=1)
