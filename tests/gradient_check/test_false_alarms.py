"""A gradient check that cries wolf is switched off: over right layers, drawn at random, it must say nothing."""

from inspect import signature

import pytest
import torch
from torch import Tensor

from gallery.naive import random_cotangents
from gallery.right import FAMILIES, random_right_layer
from gradient_check import check_backward, check_function

DTYPES = (torch.float64, torch.float32)
SLOW, LONG = pytest.mark.slow, pytest.mark.long


def alarm(seed: int, dtype: torch.dtype) -> str:
    """What the check says of a right layer: nothing, or the layer's name and seed and the report."""
    name, *pair_and_example, fixed, outputs = random_right_layer(seed, dtype)
    report = check_backward(*pair_and_example, outputs=outputs, not_differentiable=fixed, seed=seed)
    return "" if report.passed else f"{name}, seed {seed}, {dtype}:\n{report}"


@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_the_layers_are_right(number):
    """The gradients are autograd's, without the check that is on trial here."""
    for seed in range(number, number + 5 * len(FAMILIES), len(FAMILIES)):
        name, forward, backward, example, fixed, outputs = random_right_layer(seed)
        held = {list(signature(forward).parameters).index(argument) for argument in fixed}
        leaves = [v for i, v in enumerate(example) if i not in held and torch.is_tensor(v) and v.is_floating_point()]
        for leaf in leaves:
            leaf.requires_grad_()
        made = forward(*example)
        cotangents = random_cotangents(made[:outputs])
        expected = torch.autograd.grad(made[:outputs], leaves, cotangents, retain_graph=True)
        gradients = backward(*cotangents, made[outputs])
        gradients = (gradients,) if isinstance(gradients, Tensor) else gradients
        for g, e in zip(gradients, expected, strict=True):
            assert g.shape == e.shape, name
            assert (g - e).norm() < 1e-13 * max(e.norm().item(), 1e-3), name


def test_float32_has_the_same_layers_but_for_rounding():
    for seed in range(len(FAMILIES)):
        double, single = random_right_layer(seed).example, random_right_layer(seed, torch.float32).example
        torch.testing.assert_close(double, single, rtol=1e-5, atol=1e-8, check_dtype=False)


def test_a_wrong_layer_raises_one():
    _, forward, backward, example, *_ = random_right_layer(0)
    assert not check_backward(forward, lambda d, cache: [1.001 * g for g in backward(d, cache)], example).passed


def test_autograd_that_is_wrong_at_a_hidden_kink_is_not_believed():
    """max(x, 0) + log(1 + exp(−|x|)) is smooth, but autograd takes 1 + 0 for its slope at 0, which is ½."""

    def forward(x):
        return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())), x

    def check(slope_at_zero):
        def backward(dy, x):
            return dy * torch.where(x == 0, slope_at_zero, torch.sigmoid(x))

        return check_backward(forward, backward, [torch.tensor([0.0, 0.7, -1.2], dtype=torch.float64)], cases=[])

    assert check(0.5).passed
    assert check(0.5).kinks
    assert not check(0.4).passed


def test_without_a_reference_too_what_cancels_is_judged_by_the_ordinary_size():
    """The gradient of a softmax is zero for a cotangent that is one number everywhere, in float32 only nearly."""
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert check_function(lambda z: torch.softmax(z, -1), [z]).passed


@pytest.mark.parametrize("step", [167, pytest.param(29, marks=SLOW), pytest.param(2, marks=LONG)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_layers_raise_no_alarm(dtype, step):
    """Of a thousand: six, 35, or a half, while the other half is in the other precision."""
    seeds = range(DTYPES.index(dtype), 1000, step)
    alarms = [said for seed in seeds if (said := alarm(seed, dtype))]
    assert not alarms, f"{len(alarms)} of {len(seeds)}\n" + "\n".join(alarms)
