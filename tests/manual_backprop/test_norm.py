"""Long vectors: their norm is as exact as the number format, and so is all that is divided by it."""

import pytest
import torch
from torch import Tensor, nn

from manual_backprop import clipping
from manual_backprop.models.mlp import MLP
from manual_backprop.norm import norm
from manual_backprop.optimizers import orthogonalized
from manual_backprop.regularizers import max_norm
from reference import optimizers, regularizers
from reference.norm import norm as twin_norm
from tests.support.problems import checked_learner, manual_learner, random_batches, rates
from training.data import Split
from training.learners.checked import MAX_ERROR

LONG = 2_000_000
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def long_vector(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def true_norm(x: Tensor) -> Tensor:
    return x.double().square().sum().sqrt()


def error(actual: Tensor, expected: Tensor) -> float:
    return (true_norm(actual.double() - expected) / true_norm(expected)).item()


each_norm = pytest.mark.parametrize("norm", [norm, twin_norm], ids=["manual", "twin"])


@each_norm
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_is_exact_in_every_format(norm, dtype):
    x = long_vector(LONG, dtype=dtype)
    assert error(norm(x), true_norm(x)) < (1e-15 if dtype == torch.float64 else 1e-7)


@each_norm
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_is_no_less_exact_than_torchs(norm, dtype):
    for size in (7, 1_000, 100_000):
        x = long_vector(size, dtype=dtype)
        unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        assert error(norm(x), true_norm(x)) <= error(x.norm(), true_norm(x)) + unit


@each_norm
def test_a_norm_in_half_precision_does_not_overflow_in_a_square(norm):
    x = torch.tensor([300.0, 400.0], dtype=torch.float16)
    assert norm(x).item() == 500


def test_a_norm_along_a_dimension_is_each_rows():
    x = torch.tensor([[3.0, 4.0], [0.0, -3.0]])
    assert norm(x, dim=1).tolist() == twin_norm(x, (1,)).tolist() == [[5], [3]]
    assert norm(x, dim=0).tolist() == twin_norm(x, (0,)).tolist() == [[3, 5]]


# What uses them, in float32 against the same in float64


def clipped_by_the_twin(gradient: Tensor) -> Tensor:
    module = nn.ParameterList(gradient.chunk(2))
    for p in module:
        p.grad = p.detach().clone()
    regularizers.prepare_gradients(module, l1=0.0, clip_norm=0.1, clip_value=0.0)
    return torch.cat([p.grad for p in module])


def bounded_by_the_twin(W: Tensor) -> Tensor:
    module = nn.ParameterList([W.clone()])
    regularizers.max_norm(module, 1.0)
    return module[0].detach()


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("function", "shape", "limit"),
    [
        pytest.param(lambda g: clipping.by_norm(g, 0.1), (LONG,), 1e-6, id="clipping by norm"),
        pytest.param(clipped_by_the_twin, (LONG,), 1e-6, id="the twin's clipping by norm"),
        pytest.param(lambda W: max_norm(W, 1.0), (2, LONG // 2), 1e-6, id="max-norm of long rows"),
        pytest.param(bounded_by_the_twin, (2, LONG // 2), 1e-6, id="the twin's max-norm of long rows"),
        pytest.param(orthogonalized, (20, LONG // 20), 1e-5, id="orthogonalization"),
        pytest.param(optimizers._newton_schulz, (20, LONG // 20), 1e-5, id="the twin's orthogonalization"),
    ],
)
def test_what_divides_by_a_norm_is_as_exact_as_the_format(function, shape, limit):
    x = long_vector(*shape)
    assert error(function(x), function(x.double())) < limit


@pytest.mark.parametrize("clip", [clipping.by_norm, max_norm])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clipping_and_max_norm_keep_the_format(clip, dtype):
    assert clip(torch.ones(3, 4, dtype=dtype), 1.0).dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_no_false_alarm_where_a_gradient_of_two_million_elements_is_clipped(dtype):
    x = long_vector(60, 2_000, dtype=torch.float64)
    train = Split(x, torch.arange(60) % 10)
    model, loss = MLP((2_000, 1_000, 10), ("tanh", "identity")), "softmax-cross-entropy"
    manual = manual_learner(model, loss, train, dtype=dtype, momentum=0.9, rules={"clip_norm": 0.1})
    learner = checked_learner(manual, loss)
    learner.advance(random_batches(1, 4, 60), rates(1, 0.1))
    limit = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]
    assert 0 < learner.metrics[MAX_ERROR] < limit
