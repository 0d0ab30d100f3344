"""Backward passes of the perceptron that are wrong, each in one line.

`SpelledMLP` is the right one with every equation a method of its own; each wrong one replaces a method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from gallery.entry import ENTRIES, OWN, away_from_one, normal
from gallery.naive import Close, norms_agree
from gradient_check import Report, Step, check_step
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import Quadratic
from manual_backprop.models.mlp import MLP
from manual_backprop.parameters import Receiver
from manual_backprop.tape import Tape

Params = Mapping[str, Tensor]
SIZES, NAMES = (5, 5, 5, 5), ("tanh", "sigmoid", "softplus")  # square, so that mistakes fit, and slopes that differ
COST = Quadratic()


class SpelledMLP(MLP):
    def delta(self, l: int, da: Tensor, z: Tensor, a: Tensor) -> Tensor:
        return da * ACTIVATIONS[self.activations[l - 1]].derivative(z, a)

    def bias_gradient(self, l: int, delta: Tensor, params: Params) -> Tensor:
        return delta.sum(dim=0)

    def weight_gradient(self, l: int, delta: Tensor, a_before: Tensor, a: Tensor, params: Params) -> Tensor:
        return delta.T @ a_before

    def da_before(self, l: int, delta: Tensor, params: Params) -> Tensor:
        return delta @ params[f"layer{l}.weight"]

    def hand_over(self, gradients: Receiver, name: str, gradient: Tensor) -> None:
        gradients[name] = gradient

    def backward(self, p: Params, d_output: Tensor, g: Receiver, tape: Tape) -> Tensor:
        L, da = len(self.activations), d_output
        for l in range(L, 0, -1):
            tape.see(f"layer{l}.a", da)
            a_before, z, a = tape.take(f"layer{l}")
            delta = self.delta(l, da, z, a)
            tape.see(f"layer{l}", delta, "BP1" if l == L else "BP2")
            self.hand_over(g, f"layer{l}.bias", self.bias_gradient(l, delta, p))
            self.hand_over(g, f"layer{l}.weight", self.weight_gradient(l, delta, a_before, a, p))
            da = tape.add("BP2", self.da_before(l, delta, p))
        return da


def random_parameters(model: MLP, generator: torch.Generator) -> dict[str, Tensor]:
    parameters = {}
    for name, shape in model.shapes.items():
        weight = len(shape) > 1
        parameters[name] = normal(generator, *shape) / sqrt(shape[1]) if weight else away_from_one(generator, *shape)
    return parameters


def random_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return normal(generator, 7, SIZES[0]), torch.randint(0, SIZES[-1], (7,), generator=generator)


def by_hand(model: MLP, params: Params, x: Tensor, y: Tensor) -> Step:
    tape, gradients = Tape(training=True, observes=True, need_dx=True), {}
    with torch.inference_mode():
        C, cache = COST.forward(model.forward(params, x, tape), y)
        dx = model.backward(params, COST.backward(1.0, cache), gradients, tape)
    return Step(C, gradients, {f"δ {name}": delta for name, delta in tape.deltas.items()} | {"δ x": dx})


def by_autograd(model: MLP, params: Params, x: Tensor, y: Tensor) -> Step:
    x, params = x.clone().requires_grad_(), {name: v.clone().requires_grad_() for name, v in params.items()}
    tape = Tape(training=True, observes=True)
    C, _ = COST.forward(model.forward(params, x, tape), y)
    seen = {"x": x, **tape.outputs}
    found = torch.autograd.grad(C, [*params.values(), *seen.values()])
    deltas = {f"δ {name}": delta for name, delta in zip(seen, found[len(params) :], strict=True)}
    return Step(C.detach(), dict(zip(params, found, strict=False)), deltas)


def cost_falls(wrong: type[SpelledMLP], seed: int) -> bool:
    """As people watch it: a hundred steps of gradient descent on one batch."""
    generator = torch.Generator().manual_seed(seed)
    model = wrong(SIZES, NAMES)
    params, (x, y) = random_parameters(model, generator), random_batch(generator)
    costs = []
    for _ in range(100):
        step = by_hand(model, params, x, y)
        costs.append(step.loss)
        params = {name: v - 0.02 * step.gradients.get(name, 0) for name, v in params.items()}
    return bool(costs[-1] < costs[0])


def gradients_agree(wrong: type[SpelledMLP], seed: int, names: Sequence[str], close: Close) -> bool:
    """Of every parameter that got one, with autograd's."""
    generator = torch.Generator().manual_seed(seed)
    model = wrong(SIZES, names)
    fed = random_parameters(model, generator), *random_batch(generator)
    actual, expected = by_hand(model, *fed).gradients, by_autograd(model, *fed).gradients
    return all(close(v, expected[name]) for name, v in actual.items())


@dataclass(frozen=True)
class NaiveTraining:
    """A test of a whole network as people write it."""

    text: str
    accepts: Callable[[type[SpelledMLP], int], bool]


FALLS = NaiveTraining("the cost falls in a hundred steps", cost_falls)
NORMS = NaiveTraining(
    "the norms of the gradients agree", lambda wrong, seed: gradients_agree(wrong, seed, NAMES, norms_agree)
)
ALIKE = NaiveTraining(
    "`allclose`, one activation everywhere",
    lambda wrong, seed: gradients_agree(wrong, seed, ["tanh"] * len(NAMES), torch.allclose),
)


@dataclass(frozen=True)
class WrongModel:
    """A mistake in the backward pass of a network of three layers, shown by its step beside autograd's."""

    name: str
    what: str
    wrong: type[SpelledMLP]
    place: str  # the first tensor, in backward's order, that shows the mistake
    naive: NaiveTraining = FALLS
    diagnosis: Sequence[str] = ()
    where: str = OWN

    def ours(self, right: bool, seed: int = 0) -> Report:
        generator = torch.Generator().manual_seed(seed)
        model = (SpelledMLP if right else self.wrong)(SIZES, NAMES)
        params, batch = random_parameters(model, generator), random_batch(generator)
        return check_step(
            lambda x, y: by_hand(model, params, x, y), lambda x, y: by_autograd(model, params, x, y), batch
        )

    def misses(self, right: bool, seed: int = 0) -> bool:
        return self.naive.accepts(SpelledMLP if right else self.wrong, seed)


def mistake(name: str, what: str, place: str, **said: Sequence[str]) -> Callable[[type], type]:
    """Decorate a wrong perceptron: it becomes an entry of the gallery."""

    def add(wrong: type[SpelledMLP]) -> type[SpelledMLP]:
        ENTRIES.append(WrongModel(f"perceptron: {name}", what, wrong, place, **said))
        return wrong

    return add


@mistake(
    "σ′ forgotten",
    "every δ lacks its σ′",
    place="δ layer3",
    diagnosis=["derivative forgotten"],
)
class SlopeForgotten(SpelledMLP):
    def delta(self, l, da, z, a):
        return da


@mistake(
    "σ′ of the output layer forgotten",
    "BP1 lacks its σ′, as below a cost that cancels it",
    place="δ layer3",
    diagnosis=["derivative forgotten"],
)
class SlopeForgottenInOutputLayer(SpelledMLP):
    def delta(self, l, da, z, a):
        return da if l == len(self.activations) else super().delta(l, da, z, a)


@mistake(
    "slope at a",
    "the slopes are σ′(a) instead of σ′(z)",
    place="δ layer3",
)
class SlopeAtAInsteadOfZ(SpelledMLP):
    def delta(self, l, da, z, a):
        return super().delta(l, da, a, ACTIVATIONS[self.activations[l - 1]].value(a))


@mistake(
    "slope of the layer before",
    "each layer takes the derivative of the activation before it",
    place="δ layer3",
    naive=ALIKE,
)
class SlopeOfTheLayerBefore(SpelledMLP):
    def delta(self, l, da, z, a):
        return da * ACTIVATIONS[self.activations[max(l - 2, 0)]].derivative(z, a)


@mistake(
    "σ′ twice",
    "every δ is multiplied by σ′ once more",
    place="δ layer3",
)
class SlopeTwice(SpelledMLP):
    def delta(self, l, da, z, a):
        return super().delta(l, super().delta(l, da, z, a), z, a)


@mistake(
    "sign of δ",
    "every δ is negated",
    place="δ layer3",
    diagnosis=["sign"],
    naive=NORMS,
)
class SignOfDelta(SpelledMLP):
    def delta(self, l, da, z, a):
        return -super().delta(l, da, z, a)


@mistake(
    "mean twice",
    "δ of the output is divided by the batch, which the cost has done already",
    place="δ layer3",
    diagnosis=["batch factor", "factor"],
)
class MeanTwice(SpelledMLP):
    def delta(self, l, da, z, a):
        delta = super().delta(l, da, z, a)
        return delta / len(delta) if l == len(self.activations) else delta


@mistake(
    "last example lost",
    "the loops over the batch end one early",
    place="δ layer3",
    diagnosis=["rows"],
)
class LastExampleLost(SpelledMLP):
    def delta(self, l, da, z, a):
        delta = super().delta(l, da, z, a).clone()
        delta[-1] = 0
        return delta


@mistake(
    "weight of the layer before",
    "BP2 goes back through Wˡ⁻¹ instead of Wˡ",
    place="δ layer2.a",
)
class WeightOfTheLayerBefore(SpelledMLP):
    def da_before(self, l, delta, params):
        return delta @ params[f"layer{max(l - 1, 1)}.weight"]


@mistake(
    "W not transposed in BP2",
    "the error goes back through Wᵀ, which fits because W is square",
    place="δ layer2.a",
    diagnosis=["transposed"],
)
class WeightTransposedInBP2(SpelledMLP):
    def da_before(self, l, delta, params):
        return delta @ params[f"layer{l}.weight"].T


@mistake(
    "dx stops at δ", "the input's gradient is δ of the first layer, not yet multiplied by its weights", place="δ x"
)
class InputGradientStopsAtDelta(SpelledMLP):
    def da_before(self, l, delta, params):
        return delta if l == 1 else super().da_before(l, delta, params)


@mistake(
    "∂C/∂W transposed",
    "BP4 is aᵀδ instead of δᵀa",
    place="dlayer3.weight",
    diagnosis=["transposed"],
)
class WeightGradientTransposed(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return a_before.T @ delta


@mistake(
    "a for a of the layer before",
    "BP4 multiplies by the layer's own activations",
    place="dlayer3.weight",
)
class StaleActivations(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return delta.T @ a


@mistake(
    "∂C/∂W of the first example", "BP4 takes one example for the batch", place="dlayer3.weight", diagnosis=["rows"]
)
class WeightGradientOfTheFirstExample(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return delta[:1].T @ a_before[:1]


@mistake(
    "single precision in ∂C/∂W",
    "BP4's product is computed in float32",
    place="dlayer3.weight",
)
class WeightGradientInSinglePrecision(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return (delta.float().T @ a_before.float()).double()


@mistake(
    "∂C/∂b averaged",
    "BP3 is a mean over the batch instead of a sum",
    place="dlayer3.bias",
    diagnosis=["batch factor", "factor"],
)
class BiasGradientIsTheMean(SpelledMLP):
    def bias_gradient(self, l, delta, params):
        return delta.mean(dim=0)


@mistake(
    "∂C/∂b of shape (1, n)",
    "BP3 keeps the batch dimension",
    place="dlayer3.bias",
    diagnosis=["shape"],
)
class BiasGradientKeepsTheBatchDimension(SpelledMLP):
    def bias_gradient(self, l, delta, params):
        return delta.sum(dim=0, keepdim=True)


@mistake(
    "∂C/∂b once per weight",
    "the bias is updated in the loop over the weights",
    place="dlayer3.bias",
    diagnosis=["factor", "batch factor"],
)
class BiasGradientOncePerWeight(SpelledMLP):
    def bias_gradient(self, l, delta, params):
        return delta.sum(dim=0) * params[f"layer{l}.weight"].shape[1]


@mistake(
    "biases decay",
    "the penalty is added to the biases too",
    place="dlayer3.bias",
    diagnosis=["weight decay"],
)
class BiasesDecay(SpelledMLP):
    def bias_gradient(self, l, delta, params):
        return delta.sum(dim=0) + 1e-4 * params[f"layer{l}.bias"]


@mistake(
    "decay once per example",
    "the penalty's gradient is added in the loop over the batch",
    place="dlayer3.weight",
    diagnosis=["weight decay"],
)
class WeightsDecayOncePerExample(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return delta.T @ a_before + len(delta) * 1e-4 * params[f"layer{l}.weight"]


@mistake(
    "∂C/∂W zero",
    "the weights get no gradient",
    place="dlayer3.weight",
    diagnosis=["zero"],
)
class WeightGradientZero(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return torch.zeros_like(params[f"layer{l}.weight"])


@mistake(
    "first layer forgotten",
    "the loop over the layers ends one early, and nobody hands over ∂C/∂W¹",
    place="dlayer1.weight",
    diagnosis=["missing"],
)
class FirstLayerForgotten(SpelledMLP):
    def hand_over(self, gradients, name, gradient):
        if name != "layer1.weight":
            super().hand_over(gradients, name, gradient)
