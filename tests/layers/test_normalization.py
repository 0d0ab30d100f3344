"""Batch, layer and group normalization against torch's, in training and in evaluation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradient_check import check_backward
from manual_backprop.layers import batch_norm, group_norm, layer_norm
from reference import layers as twins
from tests.support.against_torch import assert_same, assert_torchs, normal

SHAPES = [(2, 3), (7, 5), (4, 1, 3), (1, 3, 4), (3, 2, 5), (2, 3, 1, 2), (3, 4, 2, 5), (2, 3, 2, 2, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def vectors(C: int, count: int = 2, seed: int = 1) -> list[torch.Tensor]:
    """γ, β, mean, variance: none at its default."""
    return [normal(seed + i, C).abs() + 0.3 for i in range(count)]


def arguments(shape: tuple[int, ...], count: int = 4) -> list[torch.Tensor]:
    return [1.5 * normal(0, *shape) - 0.7, *vectors(shape[1], count)]


@each_shape
def test_batch_norm_is_torchs(shape):
    fixed = (3, 4)
    assert_torchs(batch_norm, twins.batch_norm, *arguments(shape), fixed=fixed)
    assert_torchs(batch_norm, twins.batch_norm, *arguments(shape), 0.3, 0.5, fixed=fixed)


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


def evaluated(x, gamma, beta, running_mean, running_var, eps=1e-5):
    return F.batch_norm(x, running_mean, running_var, gamma, beta, False, eps=eps)


@each_shape
def test_batch_norm_in_evaluation(shape):
    given = arguments(shape)
    for options in ([], [0.5]):
        report = check_backward(
            batch_norm.evaluate,
            batch_norm.backward_of_evaluate,
            [*given, *options],
            not_differentiable=batch_norm.not_differentiable,
            reference=evaluated,
            dtypes=["float64", "float32"],
            cases=["layouts", "batch"] if len(shape) == 4 else [],
        )
        report.assert_passed()


def test_in_evaluation_no_example_depends_on_the_others():
    x, *rest = arguments((5, 3, 2, 4))
    whole, _ = batch_norm.evaluate(x, *rest)
    assert torch.equal(batch_norm.evaluate(x[1:2], *rest)[0], whole[1:2])


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
    x, gamma, beta = arguments((0, 4, 3), 2)
    y, cache = group_norm.forward(x, gamma, beta, 2)
    dx, dgamma, dbeta = group_norm.backward(y, cache)
    assert (y.shape, dx.shape) == (x.shape, x.shape)
    assert torch.equal(dgamma, torch.zeros(4).double())
    assert torch.equal(dbeta, torch.zeros(4).double())


@pytest.mark.parametrize("value", [0.1, 1e4 / 3, -2.2912249])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_constant_values_come_out_as_beta_exactly(value, dtype):
    """1/√ε would enlarge the rounding of the mean 316 times; torch's batch norm is off by up to 0.4 there."""
    x = torch.full((7, 6, 5), value, dtype=dtype)
    gamma, beta, mean, var = (v.to(dtype) for v in vectors(6, 4))
    y, _, _, new_var = batch_norm.forward(x, gamma, beta, mean, var)
    assert torch.equal(y, beta.view(6, 1).expand(7, 6, 5))
    torch.testing.assert_close(new_var, 0.9 * var)
    assert torch.equal(group_norm.forward(x, gamma, beta, 2)[0], beta.view(6, 1).expand(7, 6, 5))
    assert torch.equal(layer_norm.forward(x, gamma[:5], beta[:5])[0], beta[:5].expand(7, 6, 5))


def test_half_precision_holds_values_whose_squares_it_does_not():
    x = 1e4 * torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, -1.0]], dtype=torch.float16)
    one, zero = torch.ones(3, dtype=torch.float16), torch.zeros(3, dtype=torch.float16)
    expected = F.layer_norm(x.double(), (3,))
    torch.testing.assert_close(layer_norm.forward(x, one, zero)[0].double(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "group_norm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_lower_precision(name, dtype):
    layer = {"batch_norm": batch_norm, "layer_norm": layer_norm, "group_norm": group_norm}[name]
    for example in layer.examples(torch.Generator().manual_seed(1)):
        report = check_backward(
            layer.forward,
            layer.backward,
            example,
            not_differentiable=getattr(layer, "not_differentiable", ()),
            dtypes=[dtype],
            cases=["values"],
        )
        report.assert_passed()


def said_by(function, *given, **options) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        function(*given, **options)
    return str(caught.value)


def test_one_value_per_channel_has_no_variance():
    said = "x is (1, 3), 1 to a channel, which has no variance: give at least 2"
    assert said_by(batch_norm.forward, normal(0, 1, 3), *vectors(3, 4)) == said
    said = "x is (0, 3, 2), 0 to a channel, which has no variance: give at least 2"
    assert said_by(batch_norm.forward, normal(0, 0, 3, 2), *vectors(3, 4)) == said
    assert batch_norm.evaluate(normal(0, 1, 3), *vectors(3, 4))[0].shape == (1, 3)


@pytest.mark.parametrize("function", [batch_norm.forward, batch_norm.evaluate], ids=["training", "evaluation"])
def test_vectors_that_do_not_fit_the_channels(function):
    said = "x is (4, 3), γ, β, mean and variance are (3,), (3,), (2,), (3,): give (B, C, …) and (C,)"
    good = vectors(3, 4)
    assert said_by(function, normal(0, 4, 3), *good[:2], good[2][:2], good[3]) == said
    said = "x is (3,), γ, β, mean and variance are (3,), (3,), (3,), (3,): give (B, C, …) and (C,)"
    assert said_by(function, normal(0, 3), *good) == said
    for i in range(4):
        bad = [v[:1] if i == j else v for j, v in enumerate(good)]
        assert "give (B, C, …) and (C,)" in said_by(function, normal(0, 4, 3), *bad)


def test_shapes_that_layer_norm_does_not_take():
    x, g = normal(0, 4, 3), vectors(3, 1)[0]
    end = "give γ and β of the shape of the last dimensions of x"
    assert said_by(layer_norm.forward, x, g[:2], g[:2]) == f"x is (4, 3), γ (2,) and β (2,): {end}"
    assert said_by(layer_norm.forward, x, g, g[:1]) == f"x is (4, 3), γ (3,) and β (1,): {end}"
    assert said_by(layer_norm.forward, x, g[0], g[0]) == f"x is (4, 3), γ () and β (): {end}"


def test_shapes_and_groups_that_group_norm_does_not_take():
    x, g = normal(0, 2, 4, 3), vectors(4, 1)[0]
    end = "give (B, C, …), (C,) and (C,)"
    assert said_by(group_norm.forward, x, g[:3], g, 2) == f"x is (2, 4, 3), γ (3,) and β (4,): {end}"
    assert said_by(group_norm.forward, x, g, g[:3], 2) == f"x is (2, 4, 3), γ (4,) and β (3,): {end}"
    assert said_by(group_norm.forward, g, g, g, 2) == f"x is (4,), γ (4,) and β (4,): {end}"
    assert said_by(group_norm.forward, x, g, g, 3) == "3 groups for 4 channels: give a divisor"
    assert said_by(group_norm.forward, x, g, g, 0) == "0 groups for 4 channels: give a divisor"


def test_every_channel_may_be_another_constant():
    x = torch.linspace(0.1, 1e4 / 3, 6).view(6, 1).expand(7, 6, 5)
    gamma, beta, mean, var = (v.float() for v in vectors(6, 4))
    assert torch.equal(batch_norm.forward(x, gamma, beta, mean, var)[0], beta.view(6, 1).expand(7, 6, 5))
