"""The layers of tests/support/text: right by every oracle, and their examples show mistakes; more are in gallery/."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradient_check import check_backward, compare_gradients
from tests.support import both_ways
from tests.support.text import layers as text_layers
from tests.support.text.layers import attention, matmul, recurrent_cell

LAYERS = list(both_ways.layer_examples(text_layers))
each_attention = pytest.mark.parametrize(
    ("q", "k", "v"), [arguments[:3] for arguments in attention.examples(torch.Generator().manual_seed(0))]
)
TWINS: dict[str, Callable[..., Tensor]] = {
    "embedding": F.embedding,
    "matmul": F.linear,
    "recurrent_cell": lambda x, h, W_x, W_h, b: torch.rnn_tanh_cell(x, h, W_x, W_h, b, torch.zeros_like(b)),
}


@pytest.mark.parametrize(
    ("id", "forward", "backward", "arguments", "fixed"), LAYERS, ids=[example[0] for example in LAYERS]
)
def test_every_layer_passes_the_check(id: str, forward: Any, backward: Any, arguments: Any, fixed: Any) -> None:
    twin = TWINS.get(id.rpartition("-")[0])
    check_backward(forward, backward, arguments, not_differentiable=fixed, reference=twin).assert_passed()


def test_the_examples_have_ids_that_are_repeated_and_more_keys_than_queries() -> None:
    """Without them a dE that assigns where it should add, and a mask of a square, would pass."""
    arguments = [e[3] for e in LAYERS if e[0].startswith("embedding")]
    assert all(len(ids.unique()) < ids.numel() for ids, _ in arguments)
    assert any(k.shape[2] > q.shape[2] for q, k, *_ in (e[3] for e in LAYERS if e[0].startswith("attention")))


@each_attention
def test_attention_is_torchs(q: Tensor, k: Tensor, v: Tensor) -> None:
    T, S = q.shape[2], k.shape[2]
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    compare_gradients({"y": attention.forward(q, k, v)[0]}, {"y": expected}).assert_passed()


@each_attention
def test_no_query_sees_what_follows_it(q: Tensor, k: Tensor, v: Tensor) -> None:
    before, _ = attention.forward(q, k, v)
    k, v = k.clone(), v.clone()
    k[:, :, -1], v[:, :, -1] = 9.0, 9.0
    after, _ = attention.forward(q, k, v)
    assert torch.equal(after[:, :, :-1], before[:, :, :-1])
    assert not torch.equal(after[:, :, -1], before[:, :, -1])


def values_through_what_was_not_dropped(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, P, _, *rest = cache
    return attention.backward(dy, (q, k, v, P, P, *rest))


def a_matrix_transposed_back(dz: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
    dx, dW = matmul.backward(dz, cache)
    return dx, dW.T.reshape(dW.shape)


def the_old_state_in_tanhs_slope(dh_new: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, h, W_x, W_h, _ = cache
    return recurrent_cell.backward(dh_new, (x, h, W_x, W_h, h))


def a_weight_the_wrong_way_round(dh_new: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, h, W_x, W_h, h_new = cache
    return recurrent_cell.backward(dh_new, (x, h, W_x, W_h.T, h_new))


MISTAKES: dict[Callable[..., Any], tuple[Any, set[str]]] = {
    values_through_what_was_not_dropped: (attention, {"dv"}),
    a_matrix_transposed_back: (matmul, {"dW"}),
    the_old_state_in_tanhs_slope: (recurrent_cell, {"dx", "dh", "dW_x", "dW_h", "db"}),
    a_weight_the_wrong_way_round: (recurrent_cell, {"dh"}),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("wrong", MISTAKES, ids=lambda wrong: wrong.__name__)
def test_a_mistake_is_rejected_and_only_what_it_spoils_is_named(wrong: Callable[..., Any]) -> None:
    layer, spoiled = MISTAKES[wrong]
    failed = set()
    for arguments in layer.examples(torch.Generator().manual_seed(0)):
        fixed = getattr(layer, "not_differentiable", ())
        report = check_backward(layer.forward, wrong, arguments, not_differentiable=fixed, cases=[])
        failed |= {row.name for row in report.failures if row.oracle == "autograd"}
    assert failed == spoiled
