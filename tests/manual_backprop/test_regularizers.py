"""L1, max-norm and clipping against hand calculation and torch, and the norm of long vectors by which they divide."""

import pytest
import torch
from torch import Tensor, nn

from manual_backprop import clipping
from manual_backprop.models.mlp import MLP
from manual_backprop.norm import norm
from manual_backprop.optimizers import orthogonalized
from manual_backprop.regularizers import l1_subgradient, max_norm
from reference import optimizers, regularizers
from reference.norm import norm as twin_norm
from tests.support.against_torch import normal
from tests.support.problems import checked_learner, manual_learner, random_batches, rates
from training.data import Split
from training.learners.checked import MAX_ERROR

LONG = 2_000_000
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_norm = pytest.mark.parametrize("norm", [norm, twin_norm], ids=["manual", "twin"])


def true_norm(x: Tensor) -> Tensor:
    return x.double().square().sum().sqrt()


def error(actual: Tensor, expected: Tensor) -> float:
    return (true_norm(actual.double() - expected) / true_norm(expected)).item()


@each_norm
@each_dtype
def test_a_norm_is_exact_in_every_format_and_no_less_than_torchs(norm, dtype):
    for size in (7, 1_000, 100_000, LONG):
        x = normal(0, size).to(dtype)
        unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        assert error(norm(x), true_norm(x)) <= error(x.norm(), true_norm(x)) + unit
    assert error(norm(x), true_norm(x)) < (1e-15 if dtype == torch.float64 else 1e-7)


@each_norm
def test_a_norm_in_half_precision_does_not_overflow_in_a_square(norm):
    assert norm(torch.tensor([300.0, 400.0], dtype=torch.float16)).item() == 500


def test_a_norm_along_a_dimension_is_each_rows():
    x = torch.tensor([[3.0, 4.0], [0.0, -3.0]])
    assert norm(x, dim=1).tolist() == twin_norm(x, (1,)).tolist() == [[5], [3]]
    assert norm(x, dim=0).tolist() == twin_norm(x, (0,)).tolist() == [[3, 5]]


# What divides by it, in float32 against the same in float64


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


EXACT = {
    "clipping by norm": (lambda g: clipping.by_norm(g, 0.1), (LONG,), 1e-6),
    "the twin's clipping by norm": (clipped_by_the_twin, (LONG,), 1e-6),
    "max-norm of long rows": (lambda W: max_norm(W, 1.0), (2, LONG // 2), 1e-6),
    "the twin's max-norm of long rows": (bounded_by_the_twin, (2, LONG // 2), 1e-6),
    "orthogonalization": (orthogonalized, (20, LONG // 20), 1e-5),
    "the twin's orthogonalization": (optimizers._newton_schulz, (20, LONG // 20), 1e-5),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("function", "shape", "limit"), EXACT.values(), ids=EXACT)
def test_what_divides_by_a_norm_is_as_exact_as_the_format(function, shape, limit):
    x = normal(0, *shape).float()
    assert error(function(x), function(x.double())) < limit


@pytest.mark.parametrize("clip", [clipping.by_norm, max_norm])
@each_dtype
def test_clipping_and_max_norm_keep_the_format(clip, dtype):
    assert clip(torch.ones(3, 4, dtype=dtype), 1.0).dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "limit"), [*zip(DTYPES, [1e-14, 1e-6, 0.02], strict=False)], ids=str)
def test_no_false_alarm_where_a_gradient_of_two_million_elements_is_clipped(dtype, limit):
    train, loss = Split(normal(0, 60, 2_000), torch.arange(60) % 10), "softmax-cross-entropy"
    model = MLP((2_000, 1_000, 10), ("tanh", "identity"))
    manual = manual_learner(model, loss, train, dtype=dtype, momentum=0.9, rules={"clip_norm": 0.1})
    learner = checked_learner(manual, loss)
    learner.advance(random_batches(1, 4, 60), rates(1, 0.1))
    assert 0 < learner.metrics[MAX_ERROR] < limit


# What they do. Lock step compares them in a learner, in tests/learners


def test_l1_pulls_by_the_same_amount_whatever_the_size_and_not_at_all_at_zero():
    theta = torch.tensor([3.0, -0.001, 0.0, -0.0, 5.0])
    decay = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0])
    assert l1_subgradient(theta, decay).tolist() == [0.5, -0.5, 0.0, 0.0, 0.0]


def test_max_norm_shortens_the_rows_that_are_too_long_and_of_a_kernel_all_that_leads_into_one_output():
    W = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    expected = torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(max_norm(W, 2.0), expected, rtol=1e-15, atol=0)
    kernel = normal(0, 3, 2, 5, 4)
    torch.testing.assert_close(max_norm(kernel, 1.5), kernel.renorm(2, 0, 1.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_clipping_is_torchs(limit, scale):
    gradient = scale * normal(3, 50)
    by_norm, by_value = (nn.Parameter(torch.zeros(50, dtype=torch.float64)) for _ in range(2))
    by_norm.grad, by_value.grad = gradient.clone(), gradient.clone()
    nn.utils.clip_grad_norm_([by_norm], limit)
    nn.utils.clip_grad_value_([by_value], limit)
    torch.testing.assert_close(clipping.by_norm(gradient, limit), by_norm.grad, rtol=1e-13, atol=0)
    torch.testing.assert_close(clipping.by_value(gradient, limit), by_value.grad, rtol=0, atol=0)


@pytest.mark.parametrize("clip", [clipping.by_norm, clipping.by_value])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
def test_clipping_hides_no_value_that_is_not_finite(clip, value):
    assert clip(torch.tensor([1.0, value, -2.0]), 0.5)[1].isnan()
