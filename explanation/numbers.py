"""What one training example wants of a perceptron: the numbers behind explain.py's page.

Everything comes from the hand-written forward and backward pass, in float64, at the trained θ (which converts exactly)
and in evaluation mode. A *wish* is a negative gradient: how far, and which way, a quantity should move to lower the
cost of this example. The L2 penalty is no part of that cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import Loss, SoftmaxCrossEntropy, one_hot
from manual_backprop.models.mlp import MLP
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from training.errors import UserError
from training.prediction import Trained
from training.usual import usual_torch

MAX_NUMBERS = 50_000_000  # of all examples' gradients together: 400 MB


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's part in the forward and backward pass of one example; vectors are (n,), W is (n, n_before).

    `da` is ∂C/∂a, the sum of what all neurons of the layer after ask for (of the output layer: ∇ₐC); `slope` is σ′(z);
    `delta`, `dW` and `db` are the backward pass's own.
    """

    number: int
    activation: str
    equation: str  # of delta: BP1 or BP2
    W: Tensor
    b: Tensor
    a_before: Tensor
    z: Tensor
    a: Tensor
    slope: Tensor
    da: Tensor
    delta: Tensor
    dW: Tensor
    db: Tensor

    @property
    def z_terms(self) -> Tensor:
        """(n, n_before): z_j = b_j + Σ_k W_jk a_k, its summands."""
        return self.W * self.a_before

    @property
    def wishes_before(self) -> Tensor:
        """(n, n_before): −δ_j W_jk, how neuron j would move activation k before it. Summed over j: −∂C/∂a_k (BP2)."""
        return -self.delta.unsqueeze(1) * self.W


@dataclass(frozen=True, eq=False)
class Steps:
    """Costs (R, B) of a mini-batch's examples after a step of θ by −η `direction`, for each of R learning rates η.

    `predicted` (R, B) is the change to first order, −η ⟨∇Cᵢ, direction⟩.
    """

    direction: Tensor  # as long as θ
    costs: Tensor
    predicted: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """A mini-batch whose first example is the one explained.

    `gradients` (B, θ) has a row for each example, its own backward pass's; `average` is the batch's.
    """

    names: tuple[str, ...]  # "training example 7"
    x: Tensor
    y: Tensor
    costs: Tensor
    gradients: Tensor
    average: Tensor

    @cached_property
    def agreement(self) -> Tensor:
        """(B,): cosine of the angle between each example's gradient and the first's; 0 where one of them is zero."""
        return self._cosines(self.gradients[0])

    @cached_property
    def agreement_with_average(self) -> Tensor:
        """(B,): the same with the average."""
        return self._cosines(self.average)

    def _cosines(self, direction: Tensor) -> Tensor:
        norms = self.gradients.norm(dim=1) * direction.norm()
        return torch.where(norms > 0, self.gradients @ direction / norms, 0)


@dataclass(frozen=True)
class Weight:
    """W_jk of a layer, and ∂C/∂W_jk."""

    layer: int
    j: int
    k: int
    value: float
    gradient: float

    @property
    def name(self) -> str:
        return f"layer{self.layer}.weight[{self.j}, {self.k}]"


@dataclass(frozen=True, eq=False)
class Explanation:
    """All that the page shows. `cost` is C of the example alone, `cost_terms` (n,) its summands per output neuron."""

    trained: Trained
    x: Tensor  # (features,), as the network reads it
    label: int
    targets: Tensor  # (n,), Y
    output: Tensor  # (n,), aᴸ
    cost: float
    cost_terms: Tensor
    layers: tuple[Layer, ...]
    dx: Tensor
    batch: Batch
    rates: tuple[float, ...]
    own_step: Steps
    average_step: Steps

    @cached_property
    def sensitivities(self) -> Tensor:
        """|∂C/∂w| of all weights, (weights,), layer after layer, each flattened."""
        return torch.cat([layer.dW.flatten().abs() for layer in self.layers])

    @cached_property
    def ranking(self) -> Tensor:
        """Positions in `sensitivities`, the most sensitive first, without the weights whose gradient is exactly 0."""
        order = self.sensitivities.argsort(descending=True, stable=True)
        return order[: int((self.sensitivities > 0).sum())]

    def weight_at(self, position: int) -> Weight:
        """The weight at a position in `sensitivities`."""
        for layer in self.layers:
            if position < layer.W.numel():
                j, k = divmod(position, layer.W.shape[1])
                return Weight(layer.number, j, k, layer.W[j, k].item(), layer.dW[j, k].item())
            position -= layer.W.numel()
        raise IndexError(position)


class Network:
    """A trained perceptron in float64: its hand-written forward and backward pass, one example or several."""

    def __init__(self, trained: Trained) -> None:
        if not isinstance(trained.learner.model, MLP):
            raise UserError(
                "only perceptrons and networks that predict the next token can be explained: give the checkpoint of one"
            )
        self.model = trained.learner.model
        self.loss: Loss = trained.learner.loss
        self.params = Parameters(self.model.shapes, dtype=torch.float64)
        self.params.load_state_dict(trained.learner.params)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """∇C, as long as θ, of the mean cost of examples x (B, features) with classes y (B,)."""
        gradient, tape = self.params.zeros_like(), Tape()
        with torch.inference_mode():
            output = self.model.forward(self.params, x, tape)
            _, cache = self.loss.forward(output, y)
            self.model.backward(self.params, self.loss.backward(1.0, cache), gradient, tape)
        return gradient.theta

    def outputs(self, x: Tensor) -> Tensor:
        """aᴸ (B, n) of examples x (B, features)."""
        with torch.inference_mode():
            return self.model.forward(self.params, x, Tape(records=False))

    def costs(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,): each example's own cost."""
        output = self.outputs(x)
        with torch.inference_mode():
            return torch.stack([self.loss.forward(output[i : i + 1], y[i : i + 1])[0] for i in range(len(y))])

    def after(self, direction: Tensor, rate: float) -> "Network":
        """A copy that has taken a step θ ← θ − η `direction`."""
        moved = object.__new__(Network)
        moved.model, moved.loss = self.model, self.loss
        moved.params = self.params.zeros_like()
        moved.params.theta.copy_(self.params.theta - rate * direction)
        return moved


@usual_torch()
def explain(trained: Trained, x: Tensor, y: Tensor, names: Sequence[str], rates: Sequence[float]) -> Explanation:
    """The explanation of the first of the examples x (B, features), float64, with classes y (B,) and these names.

    `rates` are the learning rates η of the steps that are tried. Raises UserError for another model than a perceptron,
    if the examples' gradients do not fit into memory, or for a cost that is not finite.
    """
    network = Network(trained)
    numbers = len(x) * network.params.theta.numel()
    if numbers > MAX_NUMBERS:
        raise UserError(
            f"the gradients of {len(x)} examples are {numbers:,} numbers, at most {MAX_NUMBERS:,} are allowed: "
            f"give a smaller --batch-size"
        )
    batch = _batch(network, x, y, tuple(names))
    if not batch.costs.isfinite().all():
        raise UserError("the cost of these examples is not finite: give a checkpoint of a network that did not diverge")
    output, targets, terms, layers, dx = _one_example(network, x[:1], y[:1])
    return Explanation(
        trained=trained,
        x=x[0],
        label=int(y[0]),
        targets=targets,
        output=output,
        cost=batch.costs[0].item(),
        cost_terms=terms,
        layers=layers,
        dx=dx,
        batch=batch,
        rates=tuple(rates),
        own_step=_steps(network, batch, batch.gradients[0], rates),
        average_step=_steps(network, batch, batch.average, rates),
    )


def _one_example(network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Layer, ...], Tensor]:
    """Output, targets, the cost's summands, layers and ∂C/∂x of the one example x (1, features)."""
    model, params = network.model, network.params
    gradients: dict[str, Tensor] = {}
    tape = Tape(observes=True, need_dx=True)
    with torch.inference_mode():
        output = model.forward(params, x, tape)
        _, cache = network.loss.forward(output, y)
        dx = model.backward(params, network.loss.backward(1.0, cache), gradients, tape)
        assert dx is not None
        layers, a_before = [], x
        for l, activation in enumerate(model.activations, start=1):
            name = f"layer{l}"
            z, a = tape.outputs[name], tape.outputs[f"{name}.a"]
            layer = Layer(
                number=l,
                activation=activation,
                equation=tape.labels[name],
                W=params[f"{name}.weight"],
                b=params[f"{name}.bias"],
                a_before=a_before[0],
                z=z[0],
                a=a[0],
                slope=ACTIVATIONS[activation].derivative(z, a)[0],
                da=tape.deltas[f"{name}.a"][0],
                delta=tape.deltas[name][0],
                dW=gradients[f"{name}.weight"],
                db=gradients[f"{name}.bias"],
            )
            layers.append(layer)
            a_before = a
        targets, terms = _cost_terms(network.loss, output, y)
    return output[0], targets, terms, tuple(layers), dx[0]


def _cost_terms(loss: Loss, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Y (n,) of one example, and C's summand for each output neuron (n,)."""
    if isinstance(loss, SoftmaxCrossEntropy):
        _, (log_p, Y, _) = loss.forward(output, y)
        return Y[0], (-Y * log_p)[0]
    Y = one_hot(y, output)
    terms = [loss.forward(output[:, [j]], Y[:, [j]])[0] for j in range(output.shape[1])]
    return Y[0], torch.stack(terms)


def _batch(network: Network, x: Tensor, y: Tensor, names: tuple[str, ...]) -> Batch:
    """Every example goes through the backward pass alone, and all go through it together."""
    gradients = torch.stack([network.gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(y))])
    return Batch(names, x, y, network.costs(x, y), gradients, network.gradient(x, y))


def _steps(network: Network, batch: Batch, direction: Tensor, rates: Sequence[float]) -> Steps:
    costs = torch.stack([network.after(direction, rate).costs(batch.x, batch.y) for rate in rates])
    slopes = batch.gradients @ direction
    return Steps(direction, costs, torch.stack([-rate * slopes for rate in rates]))
