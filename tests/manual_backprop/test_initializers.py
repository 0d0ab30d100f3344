"""Initial values: moments, reproducibility, the same start in every dtype."""

from math import sqrt

import pytest
import torch
from torch import Generator

from manual_backprop.initializers import INITIALIZERS, fan_in, fan_out, initialize
from manual_backprop.parameters import Parameters

SHAPE = (300, 200)  # (out, in)
SIZE = 300 * 200
# Variance of the weights, and their kurtosis E w⁴ / (E w²)²: 3 of a normal distribution, 9/5 of a uniform one.
MOMENTS = {
    "standard-normal": (1.0, 3.0),
    "scaled-normal": (1 / 200, 3.0),
    "small-normal": (0.0001, 3.0),
    "xavier": (2 / (200 + 300), 9 / 5),
    "he": (2 / 200, 3.0),
}
# Variance of the biases: 1 for the two that the lessons use.
OF_BIASES = {name: int(name in ("standard-normal", "scaled-normal")) for name in (*MOMENTS, "zeros", "constant")}
each_initializer = pytest.mark.parametrize("name", INITIALIZERS)


def draw(name: str, shape: tuple[int, ...] = SHAPE, seed: int = 0, parameter: str = "layer1.weight") -> torch.Tensor:
    return INITIALIZERS[name](parameter, shape, Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "variance", "kurtosis"), [(name, *m) for name, m in MOMENTS.items()], ids=MOMENTS)
def test_weights_have_the_mean_and_variance_of_the_formula(name, variance, kurtosis):
    """Within five standard errors: √(var/n) of the mean, var √((kurtosis − 1)/n) of the variance."""
    w = draw(name)
    assert abs(w.mean().item()) < 5 * sqrt(variance / SIZE)
    assert abs((w * w).mean().item() - variance) < 5 * variance * sqrt((kurtosis - 1) / SIZE)
    assert (w**4).mean().item() / (w * w).mean().item() ** 2 == pytest.approx(kurtosis, rel=0.1)


@pytest.mark.parametrize(("name", "variance"), OF_BIASES.items())
def test_biases(name, variance):
    b = draw(name, (SIZE,), seed=1, parameter="layer1.bias")
    assert abs(b.mean().item()) <= 5 * sqrt(variance / SIZE)
    assert abs((b * b).mean().item() - variance) <= 5 * variance * sqrt(2 / SIZE)


@pytest.mark.parametrize(("name", "factor"), [("scaled-normal", sqrt(1 / 200)), ("he", sqrt(2 / 200))])
def test_the_scaled_ones_are_the_standard_one_times_their_factor(name, factor):
    torch.testing.assert_close(draw(name), draw("standard-normal") * factor, rtol=1e-14, atol=0)


def test_xavier_is_its_formula_of_the_generators_uniform_numbers():
    u = torch.rand(SHAPE, generator=Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(draw("xavier"), sqrt(6 / 500) * (2 * u - 1), rtol=1e-14, atol=0)


def test_zeros_and_constant():
    assert (draw("zeros") == 0).all()
    assert (draw("constant") == 0.5).all()


def test_fans():
    assert (fan_in((7, 3)), fan_out((7, 3))) == (3, 7)
    assert (fan_in((7, 3, 5, 2)), fan_out((7, 3, 5, 2))) == (30, 70)


def test_scale_follows_the_fan_in_of_a_convolution():
    w = draw("scaled-normal", (40, 10, 3, 5))
    assert abs((w * w).mean().item() - 1 / 150) < 5 / 150 * sqrt(2 / w.numel())


@each_initializer
def test_one_seed_is_one_start_in_every_dtype(name):
    shapes = {"layer1.weight": (6, 5), "layer1.bias": (6,), "layer2.weight": (3, 6), "layer2.bias": (3,)}

    def start(seed: int, dtype: torch.dtype) -> torch.Tensor:
        parameters = Parameters(shapes, dtype=dtype)
        initialize(parameters, INITIALIZERS[name], seed)
        return parameters.theta

    exact = start(4, torch.float64)
    assert torch.equal(exact, start(4, torch.float64))
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(start(4, dtype), exact.to(dtype))
    if name in MOMENTS:
        assert not torch.equal(exact, start(5, torch.float64))


@each_initializer
@pytest.mark.parametrize("parameter", ["layer1.weight", "layer1.bias", "norm.weight"])
def test_draws_are_float64_and_leave_the_global_generator_alone(name, parameter):
    before = torch.random.get_rng_state()
    assert draw(name, (3, 2) if parameter == "layer1.weight" else (3,), 0, parameter).dtype == torch.float64
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_parameter_is_filled_in_order_from_one_generator():
    parameters = Parameters({"layer1.weight": (6, 5), "layer1.bias": (6,)}, dtype=torch.float64)
    initialize(parameters, INITIALIZERS["standard-normal"], 4)
    generator = Generator().manual_seed(4)
    for tensor in parameters.values():
        assert torch.equal(tensor, torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


def test_weights_biases_and_scales_are_told_apart():
    parameters = Parameters({"conv.weight": (3, 2), "conv.bias": (3,), "norm.weight": (4,), "norm.bias": (4,)})
    initialize(parameters, INITIALIZERS["constant"], 0)
    assert parameters.theta.tolist() == [0.5] * 6 + [0.0] * 3 + [1.0] * 4 + [0.0] * 4


def test_an_initializer_sees_the_name_of_each_parameter():
    """So that one may treat some of them otherwise: GPT-2 makes the last projection of each block smaller."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def by_name(name: str, shape: tuple[int, ...], generator: Generator) -> torch.Tensor:
        seen.append((name, shape))
        return torch.full(shape, 2.0 if name.startswith("project") else 1.0)

    parameters = Parameters({"fc.weight": (3, 2), "project.weight": (2, 3)})
    initialize(parameters, by_name, 0)
    assert seen == [("fc.weight", (3, 2)), ("project.weight", (2, 3))]
    assert parameters.theta.tolist() == [1.0] * 6 + [2.0] * 6
