"""What keeps the gradient in an LSTM: from cell to cell it is only multiplied by the forget gate.

∂c_{t−1} = ∂c_t ⊙ f_t + …                    LS9, and LS2 for what comes back to c through the state h

Over k steps this path alone multiplies ∂c by the product of k forget gates, element by element: by 1 where the gate is
open (f = 1), by ½ᵏ where its z is 0. The path of a plain recurrent layer is ∂h_{t−1} = (∂h_t ⊙ σ′) W_hh (RN1, RN2).

The task needs memory: name the first of 30 random symbols; the 29 others only disturb. The forget gates start at
σ(0) = 0.5 or, by their bias, at σ(3) = 0.95. The plain layer of the same width learns it from some initial weights
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from lessons.lesson import Curve, Report
from lessons.measure import distance, outputs
from lessons.steps import walk
from manual_backprop.clipping import by_norm
from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.layers import lstm
from manual_backprop.losses import SoftmaxCrossEntropy
from manual_backprop.models.recurrent import CELLS, PARAMETERS, Recurrent
from manual_backprop.optimizers import Adam
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from training.dashboard.figures import BLUE, GREEN, VERMILION, new_figure
from training.data import Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Why an LSTM remembers: no matrix lies between its cells, only the forget gate"
CLAIM = (
    "From cell to cell an LSTM multiplies the gradient by the forget gate and by no matrix. Gates that start at ½ "
    "halve it at every step, and the network does not learn what it has to remember for 30 steps. With gates that "
    "start near 1 the gradient arrives, the network learns, and its cells go on holding what they took in."
)
SEE = (
    "Left: the gradient of the state by how many steps it lies before the last, before training. It falls steeply "
    "where the forget gates f start at ½ (green), and stays large where they start at 0.95 (blue). Dashed: what the "
    "product of the forget gates alone hands back; the rest of the gradient comes through the states h. Middle: the "
    "same after training. Right: how much of its first value each cell holds at each step."
)
SOURCE = "Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000 (the forget gate)"
SYMBOLS, LENGTH, WIDTH = 4, 30, 16
STEPS, BATCH, RATE, CLIP = 400, 50, 0.01, 1.0  # of training, by Adam
GATES = LENGTH - 2  # between c₁ and c_{T−1}, which is the last one that a state is handed back to
TESTED = 500  # sequences
HALF, OPEN = "lstm, f from 0.5", "lstm, f from 0.95"
NETWORKS = {"rnn": ("rnn", 0.0), HALF: ("lstm", 0.0), OPEN: ("lstm", 3.0)}  # cell, first bias of its forget gates
EXACT, VANISHED, ARRIVES = 1e-12, 1e-3, 0.01  # an error, and factors over GATES steps
LEARNED, GUESSED = 0.95, 0.5  # accuracies; guessing is right in 0.25
COLOR = {"rnn": VERMILION, HALF: GREEN, OPEN: BLUE}


@dataclass(frozen=True)
class Memory:
    """What comes back to the states of a network from the logit of the correct class, by step."""

    gradient: Tensor  # (T − 1,): mean ‖∂z_y/∂c_t‖ for t = T − 1 … 1, of an rnn ‖∂z_y/∂h_t‖
    accuracy: float
    path: Tensor  # (T − 1,): what the cells alone hand back, ∂c_{T−1} ⊙ f_{T−1} ⊙ … ⊙ f_{t+1}; of an rnn empty
    gates: Tensor  # (sequences, T, N): f₁ … f_T; of an rnn empty


def draw(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Sequences of random symbols, each a row of a picture x (count, LENGTH · SYMBOLS), and their first symbols y."""
    symbols = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
    return torch.eye(SYMBOLS, dtype=torch.float64)[symbols].flatten(1), symbols[:, 0]


def network(cell: str, bias: float, seed: int) -> tuple[Recurrent, Parameters]:
    """At its initial weights; `bias` is that of an LSTM's forget gates."""
    model = Recurrent(cell, (1, LENGTH, SYMBOLS), SYMBOLS, WIDTH)
    params = Parameters(model.shapes, dtype=torch.float64)
    initialize(params, INITIALIZERS["xavier"], seed)
    if cell == "lstm":
        params["layer1.bias_ih_l0"][WIDTH : 2 * WIDTH] = bias
    return model, params


def train(model: Recurrent, params: Parameters, seed: int) -> Curve:
    """Adam on new sequences in every step; the cost by step."""
    loss, optimizer, generator = SoftmaxCrossEntropy(), Adam(), Generator().manual_seed(seed)
    gradients, state = params.zeros_like(), optimizer.init(params.theta)
    costs = []
    for step in range(1, STEPS + 1):
        x, y = draw(BATCH, generator)
        tape = Tape()
        C, cache = loss.forward(model.forward(params, x, tape), y)
        model.backward(params, loss.backward(1.0, cache), gradients, tape)
        lr, t = torch.tensor([RATE, step], dtype=torch.float64)
        optimizer.update(params.theta, by_norm(gradients.theta, CLIP), state, lr, t, None, params.split)
        if step % 10 == 0:
            costs.append((step, C.item()))
    return costs


def examine(model: Recurrent, params: Parameters, x: Tensor, y: Tensor) -> Memory:
    """∂z_y/∂h_T is the correct class's row of the last layer's weights; no gradient comes to c_T from above."""
    cell, weights = CELLS[model.cell], [params[f"layer1.{name}"] for name in PARAMETERS]
    accuracy = (outputs(model, params, x).argmax(dim=1) == y).double().mean().item()
    zero, steps = x.new_zeros(len(x), WIDTH), x.view(len(x), LENGTH, SYMBOLS)
    others = [zero] * (len(cell.OUTPUTS) - 2)
    states, gradients = walk(cell, steps, [zero, *others], weights, [params["linear.weight"][y], *others])
    back = [gradient[-1] for gradient in gradients[LENGTH - 1 : 0 : -1]]
    found = mean_norms(back)
    if model.cell == "rnn":
        return Memory(found, accuracy, found[:0], found[:0])
    gates = torch.stack([forget_gates(steps[:, t], states[t][0], weights) for t in range(LENGTH)], dim=1)
    path = [back[0]]
    for t in range(LENGTH - 2, 0, -1):
        path.append(path[-1] * gates[:, t])
    return Memory(found, accuracy, mean_norms(path), gates)


def kept(gates: Tensor) -> Tensor:
    """(T − 1, N) for f (sequences, T, N): what each cell holds of c₁ after steps 2 … T, the mean of f₂ ⊙ … ⊙ f_t."""
    return gates[:, 1:].cumprod(dim=1).mean(dim=0)


def mean_norms(vectors: list[Tensor]) -> Tensor:
    """Of (B, N) for each step, the mean length over the sequences."""
    return torch.stack(vectors).norm(dim=2).mean(dim=1)


def forget_gates(x: Tensor, h: Tensor, weights: list[Tensor]) -> Tensor:
    """f_t = σ(z_f), the second block of z_t."""
    W_ih, W_hh, b_ih, b_hh = (v[WIDTH : 2 * WIDTH] for v in weights)
    return torch.sigmoid(x @ W_ih.T + b_ih + h @ W_hh.T + b_hh)


def cells_alone(bias: Tensor, seed: int) -> tuple[Tensor, float, float]:
    """Cells without any weights: their forget gates f, and of the gradient after as many steps as there are gates.

    What the norm was multiplied by; and the relative error of the gradient, against the gradient times the power of f.
    """
    c, dc = torch.randn(2, 5, WIDTH, generator=Generator().manual_seed(seed), dtype=torch.float64)
    weights = [c.new_zeros(4 * WIDTH, n) for n in (SYMBOLS, WIDTH)] + [c.new_zeros(4 * WIDTH) for _ in range(2)]
    weights[2][WIDTH : 2 * WIDTH] = bias
    zero, f = torch.zeros_like(c), torch.sigmoid(bias)
    _, gradients = walk(lstm, c.new_zeros(5, GATES, SYMBOLS), [zero, c], weights, [zero, dc])
    found = gradients[0][1]
    return f, (found.norm() / dc.norm()).item(), distance(found, dc * f**GATES)


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    biases = torch.stack([torch.full((WIDTH,), b, dtype=torch.float64) for b in (0.0, 3.0, 40.0)])  # σ(40) is 1
    alone = [cells_alone(bias, seed) for bias in biases]
    x, y = draw(TESTED, Generator().manual_seed(seed + 1))
    before, after, costs = {}, {}, {}
    for name, (cell, bias) in NETWORKS.items():
        model, params = network(cell, bias, seed)
        before[name] = examine(model, params, x, y)
        costs[name] = train(model, params, seed)
        after[name] = examine(model, params, x, y)

    table = [["network", "accuracy", "mean forget gate", f"product of {GATES} gates", "factor of the gradient"]]
    for f, measured, _ in alone:
        gate = f.mean().item()
        table += [[f"cells alone, f = {gate:.2g}", "", f"{gate:.3f}", f"{gate**GATES:.1e}", f"{measured:.1e}"]]
    for name in NETWORKS:
        for when, memory in (("untrained", before[name]), ("trained", after[name])):
            gated = [f"{memory.gates.mean():.3f}", f"{multiplied(memory.path):.1e}"] if len(memory.path) else ["", ""]
            table += [[f"{name}, {when}", f"{memory.accuracy:.0%}", *gated, f"{multiplied(memory.gradient):.1e}"]]

    error = max(deviation for *_, deviation in alone)
    product = {name: (multiplied(before[name].path), multiplied(after[name].path)) for name in (HALF, OPEN)}
    found = {name: (multiplied(before[name].gradient), multiplied(after[name].gradient)) for name in NETWORKS}
    holds = error < EXACT and found[HALF][0] < VANISHED and after[HALF].accuracy < GUESSED
    holds &= min(*found[OPEN], *product[OPEN]) > ARRIVES and after[OPEN].accuracy > LEARNED
    verdict = (
        f"where nothing else is connected, the gradient is multiplied by the gates' product, to {error:.0e}. With "
        f"gates that start at ½, {GATES} steps multiply it by {found[HALF][0]:.0e} (the gates alone by "
        f"{product[HALF][0]:.0e}), and after training the accuracy is {after[HALF].accuracy:.0%} (guessing: 25%). With "
        f"gates that start at 0.95, by {found[OPEN][0]:.1f} (the gates alone by {product[OPEN][0]:.2f}), and the "
        f"accuracy is {after[OPEN].accuracy:.0%}; the trained gates have a product of {product[OPEN][1]:.2f}. The "
        f"plain layer, after the same training, reaches {after['rnn'].accuracy:.0%}."
    )

    figure = new_figure(11, 3.8)
    left, middle, right = figure.subplots(1, 3)
    draw_gradients(left, before, "before training")
    draw_gradients(middle, after, "after training")
    steps = range(2, LENGTH + 1)
    first, *_ = right.plot(steps, kept(after[OPEN].gates), color=BLUE, linewidth=0.8)
    first.set_label("each cell, f from 0.95, trained")
    right.plot(steps, kept(before[OPEN].gates).mean(dim=1), color="black", label="their mean before training")
    right.plot(steps, kept(after[HALF].gates).mean(dim=1), color=GREEN, label="mean, f from 0.5, trained")
    right.set_ylim(0, 1.3)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    right.set_title("what cells hold of their first value")
    right.set_xlabel("step t")
    right.set_ylabel("f₂ · f₃ · … · f_t")
    return Report(table, holds, verdict, figure, {"cost": costs})


def multiplied(norms: Tensor) -> float:
    """What GATES steps multiplied the norm by."""
    return (norms[-1] / norms[0]).item()


def draw_gradients(axes: Axes, memories: dict[str, Memory], title: str) -> None:
    for name, memory in memories.items():
        steps = range(1, LENGTH)
        axes.plot(steps, memory.gradient, color=COLOR[name], label=name)
        if len(memory.path):
            axes.plot(steps, memory.path, "--", color=COLOR[name], linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(1e-12, 10)
    axes.set_title(title)
    axes.set_xlabel("steps before the last")
    axes.set_ylabel("‖∂z_y/∂c‖, of rnn ‖∂z_y/∂h‖")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
