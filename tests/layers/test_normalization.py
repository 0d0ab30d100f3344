"""Batch, layer and group normalization against torch's, in training and in evaluation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from manual_backprop.layers import batch_norm, group_norm, layer_norm
from reference import layers as twins
from tests.support.against_torch import assert_same, assert_torchs, normal, refusal

SHAPES = [(2, 3), (7, 5), (4, 1, 3), (1, 3, 4), (3, 2, 5), (2, 3, 1, 2), (3, 4, 2, 5), (2, 3, 2, 2, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def vectors(C: int, count: int = 2) -> list[torch.Tensor]:
    """γ, β, mean, variance: none at its default."""
    return [normal(1 + i, C).abs() + 0.3 for i in range(count)]


def arguments(shape: tuple[int, ...], count: int = 4) -> list[torch.Tensor]:
    return [1.5 * normal(0, *shape) - 0.7, *vectors(shape[1], count)]


@each_shape
def test_batch_norm_is_torchs_in_training_and_in_evaluation(shape):
    for options in ((), (0.3, 0.5)):
        given, eps = arguments(shape), options[1:]
        assert_torchs(batch_norm, twins.batch_norm, *given, *options, fixed=(3, 4))
        assert_torchs(batch_norm.evaluation, twins.batch_norm_evaluation, *given, *eps, fixed=(3, 4))


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) in (2, 4)], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0])
def test_running_statistics_are_those_of_torchs_module_over_several_steps(shape, momentum):
    module = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1], momentum=momentum).double()
    mean, var = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double()
    gamma, beta = module.weight.detach(), module.bias.detach()
    for step in range(5):
        x = (step + 1) * normal(step, *shape) + step
        before = mean.clone(), var.clone()
        y, _, new_mean, new_var = batch_norm.forward(x, gamma, beta, mean, var, momentum)
        assert torch.equal(mean, before[0])
        assert torch.equal(var, before[1])
        mean, var = new_mean, new_var
        assert_same(y, module(x).detach(), "y")
        assert_same(mean, module.running_mean, "the running mean")
        assert_same(var, module.running_var, "the running variance")
    module.eval()
    x = normal(9, *shape)
    assert_same(batch_norm.evaluate(x, gamma, beta, mean, var)[0], module(x).detach(), "y in evaluation")


@each_shape
def test_layer_norm_is_torchs(shape):
    for dims in range(1, len(shape) + 1):
        x, gamma, beta = 1.5 * normal(0, *shape) - 0.7, normal(1, *shape[-dims:]), normal(2, *shape[-dims:])
        assert_torchs(layer_norm, twins.layer_norm, x, gamma, beta)
        assert_torchs(layer_norm, twins.layer_norm, x, gamma, beta, 0.5)


@each_shape
def test_group_norm_is_torchs(shape):
    def torchs(x, gamma, beta, groups, eps=1e-5):
        return F.group_norm(x, groups, gamma, beta, eps)

    for groups in (g for g in range(1, shape[1] + 1) if shape[1] % g == 0 and (len(shape) > 2 or g < shape[1])):
        assert_torchs(group_norm, torchs, *arguments(shape, 2), groups)
        assert_torchs(group_norm, torchs, *arguments(shape, 2), groups, 0.5)
        assert_torchs(group_norm, twins.group_norm, *arguments(shape, 2), groups)


def test_of_no_example_nothing_comes():
    for last in ((4,), (3, 4)):
        assert_torchs(layer_norm, twins.layer_norm, normal(0, 0, 3, 4), normal(1, *last), normal(2, *last))
    assert_torchs(group_norm, twins.group_norm, *arguments((0, 4, 3), 2), 2)


@pytest.mark.parametrize("value", [0.1, 1e4 / 3, -2.2912249])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_constant_values_come_out_as_beta_exactly(value, dtype):
    """1/√ε would enlarge the rounding of the mean 316 times; torch's batch norm is off by up to 0.4 there."""
    x = torch.full((7, 6, 5), value, dtype=dtype)
    gamma, beta, mean, var = (v.to(dtype) for v in vectors(6, 4))
    y, _, _, new_var = batch_norm.forward(x, gamma, beta, mean, var)
    expected = beta.view(6, 1).expand(7, 6, 5)
    assert torch.equal(y, expected)
    torch.testing.assert_close(new_var, 0.9 * var)
    assert torch.equal(group_norm.forward(x, gamma, beta, 2)[0], expected)
    assert torch.equal(layer_norm.forward(x, gamma[:5], beta[:5])[0], beta[:5].expand(7, 6, 5))
    each_another = torch.linspace(0.1, value, 6, dtype=dtype).view(6, 1).expand(7, 6, 5)
    assert torch.equal(batch_norm.forward(each_another, gamma, beta, mean, var)[0], expected)


def test_half_precision_holds_values_whose_squares_it_does_not():
    x = 1e4 * torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, -1.0]], dtype=torch.float16)
    one, zero = torch.ones(3, dtype=torch.float16), torch.zeros(3, dtype=torch.float16)
    expected = F.layer_norm(x.double(), (3,))
    torch.testing.assert_close(layer_norm.forward(x, one, zero)[0].double(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize(("shape", "n"), [((1, 3), 1), ((0, 3, 2), 0)])
def test_one_value_per_channel_has_no_variance(shape, n):
    said = f"x is {shape}, {n} to a channel, which has no variance: give at least 2"
    assert refusal(batch_norm.forward, shape, *4 * [(3,)]) == said
    assert batch_norm.evaluate(normal(0, *shape), *vectors(3, 4))[0].shape == shape


@pytest.mark.parametrize("function", [batch_norm.forward, batch_norm.evaluate], ids=["training", "evaluation"])
@pytest.mark.parametrize("wrong", ["x", 0, 1, 2, 3])
def test_vectors_that_do_not_fit_the_channels(function, wrong):
    x, own = (3,) if wrong == "x" else (4, 3), [(1,) if i == wrong else (3,) for i in range(4)]
    said = f"x is {x}, γ, β, mean and variance are {', '.join(map(str, own))}: give (B, C, …) and (C,)"
    assert refusal(function, x, *own) == said


LAST = "give γ and β of the shape of the last dimensions of x"
CHANNELS = "give (B, C, …), (C,) and (C,)"
MISFITS = [
    (layer_norm, ((4, 3), (2,), (2,)), f"x is (4, 3), γ (2,) and β (2,): {LAST}"),
    (layer_norm, ((4, 3), (3,), (1,)), f"x is (4, 3), γ (3,) and β (1,): {LAST}"),
    (layer_norm, ((4, 3), (), ()), f"x is (4, 3), γ () and β (): {LAST}"),
    (group_norm, ((2, 4, 3), (3,), (4,), 2), f"x is (2, 4, 3), γ (3,) and β (4,): {CHANNELS}"),
    (group_norm, ((2, 4, 3), (4,), (3,), 2), f"x is (2, 4, 3), γ (4,) and β (3,): {CHANNELS}"),
    (group_norm, ((4,), (4,), (4,), 2), f"x is (4,), γ (4,) and β (4,): {CHANNELS}"),
    (group_norm, ((2, 4, 3), (4,), (4,), 3), "3 groups for 4 channels: give a divisor"),
    (group_norm, ((2, 4, 3), (4,), (4,), 0), "0 groups for 4 channels: give a divisor"),
]


@pytest.mark.parametrize(("layer", "given", "said"), MISFITS)
def test_shapes_and_groups_that_do_not_fit_are_said(layer, given, said):
    assert refusal(layer.forward, *given) == said
