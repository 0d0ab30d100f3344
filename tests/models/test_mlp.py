"""What is the perceptron's own: one neuron by hand, BP1 to BP4 by name, and what it refuses."""

import re

import pytest
import torch

import reference.mlp
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from tests.support.both_ways import LOSSES, by_hand, random_batch, random_parameters
from training.data.noise import dropout_noise


def test_a_neuron_by_hand():
    """One sigmoid neuron: z = 0, a = ½, C = ½(a − 1)² = ⅛, δ = (a − 1) a (1 − a) = −⅛."""
    model = MLP((2, 1), ("sigmoid",))
    params = {"layer1.weight": torch.tensor([[1.0, -2.0]]), "layer1.bias": torch.tensor([3.0])}
    result = by_hand(model, LOSSES["quadratic"], params, torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    assert result["C"].item() == 0.125
    assert result["δ layer1"].tolist() == [[-0.125]]
    assert result["∂C/∂layer1.bias"].tolist() == [-0.125]
    assert result["∂C/∂layer1.weight"].tolist() == [[-0.125, -0.25]]
    assert result["dx"].tolist() == [[-0.125, 0.25]]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_calls_and_equations_are_named(training):
    model = MLP((4, 6, 5, 3), ("tanh", "relu", "identity"), dropout=0.5)
    params, (x, _) = random_parameters(model, seed=5), random_batch(7, 4, 3, seed=6)
    tape = Tape(training=training, noise=dropout_noise(0)(0, x.device, x.dtype), observes=True)
    output = model.forward(params, x, tape)
    model.backward(params, torch.ones_like(output), {}, tape)
    expected = {"layer3.a": "∂C/∂output", "layer3": "BP1"}
    for l in (2, 1):
        dropped = {f"layer{l}.dropout": "BP2", f"layer{l}.a": "DO1"} if training else {f"layer{l}.a": "BP2"}
        expected |= dropped | {f"layer{l}": "BP2"}
    assert list(tape.labels.items()) == list(expected.items())
    twin = reference.mlp.MLP(model.sizes, model.activations, model.dropout)
    names = [name for name in twin.observed() if training or not name.endswith("dropout")]
    assert list(tape.outputs) == list(reversed(expected)) == names
    assert tape.outputs["layer3.a"] is output
    kinds = [call.kind for call in tape.calls.values() if call.kind != "dropout"]
    assert kinds == ["linear", "tanh", "linear", "relu", "linear", "identity"]
    assert tape.equations(params) == {name: ("BP3" if name.endswith("bias") else "BP4", "") for name in model.shapes}


SIZES = "make no network: give two or more sizes, each at least 1"
REFUSED = [
    ((4,), (), 0.0, f"sizes (4,) {SIZES}"),
    ((4, 0, 2), ("tanh", "tanh"), 0.0, f"sizes (4, 0, 2) {SIZES}"),
    ((4, 3, 2), ("tanh",), 0.0, "1 activations (tanh) do not fit 2 layers: give one per layer"),
    ((4, 3), ("tanh", "relu"), 0.0, "2 activations (tanh, relu) do not fit 1 layers: give one per layer"),
    ((4, 2), ("swish",), 0.0, "'swish' is not an activation; there are "),
    ((3, 2), ("tanh",), -0.1, "dropout is -0.1, but it must be from 0 to below 1"),
    ((3, 2), ("tanh",), 1.0, "dropout is 1.0, but it must be from 0 to below 1"),
    ((3, 2), ("tanh",), float("nan"), "dropout is nan, but it must be from 0 to below 1"),
]


@pytest.mark.parametrize(("sizes", "activations", "dropout", "said"), REFUSED)
def test_configurations_that_make_no_network_are_refused(sizes, activations, dropout, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        MLP(sizes, activations, dropout=dropout)
