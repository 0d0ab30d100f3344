"""Backward passes of the perceptron that are wrong, each in one line: a gradient check must reject them all.

`SpelledMLP` is the right one with every equation a method of its own; each wrong one replaces a method.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.mlp import MLP
from manual_backprop.parameters import Receiver
from manual_backprop.tape import Tape

Params = Mapping[str, Tensor]


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


class SlopeForgotten(SpelledMLP):
    def delta(self, l, da, z, a):
        return da


class SlopeForgottenInOutputLayer(SpelledMLP):
    def delta(self, l, da, z, a):
        return da if l == len(self.activations) else super().delta(l, da, z, a)


class SlopeAtAInsteadOfZ(SpelledMLP):
    def delta(self, l, da, z, a):
        return super().delta(l, da, a, ACTIVATIONS[self.activations[l - 1]].value(a))


class SlopeOfTheLayerBefore(SpelledMLP):
    def delta(self, l, da, z, a):
        return da * ACTIVATIONS[self.activations[max(l - 2, 0)]].derivative(z, a)


class SlopeTwice(SpelledMLP):
    def delta(self, l, da, z, a):
        return super().delta(l, super().delta(l, da, z, a), z, a)


class SignOfDelta(SpelledMLP):
    def delta(self, l, da, z, a):
        return -super().delta(l, da, z, a)


class MeanTwice(SpelledMLP):
    def delta(self, l, da, z, a):
        delta = super().delta(l, da, z, a)
        return delta / len(delta) if l == len(self.activations) else delta


class LastExampleLost(SpelledMLP):
    def delta(self, l, da, z, a):
        delta = super().delta(l, da, z, a).clone()
        delta[-1] = 0
        return delta


class WeightOfTheLayerBefore(SpelledMLP):
    def da_before(self, l, delta, params):
        return delta @ params[f"layer{max(l - 1, 1)}.weight"]


class WeightTransposedInBP2(SpelledMLP):
    def da_before(self, l, delta, params):
        return delta @ params[f"layer{l}.weight"].T


class InputGradientStopsAtDelta(SpelledMLP):
    def da_before(self, l, delta, params):
        return delta if l == 1 else super().da_before(l, delta, params)


class WeightGradientTransposed(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return a_before.T @ delta


class StaleActivations(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return delta.T @ a


class WeightGradientOfTheFirstExample(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return delta[:1].T @ a_before[:1]


class WeightGradientInSinglePrecision(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return (delta.float().T @ a_before.float()).double()


class BiasGradientIsTheMean(SpelledMLP):
    def bias_gradient(self, l, delta, params):
        return delta.mean(dim=0)


class BiasGradientKeepsTheBatchDimension(SpelledMLP):
    def bias_gradient(self, l, delta, params):
        return delta.sum(dim=0, keepdim=True)


class BiasGradientOncePerWeight(SpelledMLP):
    def bias_gradient(self, l, delta, params):
        return delta.sum(dim=0) * params[f"layer{l}.weight"].shape[1]


class BiasesDecay(SpelledMLP):
    def bias_gradient(self, l, delta, params):
        return delta.sum(dim=0) + 1e-4 * params[f"layer{l}.bias"]


class WeightsDecayOncePerExample(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return delta.T @ a_before + len(delta) * 1e-4 * params[f"layer{l}.weight"]


class WeightGradientZero(SpelledMLP):
    def weight_gradient(self, l, delta, a_before, a, params):
        return torch.zeros_like(params[f"layer{l}.weight"])


class FirstLayerForgotten(SpelledMLP):
    def hand_over(self, gradients, name, gradient):
        if name != "layer1.weight":
            super().hand_over(gradients, name, gradient)


# Each with the first tensor, in backward's order, that shows the mistake in a network of three layers.
WRONG: dict[type[SpelledMLP], str] = {
    SlopeForgotten: "δ layer3",
    SlopeForgottenInOutputLayer: "δ layer3",
    SlopeAtAInsteadOfZ: "δ layer3",
    SlopeOfTheLayerBefore: "δ layer3",
    SlopeTwice: "δ layer3",
    SignOfDelta: "δ layer3",
    MeanTwice: "δ layer3",
    LastExampleLost: "δ layer3",
    WeightOfTheLayerBefore: "δ layer2.a",
    WeightTransposedInBP2: "δ layer2.a",
    InputGradientStopsAtDelta: "dx",
    WeightGradientTransposed: "∂C/∂layer3.weight",
    StaleActivations: "∂C/∂layer3.weight",
    WeightGradientOfTheFirstExample: "∂C/∂layer3.weight",
    WeightGradientInSinglePrecision: "∂C/∂layer3.weight",
    WeightsDecayOncePerExample: "∂C/∂layer3.weight",
    WeightGradientZero: "∂C/∂layer3.weight",
    BiasGradientIsTheMean: "∂C/∂layer3.bias",
    BiasGradientKeepsTheBatchDimension: "∂C/∂layer3.bias",
    BiasGradientOncePerWeight: "∂C/∂layer3.bias",
    BiasesDecay: "∂C/∂layer3.bias",
    FirstLayerForgotten: "∂C/∂layer1.weight",
}
