"""Mistakes that a lesson has to notice: where one of them is made, its claim must not hold.

`spoil` is given the lesson's module and pytest's monkeypatch, and makes it there or in what the lesson uses. These are
no entries of the gallery's page: they are not shown on an example of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from gallery.parts import SigmaPrimeLeftIn, sigmoid_of_slope
from gallery.perceptron import (
    BiasesDecay,
    LastExampleLost,
    MeanTwice,
    SignOfDelta,
    SlopeForgotten,
    SlopeForgottenInOutputLayer,
    SlopeTwice,
    SpelledMLP,
    WeightGradientOfTheFirstExample,
)
from manual_backprop.initializers import INITIALIZERS
from manual_backprop.layers import lstm, rnn
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import Quadratic, SigmoidCrossEntropy
from manual_backprop.models.mlp import MLP

Spoil = Callable[[Any, Any], None]  # (the lesson's module, pytest's monkeypatch)


@dataclass(frozen=True)
class WrongLesson:
    """A mistake that this lesson must notice."""

    lesson: str  # its module's name
    title: str
    spoil: Spoil = field(repr=False)


NOTICED: list[WrongLesson] = []


def noticed(lesson: str, title: str) -> Callable[[Spoil], Spoil]:
    """Decorate what makes the mistake."""

    def add(spoil: Spoil) -> Spoil:
        NOTICED.append(WrongLesson(lesson, title, spoil))
        return spoil

    return add


# Wrong backward passes of perceptrons. Three of them are no entries of the gallery.


class OneWeightForgotten(SpelledMLP):
    """What it says is right to first order, but it does not say all."""

    def weight_gradient(self, l, delta, a_before, a, params):
        return super().weight_gradient(l, delta, a_before, a, params) * (torch.arange(a_before.shape[1]) < 15)


class Clipped(SpelledMLP):
    """A backward pass that is not linear."""

    def delta(self, l, da, z, a):
        return super().delta(l, da, z, a).clamp(-0.1, 0.1)


class Biased(SpelledMLP):
    """One that is affine, by very little."""

    def da_before(self, l, delta, params):
        return super().da_before(l, delta, params) + 1e-9


def everywhere(kind: type[MLP]) -> Spoil:
    """Give every perceptron this backward pass."""

    def backward(network: MLP, *given: Any) -> Any:
        return kind(network.sizes, network.activations).backward(*given)

    return lambda lesson, patch: patch.setattr(MLP, "backward", backward)


def of_its_neuron(kind: type[MLP]) -> Spoil:
    """Only the neuron that the lesson looks at has it, not the network that it is taken from."""
    return lambda lesson, patch: patch.setattr(lesson, "NEURON", kind(lesson.NEURON.sizes, lesson.NEURON.activations))


for kind in (SlopeForgotten, SignOfDelta, BiasesDecay, OneWeightForgotten):
    noticed("three_ways", kind.__name__)(of_its_neuron(kind))
for lesson, kinds in {
    "sensitivity": (BiasesDecay, SlopeForgottenInOutputLayer, MeanTwice),
    "shared_nodes": (SlopeForgotten, SlopeTwice),
    "linear_backward": (Clipped, Biased),
    "fire_together": (SlopeForgotten, WeightGradientOfTheFirstExample),
    "one_example": (SignOfDelta, LastExampleLost),
}.items():
    for kind in kinds:
        noticed(lesson, kind.__name__)(everywhere(kind))


# What else a lesson uses


@noticed("one_example", "one example gets nothing")
def without_the_eighth(lesson: Any, patch: Any) -> None:
    right = lesson.gradient

    def gradient(network: Any, x: Any, y: Any) -> Any:
        eighth, _ = network.train.batch(torch.tensor([7]), network.dtype)
        return right(network, x, y) * (not torch.equal(x, eighth))

    patch.setattr(lesson, "gradient", gradient)


@noticed("one_example", "all are listened to")
def of_all(lesson: Any, patch: Any) -> None:
    """Then the step for one does not raise the costs of others."""
    right = lesson.gradient

    def gradient(network: Any, x: Any, y: Any) -> Any:
        return right(network, *network.train.batch(torch.arange(300), network.dtype))

    patch.setattr(lesson, "gradient", gradient)


@noticed("shared_nodes", "a use is left out")
def last_use_only(lesson: Any, patch: Any) -> None:
    patch.setattr(lesson.Shared, "error_of_sum", lesson.Shared.error_of_last)


@noticed("linear_backward", "a forward pass that adds up")
def linear_forward(lesson: Any, patch: Any) -> None:
    """Then nothing would be said of a difference between the two passes."""
    right = lesson.learner

    def learner(config: Any, data: Any) -> Any:
        network = right(config, data)
        for name, tensor in network.params.items():
            if name.endswith("bias"):
                tensor.zero_()
        network.model = MLP(network.model.sizes, ("identity",) * len(network.model.activations))
        return network

    patch.setattr(lesson, "learner", learner)


@noticed("cost_functions", "no σ′ below the quadratic cost")
@noticed("vanishing_gradients", "no σ′ in BP2")
def slope_of_one(lesson: Any, patch: Any) -> None:
    patch.setitem(ACTIVATIONS, "sigmoid", sigmoid_of_slope(1.0))


@noticed("cost_functions", "σ′ below the cross-entropy")
def slope_left_in(lesson: Any, patch: Any) -> None:
    patch.setattr(SigmoidCrossEntropy, "backward", SigmaPrimeLeftIn.backward)


@noticed("vanishing_gradients", "He's start is Xavier's")
def xavier_for_he(lesson: Any, patch: Any) -> None:
    patch.setitem(INITIALIZERS, "he", INITIALIZERS["xavier"])


@noticed("universal_approximation", "bumps one place too far")
def bumps_shifted(lesson: Any, patch: Any) -> None:
    right = lesson.bumps

    def shifted(count: int) -> Any:
        model, params = right(count)
        params["layer1.bias"] = params["layer1.bias"] - params["layer1.weight"][:, 0] / count
        return model, params

    patch.setattr(lesson, "bumps", shifted)


@noticed("universal_approximation", "one neuron knows what many know")
def narrow_as_wide(lesson: Any, patch: Any) -> None:
    right = lesson.says_blue
    patch.setattr(lesson, "says_blue", lambda width, *rest: right(16, *rest))


@noticed("universal_approximation", "uphill")
def uphill(lesson: Any, patch: Any) -> None:
    right = Quadratic.backward
    patch.setattr(Quadratic, "backward", lambda loss, dC, cache: -right(loss, dC, cache))


@noticed("what_layers_learn", "uphill is downhill")
def pixels_downhill(lesson: Any, patch: Any) -> None:
    right = lesson.input_gradient
    patch.setattr(lesson, "input_gradient", lambda *given: -right(*given))


@noticed("what_layers_learn", "σ′ forgotten")
def pixels_without_slopes(lesson: Any, patch: Any) -> None:
    def gradient(model: Any, params: Any, x: Any, d_output: Any) -> Any:
        for l in range(len(model.activations), 0, -1):
            d_output = d_output @ params[f"layer{l}.weight"]
        return d_output

    patch.setattr(lesson, "input_gradient", gradient)


@noticed("vanishing_through_time", "no σ′ in RN2")
def no_slope_through_time(lesson: Any, patch: Any) -> None:
    """In one step from h₀ to h₁."""

    class Steep:
        OUTPUTS = rnn.OUTPUTS

        @staticmethod
        def forward(*given: Any, **options: Any) -> Any:
            y, h, _ = rnn.forward(*given, **options)
            return y, h, given[3]  # W_hh

        @staticmethod
        def backward(dy: Any, dh: Any, W_hh: Any, need_dx: bool = True) -> Any:
            return None, (dy[:, 0] + dh) @ W_hh

    patch.setitem(lesson.CELLS, "rnn", Steep)


@noticed("why_lstm_remembers", "no f in LS9")
def cell_not_gated(lesson: Any, patch: Any) -> None:
    """dc is handed back as it came."""

    class Ungated:
        OUTPUTS = lstm.OUTPUTS
        forward = lstm.forward

        @staticmethod
        def backward(dy: Any, dh: Any, dc: Any, cache: Any, need_dx: bool = True) -> Any:
            dx, d_h, _, *gradients = lstm.backward(dy, dh, dc, cache, need_dx)
            return dx, d_h, dc, *gradients

    patch.setattr(lesson, "lstm", Ungated)
