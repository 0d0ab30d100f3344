"""Initial values: distributions, reproducibility, the same start in every dtype."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Generator

from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.parameters import Parameters

SHAPE = (30, 20)  # (out, in)
KERNELS = (4, 10, 3, 5)
each_initializer = pytest.mark.parametrize("name", INITIALIZERS)


def draw(name: str, shape: tuple[int, ...] = SHAPE, parameter: str = "layer1.weight") -> torch.Tensor:
    return INITIALIZERS[name](parameter, shape, Generator().manual_seed(0))


def drawn(draw: Callable[..., torch.Tensor], shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """The generator's own numbers."""
    return draw(shape, generator=Generator().manual_seed(0), dtype=torch.float64)


NORMAL = [
    ("standard-normal", SHAPE, 1),
    ("scaled-normal", SHAPE, sqrt(1 / 20)),
    ("scaled-normal", KERNELS, sqrt(1 / 150)),
    ("small-normal", SHAPE, 0.01),
    ("he", SHAPE, sqrt(2 / 20)),
    ("he", KERNELS, sqrt(2 / 150)),
]


@pytest.mark.parametrize(("name", "shape", "factor"), NORMAL)
def test_normal_weights_have_the_variance_of_the_formula(name, shape, factor):
    torch.testing.assert_close(draw(name, shape), factor * drawn(torch.randn, shape), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("shape", "fans"), [(SHAPE, 20 + 30), (KERNELS, 150 + 60)])
def test_xavier_is_uniform_up_to_its_bound(shape, fans):
    expected = sqrt(6 / fans) * (2 * drawn(torch.rand, shape) - 1)
    torch.testing.assert_close(draw("xavier", shape), expected, rtol=1e-14, atol=0)


@each_initializer
@pytest.mark.parametrize("parameter", ["layer1.bias", "layer1.bias_hh_l0_reverse"])
def test_biases_of_the_lessons_are_of_variance_1_and_the_others_zero(name, parameter):
    drawn_too = name in ("standard-normal", "scaled-normal")
    expected = drawn(torch.randn, (50,)) if drawn_too else torch.zeros(50, dtype=torch.float64)
    assert torch.equal(draw(name, (50,), parameter), expected)


@each_initializer
def test_rows_of_an_embedding_are_of_variance_1_unless_all_is_small_or_equal(name):
    equal = {"zeros": 0.0, "constant": 0.5}
    expected = torch.full(SHAPE, equal[name], dtype=torch.float64) if name in equal else drawn(torch.randn)
    factor = 0.01 if name == "small-normal" else 1
    assert torch.equal(draw(name, SHAPE, "embedding.weight"), factor * expected)


def test_zeros_and_constant():
    assert (draw("zeros") == 0).all()
    assert (draw("constant") == 0.5).all()


@each_initializer
def test_one_seed_is_one_start_in_every_dtype(name):
    shapes = {"layer1.weight": (6, 5), "layer1.bias": (6,), "layer2.weight": (3, 6), "layer2.bias": (3,)}

    def start(seed: int, dtype: torch.dtype) -> torch.Tensor:
        parameters = Parameters(shapes, dtype=dtype)
        initialize(parameters, INITIALIZERS[name], seed)
        return parameters.theta

    exact = start(4, torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(start(4, dtype), exact.to(dtype))
    assert torch.equal(exact, start(5, torch.float64)) == (name in ("zeros", "constant"))


@each_initializer
@pytest.mark.parametrize("parameter", ["layer1.weight", "layer1.bias", "norm.weight"])
def test_draws_are_float64_and_leave_the_global_generator_alone(name, parameter):
    before = torch.random.get_rng_state()
    assert draw(name, (3, 2) if parameter == "layer1.weight" else (3,), parameter).dtype == torch.float64
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_parameter_is_filled_in_order_from_one_generator():
    parameters = Parameters({"layer1.weight": (6, 5), "layer1.bias": (6,)}, dtype=torch.float64)
    initialize(parameters, INITIALIZERS["standard-normal"], 4)
    generator = Generator().manual_seed(4)
    for tensor in parameters.values():
        assert torch.equal(tensor, torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


def test_weights_biases_and_scales_are_told_apart_by_name_and_shape():
    """An initializer may treat some of them otherwise: GPT-2 makes the last projection of each block smaller."""
    shapes = {"conv.weight": (3, 2), "conv.bias": (3,), "norm.weight": (4,), "norm.bias": (4,)}
    parameters, seen = Parameters(shapes), {}

    def by_name(name: str, shape: tuple[int, ...], generator: Generator) -> torch.Tensor:
        seen[name] = shape
        return INITIALIZERS["constant"](name, shape, generator)

    initialize(parameters, by_name, 0)
    assert parameters.theta.tolist() == [0.5] * 6 + [0.0] * 3 + [1.0] * 4 + [0.0] * 4
    assert seen == shapes
