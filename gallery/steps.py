"""Mistakes in one step of a network in training, and how lock step must call the place of each.

Each is put into a part of a learner that is right and trains beside its twin. The networks are small ones of the
families that training knows, and `block` and `cell`, a transformer block and a recurrent network of the tests. These
are no entries of the gallery's page: they are not shown on an example of their own, but where the part is used.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gallery.perceptron import (
    BiasGradientIsTheMean,
    FirstLayerForgotten,
    SlopeForgottenInOutputLayer,
    WeightGradientTransposed,
    WeightTransposedInBP2,
)
from manual_backprop.layers import batch_norm
from manual_backprop.losses import Quadratic
from manual_backprop.optimizers import SGD, Lion
from manual_backprop.tape import Tape

Right = Callable[..., Any]
Spoil = Callable[[Any, Any], None]  # (learner in lock step, pytest's monkeypatch): makes a part of the learner wrong


@dataclass(frozen=True)
class WrongStep:
    """A mistake that is made in training, from some step on."""

    title: str
    family: str
    place: str  # equation, layer and tensor that lock step names
    spoil: Spoil = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the network and its training


STEPS: list[WrongStep] = []

SQUARE = {"hidden": (10, 10), "activation": ("tanh", "softplus", "sigmoid"), "loss": "quadratic"}
SQUARE |= {"l2": 0.1, "momentum": 0.9}
OPTIONS = {"mlp": SQUARE}  # all of one width, so that what is transposed fits


def add(title: str, family: str, place: str, spoil: Spoil, **options: Any) -> None:
    STEPS.append(WrongStep(title, family, place, spoil, options or OPTIONS.get(family, {})))


# How a part is made wrong


def model(kind: type) -> Spoil:
    """The same network, of another class."""
    return lambda both, patch: patch.setattr(both.manual, "model", kind(**vars(both.manual.model)))


def optimizer(wrong: Any) -> Spoil:
    return lambda both, patch: patch.setattr(both.manual, "optimizer", wrong)


def rule_of_one_side(name: str) -> Spoil:
    """Only the twin has this penalty, or this limit."""

    def spoil(both: Any, patch: Any) -> None:
        for other in both.others:
            patch.setattr(other, name, 1e-3)

    return spoil


def in_layer(name: str, function: str, wrong: Right) -> Spoil:
    """A layer by the name that the network's module has for it; `wrong` gets the right function and its arguments."""

    def spoil(both: Any, patch: Any) -> None:
        layer = getattr(sys.modules[type(both.manual.model).__module__], name)
        patch.setattr(layer, function, partial(wrong, getattr(layer, function)))

    return spoil


def wrong_layer(title: str, family: str, name: str, function: str, place: str) -> Callable[[Right], Right]:
    """Decorate a wrong function of a layer: it is given the right one, and then what that one is given."""

    def decorate(wrong: Right) -> Right:
        add(title, family, place, in_layer(name, function, wrong))
        return wrong

    return decorate


def wrong_tape(title: str, family: str, method: str, place: str) -> Callable[[Right], Right]:
    """Decorate a wrong method of the tape: it is given the right one, and then what that one is given."""

    def decorate(wrong: Right) -> Right:
        def spoil(both: Any, patch: Any) -> None:
            right = getattr(Tape, method)
            patch.setattr(Tape, method, lambda tape, *given, **options: wrong(right, tape, *given, **options))

        add(title, family, place, spoil)
        return wrong

    return decorate


def in_backward(wrong: Callable[[Any, Any], None]) -> Spoil:
    """`wrong` is given the gradients of a whole right pass, and the learner."""

    def spoil(both: Any, patch: Any) -> None:
        class Wrong(type(both.manual.model)):  # type: ignore[misc]
            def backward(self, p: Any, d_output: Tensor, g: Any, tape: Tape) -> Tensor | None:
                dx = super().backward(p, d_output, g, tape)
                wrong(g, both)
                return dx

        model(Wrong)(both, patch)

    return spoil


# In any family


def last_gradient_off(g: Any, both: Any) -> None:
    (last,) = list(both.manual.model.shapes)[-1:]
    g[last] = 1.01 * g[last]


@dataclass(frozen=True)
class AllMoved:
    """Another optimizer's step, and then all of θ is off."""

    right: Any

    def update(self, theta: Tensor, *rest: Any) -> None:
        self.right.update(theta, *rest)
        theta.mul_(1.0 + 1e-6)


# Perceptrons


class TransposedInLayer2(WeightGradientTransposed):
    def weight_gradient(self, l, delta, a_before, a, params):
        return a_before.T @ delta if l == 2 else delta.T @ a_before


class TransposedOnTheWayFromLayer3(WeightTransposedInBP2):
    def da_before(self, l, delta, params):
        return super().da_before(l, delta, params) if l == 3 else delta @ params[f"layer{l}.weight"]


def forgetful_cost(rows: slice) -> Spoil:
    """A cost whose backward forgets these examples."""

    class ZeroGradient(Quadratic):
        def backward(self, dC: Any, cache: Any) -> Tensor:
            gradient = super().backward(dC, cache).clone()
            gradient[rows] = 0
            return gradient

    return lambda both, patch: patch.setattr(both.manual, "loss", ZeroGradient())


@dataclass(frozen=True)
class EverythingDecays(SGD):
    """L2 on biases too."""

    def update(self, theta, gradient, state, lr, t, decay, split):
        super().update(theta, gradient, state, lr, t, decay.max().expand_as(theta), split)


@dataclass(frozen=True)
class MeanStaysBehind(Lion):
    """Wrong where only the next step would show it, and the reference takes over this state: the mean stays behind."""

    def update(self, theta, gradient, state, lr, t, decay, split):
        super().update(theta, gradient, {"mean": state["mean"].clone()}, lr, t, decay, split)


add("BP4 transposed", "mlp", "BP4, layer 2, ∂C/∂W", model(TransposedInLayer2))
add("a mean over the batch", "mlp", "BP3, layer 3, ∂C/∂b", model(BiasGradientIsTheMean))
add("no σ′", "mlp", "BP1, layer 3, δ", model(SlopeForgottenInOutputLayer))
add("BP2 transposed", "mlp", "BP2, layer 2, ∂C/∂a", model(TransposedOnTheWayFromLayer3))
add("no gradient handed over", "mlp", "BP4, layer 1, ∂C/∂W", model(FirstLayerForgotten))
add("a cost without a gradient", "mlp", "∂C/∂output", forgetful_cost(slice(None)))
add("a cost that forgets an example", "mlp", "∂C/∂output", forgetful_cost(slice(0, 1)))
for rule in ("l1", "clip_norm", "clip_value", "max_norm"):
    add(f"{rule} of one side", "mlp", "the step's new layer1.weight", rule_of_one_side(rule))
add("l2 of biases", "mlp", "the step's new layer1.bias", optimizer(EverythingDecays(0.9)))
add(
    "Lion's mean stays behind",
    "mlp",
    "the step's new mean of layer1.weight",
    optimizer(MeanStaysBehind()),
    optimizer="lion",
)


# Convolutional networks


@wrong_layer("pooling sends it elsewhere", "cnn", "max_pool2d", "backward", "MP1, stage 2 conv, δ")
def flipped(right: Right, dy: Tensor, cache: Any) -> Tensor:
    return right(dy, cache).flip(-1)


@wrong_layer("γ for β", "cnn", "batch_norm", "backward", "BN1, stage 2 block 1 norm 2, ∂C/∂β")
def swapped(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    dx, dgamma, dbeta = right(dy, cache)
    return dx, dbeta, dgamma


@wrong_layer("BN4 for BN3", "cnn", "batch_norm", "backward", "BN3, stage 2 block 1 conv 2, δ")
def of_evaluation(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    """The mean and the variance taken for constants."""
    return batch_norm.backward_of_evaluate(dy, cache)


@wrong_layer("variance of n", "cnn", "batch_norm", "forward", "stage 1 norm, running_var")
def with_n(right: Right, x: Tensor, *arguments: Tensor) -> tuple[Any, ...]:
    """The running variance of n instead of n − 1."""
    y, cache, mean, var = right(x, *arguments)
    n = x[:, 0].numel()
    old = 0.9 * arguments[3]
    return y, cache, mean, old + (var - old) * (n - 1) / n


@wrong_layer("twice the momentum", "cnn", "batch_norm", "forward", "stage 1 norm, running_mean")
def twice_as_fast(right: Right, x: Tensor, *arguments: Tensor) -> tuple[Any, ...]:
    return right(x, *arguments, 0.2)


@wrong_tape("no way around", "cnn", "add", "RS1, stage 2 norm, ∂C/∂a")
def only_through_the_block(right: Right, tape: Tape, label: str, dy: Tensor, da: Tensor) -> Tensor:
    return right(tape, label, da)


@wrong_tape("a way around that is not forward's", "cnn", "forward", "stage 1 block 1 norm 2, a")
def without_a_way_around(right: Right, tape: Tape, layer: Any, name: str, *arguments: Any, **options: Any) -> Any:
    """σ behind a block reads the block's last norm alone."""
    if name.endswith(".norm2.a"):
        arguments = (tape.outputs[name.removesuffix(".a")],)
    return right(tape, layer, name, *arguments, **options)


@wrong_tape("an activation passed over", "cnn", "backward", "CV1, stage 2 block 1 norm 1, δ")
def without_activation(right: Right, tape: Tape, layer: Any, name: str, *d_outputs: Tensor, **options: Any) -> Any:
    """What comes back to σ of the first block goes past it."""
    gradients = right(tape, layer, name, *d_outputs, **options)
    return d_outputs[0] if name == "stage2.block1.norm1.a" else gradients


# A transformer block


@wrong_layer("softmax without its sum", "block", "attention", "backward", "AT1, q, δ")
def without_the_sum_of_softmax(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, P, dropped, mask, keep, s = cache
    dS = P * (dy @ v.mT if mask is None else dy @ v.mT * mask / keep)
    return s * dS @ k, s * dS.mT @ q, dropped.mT @ dy


@wrong_layer("keys without the scale", "block", "attention", "backward", "AT2, k, δ")
def keys_without_the_scale(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    dq, dk, dv = right(dy, cache)
    return dq, dk / cache[-1], dv


@wrong_layer("dv through P", "block", "attention", "backward", "AT3, v, δ")
def values_through_what_was_not_dropped(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, P, _, *rest = cache
    return right(dy, (q, k, v, P, P, *rest))


@wrong_layer("seeing ahead", "block", "attention", "forward", "attention, z")
def seeing_ahead(right: Right, q: Tensor, k: Tensor, v: Tensor, *noise: Any) -> Any:
    """Unmasked attention."""
    _, (*_, s) = right(q, k, v, *noise)
    P = (s * q @ k.mT).softmax(-1)
    mask, keep = noise or (torch.ones_like(P), 1.0)
    dropped = P * mask / keep
    return dropped @ v, (q, k, v, P, dropped, mask, keep, s)


def forgetting(
    right: Right, dy: Tensor, cache: Any, *, gradient: int, use: Callable[[Any], bool] = lambda cache: True
) -> Any:
    """The weight's gradient is dropped in those calls that `use` says, by their cache."""
    gradients = right(dy, cache)
    several = gradients if isinstance(gradients, tuple) else (gradients,)
    if use(cache):
        several = tuple(torch.zeros_like(g) if i == gradient else g for i, g in enumerate(several))
    return several if isinstance(gradients, tuple) else several[0]


def key_bias_off(g: Any, both: Any) -> None:
    """Declared to be zero in exact arithmetic, and still watched."""
    g["k.bias"] = g["k.bias"] + (1e-9 if both.manual.dtype == torch.float64 else 1e-4)


# The embedding of the ids has more rows than that of their places.
without_ids = partial(forgetting, gradient=0, use=lambda cache: len(cache[1]) > 8)
DE = "EM1 + MM2, wte, ∂C/∂E"
add("the head's part of dE", "block", DE, in_layer("matmul", "backward", partial(forgetting, gradient=1)))
add("the embedding's part of dE", "block", DE, in_layer("embedding", "backward", without_ids))
add("a key bias that is declared", "block", "LI3, k, ∂C/∂b", in_backward(key_bias_off))


# A recurrent network


def in_cell_where(carried: bool, gradient: int) -> Spoil:
    """Forgets a gradient of the call that begins with the carried state, or of all others."""

    def spoil(both: Any, patch: Any) -> None:
        def use(cache: Any) -> bool:
            return torch.equal(cache[1], both.manual.memory["h"]) == carried

        in_layer("recurrent_cell", "backward", partial(forgetting, gradient=gradient, use=use))(both, patch)

    return spoil


add("one call's dW_h", "cell", "RN4, cell, ∂C/∂W_h", in_cell_where(carried=False, gradient=3))
add("the first call's dW_x", "cell", "RN3, cell, ∂C/∂W_x", in_cell_where(carried=True, gradient=2))


@wrong_layer("no way through time", "cell", "recurrent_cell", "backward", "BT1, cell[5], δ")
def stopped_in_time(right: Right, dh: Tensor, cache: Any) -> tuple[Tensor, ...]:
    """Backpropagation through no time."""
    dx, dh, *gradients = right(dh, cache)
    return dx, torch.zeros_like(dh), *gradients


def twin_hands_on_the_state_before(both: Any, patch: Any) -> None:
    for other in both.others:

        class HandsOnTheStateBefore(type(other.module)):  # type: ignore[misc]
            def forward(self, ids: Tensor, memory: dict[str, Tensor] | None = None) -> Tensor:
                memory = {} if memory is None else memory
                states: list[Tensor] = []
                hook = self.cell.register_forward_hook(lambda module, given, output: states.append(output.detach()))
                output = super().forward(ids, memory)
                hook.remove()
                memory["h"] = states[-2]
                return output

        patch.setattr(other.module, "__class__", HandsOnTheStateBefore)


def learner_hands_on_nothing(both: Any, patch: Any) -> None:
    class Forgets(type(both.manual)):  # type: ignore[misc]
        def apply(self, result: Any, lr: Tensor) -> None:
            kept = self.memory
            super().apply(result, lr)
            self.memory = kept

    patch.setattr(both.manual, "__class__", Forgets)


add("a twin that hands on another state", "cell", "h, memory", twin_hands_on_the_state_before)
add("a learner that hands on nothing", "cell", "the step's new memory h", learner_hands_on_nothing)
