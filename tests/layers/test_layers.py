"""Every layer in manual_backprop/layers, found through its `examples`; activations, linear and prelu closer."""

from math import e, pi, sqrt

import pytest
import torch

from gradient_check import check_backward
from manual_backprop import layers
from manual_backprop.layers import conv2d, linear, prelu
from manual_backprop.layers.activations import ACTIVATIONS
from reference import layers as twins
from reference.mlp import ACTIVATIONS as REFERENCE
from tests.support import both_ways
from tests.support.against_torch import assert_torchs, normal, refusal
from training.learners.verification import layer_examples

EXAMPLES = list(both_ways.layer_examples(layers))
TWINS = [twin for _, _, twin, _ in layer_examples(seed=0)]
each_layer = pytest.mark.parametrize(
    ("forward", "backward", "arguments", "options", "twin"),
    [(*e[1:], twin) for e, twin in zip(EXAMPLES, TWINS, strict=True)],
    ids=[e[0] for e in EXAMPLES],
)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
exact_and_single = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
# Derivatives far to the left, at zero and far to the right. Next to zero they are what they are at zero, but for a kink
# there: at zero, as on the left, what they are far to the left, on the right what they are far to the right.
LIMITS = {
    "sigmoid": (0, 0.25, 0),
    "tanh": (0, 1, 0),
    "relu": (0, 0, 1),
    "leaky_relu": (0.01, 0.01, 1),
    "softplus": (0, 0.5, 1),
    "gelu": (0, 0.5, 1),
    "silu": (0, 0.5, 1),
    "gelu_tanh": (0, 0.5, 1),
    "identity": (1, 1, 1),
    "scaled_tanh": (0, 1.7159 * 2 / 3, 0),
}


def test_every_activation_has_limits():
    missing = ", ".join(ACTIVATIONS.keys() - LIMITS.keys())
    assert not missing, f"LIMITS has to say where the derivative of {missing} goes"


@pytest.mark.sweep(3)
@each_layer
def test_backward_equals_the_twin_autograd_and_the_dot_product(forward, backward, arguments, options, twin):
    check_backward(forward, backward, arguments, reference=twin, **options).assert_passed()


@pytest.mark.sweep(6)
@each_layer
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_lower_precision_it_is_as_exact_as_its_twin(forward, backward, arguments, options, twin, dtype):
    options = options | {"reference": twin, "dtypes": [dtype], "cases": ["values"]}
    check_backward(forward, backward, arguments, **options).assert_passed()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_convolution_is_as_exact_as_torchs_where_the_order_of_the_sum_matters(dtype):
    arguments = [normal(0, 5, 3, 12, 11), normal(1, 4, 3, 3, 3), normal(2, 4), 2, 1]
    options = {"reference": twins.conv2d, "dtypes": [dtype], "cases": []}
    check_backward(conv2d.forward, conv2d.backward, arguments, **options).assert_passed()


@each_layer
def test_nothing_falls_back_to_the_cpu(forward, backward, arguments, options, twin):
    """On the device `meta`, which has shapes only, a tensor of the CPU between the others raises."""
    arguments = [v.to("meta") if isinstance(v, torch.Tensor) else v for v in arguments]
    made, count = forward(*arguments), options["outputs"]
    gradients = backward(*made[: count + 1])
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    assert {v.device.type for v in (*made[:count], *gradients)} == {"meta"}
    tensors = [v for v in arguments if isinstance(v, torch.Tensor) and v.is_floating_point()]
    assert [v.shape for v in gradients] == [v.shape for v in tensors[: len(gradients)]]


@exact_and_single
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_value_is_torchs(name, dtype):
    tiny, eps = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    z = torch.cat([torch.linspace(-40, 40, 801, dtype=dtype), torch.tensor([1e4, -1e4, tiny, -tiny], dtype=dtype)])
    torch.testing.assert_close(ACTIVATIONS[name].value(z), REFERENCE[name]()(z), rtol=8 * eps, atol=8 * eps)


@exact_and_single
@pytest.mark.parametrize("name", LIMITS)
def test_the_derivative_is_right_far_out_at_zero_and_next_to_it(name, dtype):
    activation = ACTIVATIONS[name]
    tiny = torch.finfo(dtype).tiny
    z = torch.tensor([-1e4, 0, 1e4, -tiny, tiny], dtype=dtype)
    derivative = activation.derivative(z, activation.value(z))
    left, middle, right = LIMITS[name]
    expected = torch.tensor([left, middle, right, middle, right if middle == left else middle], dtype=dtype)
    torch.testing.assert_close(derivative, expected, rtol=1e-6, atol=1e-12)


@each_activation
def test_at_zero_the_derivative_is_autograds_through_the_same_value(activation):
    """A kink's too: the value and the derivative take the same side."""
    z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    a = activation.value(z)
    (expected,) = torch.autograd.grad(a.sum(), z)
    torch.testing.assert_close(activation.derivative(z, a), expected, rtol=1e-15, atol=0)


def mills_ratio(x: float) -> float:
    """(1 − Φ(x)) / φ(x) to 16 digits, a continued fraction."""
    fraction = 0.0
    for k in range(200, 0, -1):
        fraction = k / (x + fraction)
    return 1 / (x + fraction)


# z Φ(z) at −8, where ½ (1 + erf) would give 0 or noise; ½ z (1 + tanh v) = z / (1 + e^(−2v)) at −5, where the
# difference 1 + tanh v has four digits left in float64.
TAILS = {
    "gelu": (-8.0, -8 * mills_ratio(8) * e**-32 / sqrt(2 * pi)),
    "gelu_tanh": (-5.0, -5 / (1 + e ** (2 * sqrt(2 / pi) * (5 + 0.044715 * 5**3)))),
}


@pytest.mark.parametrize("name", TAILS)
def test_the_left_tail_keeps_its_relative_precision(name):
    z, expected = TAILS[name]
    value = ACTIVATIONS[name].value(torch.tensor(z, dtype=torch.float64)).item()
    assert value == pytest.approx(expected, rel=1e-13, abs=0)


@pytest.mark.parametrize("name", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_largest_numbers_do_not_overflow_in_value_or_derivative(name, dtype):
    most = torch.finfo(dtype).max
    z = torch.tensor([most, 1e4, -1e4, -most], dtype=dtype)
    a = ACTIVATIONS[name].value(z)
    assert torch.equal(a, torch.tensor([z[0], z[1], 0, 0], dtype=dtype))
    assert ACTIVATIONS[name].derivative(z, a).tolist() == [1, 1, 0, 0]


@each_activation
def test_the_cache_holds_z_only_where_the_derivative_needs_it(activation):
    z = normal(0, 3, 4)
    a, cache = activation.forward(z)
    assert cache[1] is a
    if cache[0] is None:
        activation.derivative(None, a)
    else:
        assert cache[0] is z
        with pytest.raises((TypeError, AttributeError)):  # else it is one for OF_A
            activation.derivative(None, a)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 1, 5), (2, 3, 4, 5), (0, 5), (2, 0, 5)], ids=str)
def test_linear_takes_any_dimensions_before_the_last(shape):
    assert_torchs(linear, twins.linear, normal(0, *shape), normal(1, 3, 5), normal(2, 3))


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5), (2, 3, 4), (0, 3)], ids=str)
@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu_is_torchs_at_zero_too(shape, slopes):
    assert_torchs(prelu, twins.prelu, normal(0, *shape).round(), normal(1, slopes))  # some are 0


MISFITS = [
    (linear, ((4, 3), (2, 5), (2,)), "x is (4, 3), W (2, 5) and b (2,): give (…, I), (O, I) and (O,)"),
    (linear, ((4, 3), (2, 3), (3,)), "x is (4, 3), W (2, 3) and b (3,): give (…, I), (O, I) and (O,)"),
    (linear, ((4, 3), (3,), ()), "x is (4, 3), W (3,) and b (): give (…, I), (O, I) and (O,)"),
    (linear, ((), (2, 3), (2,)), "x is (), W (2, 3) and b (2,): give (…, I), (O, I) and (O,)"),
    (prelu, ((4, 3), (2,)), "z is (4, 3) and α (2,): give (B, C, …) and (C,) or (1,)"),
    (prelu, ((4, 3), (3, 1)), "z is (4, 3) and α (3, 1): give (B, C, …) and (C,) or (1,)"),
    (prelu, ((4,), (1,)), "z is (4,) and α (1,): give (B, C, …) and (C,) or (1,)"),
]


@pytest.mark.parametrize(("layer", "shapes", "said"), MISFITS)
def test_shapes_that_do_not_fit_are_said(layer, shapes, said):
    assert refusal(layer.forward, *shapes) == said
