"""What is the perceptron's own: one neuron by hand, BP1 to BP4 by name, dropout, and what it refuses."""

import pytest
import torch

import reference.mlp
from gradient_check import compare_gradients
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from tests.support.both_ways import LOSSES, TWIN_LOSSES, by_hand, by_twin, differ, random_batch, random_parameters
from tests.support.networks import stacked
from training.data.noise import dropout_noise


def test_dropout_goes_on_with_the_kept_activations_enlarged():
    problem, noise = stacked(3, "tanh", "quadratic").dropped(0.4)
    model, params, (x, _) = problem.model, problem.params, problem.data
    tape = Tape(training=True, noise=noise)
    output = model.forward(params, x, tape)
    for l in (1, 2):
        (_, _, a), (a_before, _, _) = tape.caches[f"layer{l}"], tape.caches[f"layer{l + 1}"]
        mask = noise(f"layer{l}.dropout", tuple(a.shape), 0.6)
        torch.testing.assert_close(a_before, torch.where(mask == 1, a / 0.6, 0.0), rtol=1e-15, atol=0)
        assert 0 < mask.mean() < 1
    evaluating = Tape(noise=noise)
    plain = model.forward(params, x, evaluating)
    assert list(evaluating.caches) == ["layer1", "layer2", "layer3"]
    without = MLP(model.sizes, model.activations).forward(params, x, Tape(training=True))
    assert torch.equal(plain, without)  # evaluation drops nothing
    assert differ(output, plain)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_outside_of_its_range_is_refused(dropout):
    with pytest.raises(ValueError, match=r"dropout is .*, but it must be from 0 to below 1"):
        MLP((3, 2), ("tanh",), dropout=dropout)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_at_a_pre_activation_of_exactly_zero_the_derivative_is_torchs(activation):
    model = MLP((4, 5, 3), (activation, "identity"))
    params = random_parameters(model, seed=3)
    params["layer1.weight"][1:3] = 0
    params["layer1.bias"][1:3] = 0
    x, y = random_batch(6, 4, 3, seed=4)
    by_hand_result = by_hand(model, LOSSES["quadratic"], params, x, y)
    twin = reference.mlp.MLP(model.sizes, model.activations)
    compare_gradients(by_hand_result, by_twin(twin, TWIN_LOSSES["quadratic"], params, x, y)).assert_passed()
    slope = ACTIVATIONS[activation].derivative(torch.zeros(()), torch.zeros(()))
    assert slope.item() == pytest.approx({"relu": 0.0, "leaky_relu": 0.01}[activation])


def test_the_outputs_are_the_tensors_that_flow_on():
    model = MLP((4, 6, 5, 3), ("tanh", "relu", "sigmoid"))
    params, (x, _) = random_parameters(model, seed=5), random_batch(7, 4, 3, seed=6)
    tape = Tape(observes=True)
    output, seen = model.forward(params, x, tape), tape.outputs
    assert list(seen) == [f"layer{l}{a}" for l in (1, 2, 3) for a in ("", ".a")]
    assert seen["layer3.a"] is output
    assert {**model.buffers(), **tape.new_buffers, **tape.new_memory} == {}
    torch.testing.assert_close(seen["layer1.a"], torch.tanh(seen["layer1"]))
    z = seen["layer1.a"] @ params["layer2.weight"].T + params["layer2.bias"]
    torch.testing.assert_close(seen["layer2"], z)
    assert [call.kind for call in tape.calls.values()] == ["linear", "tanh", "linear", "relu", "linear", "sigmoid"]


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


def test_equations_are_named():
    model = MLP((4, 6, 5, 3), ("tanh", "tanh", "identity"), dropout=0.5)
    params, (x, _) = random_parameters(model, seed=5), random_batch(7, 4, 3, seed=6)
    for training in (False, True):
        tape = Tape(training=training, noise=dropout_noise(0)(0, x.device, x.dtype), observes=True)
        model.backward(params, torch.ones_like(model.forward(params, x, tape)), {}, tape)
        expected = {"layer3.a": "∂C/∂output", "layer3": "BP1"}
        for l in (2, 1):
            dropped = {f"layer{l}.dropout": "BP2", f"layer{l}.a": "DO1"} if training else {f"layer{l}.a": "BP2"}
            expected |= dropped | {f"layer{l}": "BP2"}
        assert list(tape.labels.items()) == list(expected.items())
        twin = reference.mlp.MLP(model.sizes, model.activations, model.dropout)
        names = [name for name in twin.observed() if training or not name.endswith("dropout")]
        assert list(tape.outputs) == list(reversed(expected)) == names
        assert tape.equations(params) == {
            name: ("BP3", "") if name.endswith("bias") else ("BP4", "") for name in model.shapes
        }


@pytest.mark.parametrize(
    ("sizes", "activations", "message"),
    [
        ((4,), (), "two or more sizes"),
        ((4, 0, 2), ("tanh", "tanh"), "at least 1"),
        ((4, 3, 2), ("tanh",), "2 layers: give one per layer"),
        ((4, 3), ("tanh", "relu"), r"^2 activations \(tanh, relu\) do not fit 1 layers: give one per layer$"),
        ((4, 2), ("swish",), "'swish' is not an activation; there are sigmoid, tanh"),
    ],
    ids=["one size", "a width of 0", "an activation too few", "an activation too many", "an unknown activation"],
)
def test_configurations_that_make_no_network_are_refused(sizes, activations, message):
    with pytest.raises(ValueError, match=message):
        MLP(sizes, activations)
