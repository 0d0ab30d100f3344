"""The perceptron's gradients, every δ and dx, against every oracle."""

from itertools import combinations, product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import reference.mlp
from gradient_check import compare_gradients
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.mlp import MLP
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from tests.support.both_ways import (
    LOSSES,
    TWIN_LOSSES,
    assert_central_differences_agree,
    assert_not_trivial,
    by_autograd,
    by_hand,
    by_twin,
    differ,
    random_batch,
    random_parameters,
)
from training.data.noise import dropout_noise

WIDTHS = (11, 9, 6, 13, 5, 8, 12, 7, 10)  # all different, so that a transposed matrix cannot fit
DEPTHS = range(1, 9)
BATCHES = (1, 2, 7, 33)
NAMES = (*ACTIVATIONS, "mixed")
GAINS = {"relu": 1.5, "leaky_relu": 1.5, "sigmoid": 3.0, "gelu": 2.0, "silu": 2.0, "gelu_tanh": 2.0}


def build(depth: int, activation: str, loss: str) -> MLP:
    """`mixed` takes a different activation in every layer; a loss from logits has identity in the last one."""
    names = list(ACTIVATIONS)
    activations = [names[l % len(names)] if activation == "mixed" else activation for l in range(depth)]
    if LOSSES[loss].from_logits:
        activations[-1] = "identity"
    return MLP(WIDTHS[: depth + 1], tuple(activations))


# All pairs of depth and activation; the losses and batch sizes run through them so that every other pair occurs too.
CASES = [
    (depth, activation, list(LOSSES)[(depth + 3 * i) % len(LOSSES)], BATCHES[(depth // 2 + i) % len(BATCHES)])
    for depth, (i, activation) in product(DEPTHS, enumerate(NAMES))
]


def case_id(case: tuple) -> str:
    depth, activation, loss, batch = case
    return f"{depth} {activation} layers, {loss}, batch of {batch}"


def problem(case: tuple):
    depth, activation, loss, batch = case
    model = build(depth, activation, loss)
    params = random_parameters(model, seed=depth, gain=GAINS.get(activation, 1.3))
    return model, LOSSES[loss], params, *random_batch(batch, model.sizes[0], model.sizes[-1], seed=batch)


def test_the_cases_cover_every_pair_of_settings():
    for i, j in combinations(range(4), 2):
        values = [set(case[k] for case in CASES) for k in (i, j)]
        assert {(case[i], case[j]) for case in CASES} == set(product(*values))


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_equals_autograd_through_the_same_forward(case):
    model, loss, params, x, y = problem(case)
    expected = by_autograd(model, loss, params, x, y)
    assert_not_trivial(expected)
    compare_gradients(by_hand(model, loss, params, x, y), expected).assert_passed()


def dropped(case: tuple, dropout: float):
    """The problem with noise for its hidden layers."""
    model, loss, params, x, y = problem(case)
    noise = dropout_noise(seed=3)(0, x.device, x.dtype)
    return MLP(model.sizes, model.activations, dropout=dropout), loss, params, x, y, noise


DEEP = [case for case in CASES if case[0] in (2, 3, 5) and case[3] > 1]


@pytest.mark.parametrize("case", DEEP, ids=case_id)
def test_with_dropout_it_equals_autograd_and_the_twin(case):
    model, loss, params, x, y, noise = dropped(case, 0.4)
    mine = by_hand(model, loss, params, x, y, noise=noise)
    compare_gradients(mine, by_autograd(model, loss, params, x, y, noise=noise), allow_trivial=True).assert_passed()
    twin = reference.mlp.MLP(model.sizes, model.activations, model.dropout)
    theirs = by_twin(twin, TWIN_LOSSES[case[2]], params, x, y, noise=noise)
    compare_gradients(mine, theirs, allow_trivial=True).assert_passed()
    without = by_hand(MLP(model.sizes, model.activations), loss, params, x, y)
    evaluated = by_twin(twin.eval(), TWIN_LOSSES[case[2]], params, x, y, noise=noise)
    compare_gradients(without, evaluated).assert_passed()  # evaluation drops nothing
    assert differ(mine["∂C/∂layer1.weight"], without["∂C/∂layer1.weight"])


def test_dropout_goes_on_with_the_kept_activations_enlarged():
    model, _, params, x, _, noise = dropped((3, "tanh", "quadratic", 7), 0.4)
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
    assert not torch.allclose(output, plain)


def test_masks_of_zeros_let_nothing_through():
    """The first layers get no gradient, and the last only that of its bias."""
    model, loss, params, x, y, _ = dropped((3, "tanh", "quadratic", 7), 0.4)
    nothing = by_hand(model, loss, params, x, y, noise=lambda call, shape, keep: torch.zeros(shape, dtype=x.dtype))
    nonzero = {name for name, tensor in nothing.items() if tensor.any()}
    assert nonzero == {"C", "δ output", "δ layer3.a", "δ layer3", "δ layer2.dropout", "∂C/∂layer3.bias"}


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_outside_of_its_range_is_refused(dropout):
    with pytest.raises(ValueError, match=r"dropout is .*, but it must be from 0 to below 1"):
        MLP((3, 2), ("tanh",), dropout=dropout)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_equals_the_twin(case):
    model, loss, params, x, y = problem(case)
    twin = reference.mlp.MLP(model.sizes, model.activations)
    expected = by_twin(twin, TWIN_LOSSES[case[2]], params, x, y)
    compare_gradients(by_hand(model, loss, params, x, y), expected).assert_passed()


@pytest.mark.parametrize("case", [case for case in CASES if case[3] < 33][::4], ids=case_id)
def test_equals_central_differences(case):
    assert_central_differences_agree(*problem(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES[1::4] + CASES[2::4], ids=case_id)  # two others' draws are too badly conditioned
def test_in_lower_precision_is_as_close_to_the_truth_as_the_twin_is(case, dtype):
    model, loss, params, x, y = problem(case)
    twin_loss = TWIN_LOSSES[case[2]]
    params, x = {name: tensor.to(dtype) for name, tensor in params.items()}, x.to(dtype)
    exact = {name: tensor.double() for name, tensor in params.items()}
    expected = by_twin(reference.mlp.MLP(model.sizes, model.activations), twin_loss, params, x, y)
    truth = by_twin(reference.mlp.MLP(model.sizes, model.activations), twin_loss, exact, x.double(), y)
    assert_not_trivial(truth)
    compare_gradients(by_hand(model, loss, params, x, y), expected, truth=truth).assert_passed()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_count_other_than_the_batch_divides_every_gradient(loss):
    model = build(3, "tanh", loss)
    params, (x, y) = random_parameters(model, seed=1), random_batch(7, 11, 13, seed=2)
    expected = by_autograd(model, LOSSES[loss], params, x, y, count=20)
    compare_gradients(by_hand(model, LOSSES[loss], params, x, y, count=20), expected).assert_passed()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_parts_of_a_batch_add_up_to_the_whole(loss):
    model = build(3, "sigmoid", loss)
    params, (x, y) = random_parameters(model, seed=1), random_batch(7, 11, 13, seed=2)
    whole = by_hand(model, LOSSES[loss], params, x, y)
    parts = [by_hand(model, LOSSES[loss], params, x[rows], y[rows], count=7) for rows in (slice(0, 4), slice(4, 7))]
    summed = {name: parts[0][name] + parts[1][name] for name in whole if name == "C" or name.startswith("∂C/∂")}
    stacked = {name: torch.cat([part[name] for part in parts]) for name in whole if name not in summed}
    compare_gradients({**summed, **stacked}, whole).assert_passed()


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


def test_gradients_can_be_views_of_one_vector():
    model, loss, params, x, y = problem(CASES[-1])
    gradient = Parameters(model.shapes, dtype=torch.float64)
    tape = Tape()
    _, cache = loss.forward(model.forward(params, x, tape), y)
    dx = model.backward(params, loss.backward(1.0, cache), gradient, tape)
    assert dx is None
    expected = by_hand(model, loss, params, x, y)
    for name, tensor in gradient.items():
        assert torch.equal(tensor, expected[f"∂C/∂{name}"])
    assert gradient.theta.numel() == sum(tensor.numel() for tensor in params.values())


def test_without_need_dx_the_first_layers_product_is_saved():
    """2·B·n⁰·n¹ operations: as many as its BP4 costs."""
    model = MLP((4, 6, 5), ("tanh", "tanh"))
    params, (x, _) = random_parameters(model, seed=5), random_batch(7, 4, 5, seed=6)
    operations = {}
    for need_dx in (False, True):
        tape = Tape(need_dx=need_dx)
        output = model.forward(params, x, tape)
        with FlopCounterMode(display=False) as counter:
            model.backward(params, torch.ones_like(output), {}, tape)
        operations[need_dx] = counter.get_total_flops()
    assert operations == {False: 2 * 7 * (4 * 6 + 2 * 6 * 5), True: 2 * 7 * (2 * 4 * 6 + 2 * 6 * 5)}


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
