"""The layers of gallery/text: right by every oracle, and their examples can show mistakes."""

import pytest
import torch
from torch.nn import functional as F

import gallery.text
from gradient_check import check_backward
from tests.support import both_ways


def attention(q, k, v, mask=None, keep=1.0):
    """torch's, which says its probabilities where v is 1: these are what dropout is of."""
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    one = torch.eye(k.shape[2]).to(v).expand(*v.shape[:2], -1, -1)
    P = F.scaled_dot_product_attention(q, k, one, attn_mask=seen)
    return (P if mask is None else P * mask / keep) @ v


LAYERS = list(both_ways.layer_examples(gallery.text))
TWINS = {
    "attention": attention,
    "matmul": F.linear,
    "recurrent_cell": lambda x, h, W_x, W_h, b: torch.rnn_tanh_cell(x, h, W_x, W_h, b, torch.zeros_like(b)),
}


@pytest.mark.parametrize(
    ("id", "forward", "backward", "arguments", "options"), LAYERS, ids=[example[0] for example in LAYERS]
)
def test_every_layer_passes_the_check(id, forward, backward, arguments, options):
    twin = TWINS[id.rpartition("-")[0]]
    check_backward(forward, backward, arguments, reference=twin, **options).assert_passed()


def test_the_examples_have_more_keys_than_queries():
    """Without them a mask of a square would pass."""
    assert any(k.shape[2] > q.shape[2] for q, k, *_ in (e[3] for e in LAYERS if e[0].startswith("attention")))
