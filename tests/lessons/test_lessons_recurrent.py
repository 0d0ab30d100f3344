"""The lessons on gradients through time: how fast they vanish, and what keeps them in an LSTM."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

import lessons.vanishing_through_time as vanishing
import lessons.why_lstm_remembers as memory
from lessons.steps import walk
from manual_backprop.models.recurrent import CELLS, GATES, PARAMETERS

STEP = {"rnn": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell, "lstm": torch.lstm_cell, "gru": torch.gru_cell}


@pytest.fixture
def draw():
    return partial(torch.randn, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def weights_of(draw, gates, inputs, N):
    return [draw(gates * N, inputs), draw(gates * N, N), draw(gates * N), draw(gates * N)]


@pytest.mark.parametrize("name", STEP)
def test_every_state_and_its_gradient_are_those_of_torch(draw, name):
    """From each state on torch's cell goes to the end, and autograd back to that state."""
    cell, options = (CELLS["rnn"], {"activation": "relu"}) if name == "relu" else (CELLS[name], {})
    states = len(cell.OUTPUTS) - 1
    x, weights, d_states = draw(3, 6, 4), weights_of(draw, GATES.get(name, 1), 4, 5), draw(states, 3, 5)
    seen, gradients = walk(cell, x, list(draw(states, 3, 5)), weights, list(d_states), **options)
    assert len(seen) == len(gradients) == 7
    for t, start in enumerate(seen):
        leaves = [state.clone().requires_grad_() for state in start]
        last = leaves
        for k in range(t, 6):
            after = STEP[name](x[:, k], tuple(last) if states == 2 else last[0], *weights)
            last = list(after) if states == 2 else [after]
        assert_close([state.detach() for state in last], seen[-1], rtol=1e-10, atol=1e-12)
        expected = torch.autograd.grad(sum((d * v).sum() for d, v in zip(d_states, last, strict=True)), leaves)
        assert_close(gradients[t], list(expected), rtol=1e-10, atol=1e-12)


# Vanishing through time


def test_factor_and_largest_step_of_known_sizes():
    """The factor is the slope of a geometric row, and the mean over the sequences a geometric one."""
    row = 0.3 ** torch.arange(20, dtype=torch.float64)
    passage = vanishing.Passage(torch.stack([2 * row, 8 * row], dim=1), 1.0, 0.0)
    assert passage.factor == pytest.approx(0.3, rel=1e-12)
    assert_close(passage.sizes, 4 * row)
    assert vanishing.Passage(torch.tensor([[1.0, 2], [3, 1], [2, 4]]), 1.0, 0.0).largest == 4


def test_the_blocks_of_a_recurrent_matrix_have_a_spectral_radius_of_1(monkeypatch):
    monkeypatch.setattr(vanishing, "WIDTH", 30)
    W = vanishing.recurrent_matrix(3, torch.Generator().manual_seed(5))
    for block in W.view(3, 30, 30):
        power = torch.linalg.matrix_power(block, 2**14)
        assert torch.linalg.matrix_norm(power).item() ** 2**-14 == pytest.approx(1, abs=1e-3)


# Why an LSTM remembers


def test_sequences_name_their_first_symbol():
    x, y = memory.draw(500, torch.Generator().manual_seed(5))
    symbols = x.view(500, memory.LENGTH, memory.SYMBOLS)
    assert torch.equal(symbols.sum(dim=2), torch.ones(500, memory.LENGTH, dtype=torch.float64))
    assert torch.equal(symbols[:, 0].argmax(dim=1), y)
    assert (y.bincount() > 100).all()
    assert (symbols[:, 1].argmax(dim=1) == y).double().mean().item() < 0.4


def test_forget_gates_are_the_slope_of_the_next_cell_by_the_last(draw):
    weights, x = weights_of(draw, 4, memory.SYMBOLS, memory.WIDTH), draw(3, memory.SYMBOLS)
    h, c = draw(2, 3, memory.WIDTH)
    c.requires_grad_()
    _, after = torch.lstm_cell(x, (h, c), *weights)
    (expected,) = torch.autograd.grad(after.sum(), c)
    assert_close(memory.forget_gates(x, h, weights), expected, rtol=1e-12, atol=1e-12)


def test_only_where_the_states_h_go_nowhere_the_cells_alone_hand_the_gradient_back():
    x, y = memory.draw(50, torch.Generator().manual_seed(5))
    model, params = memory.network("lstm", 1.5, seed=3)
    apart = memory.examine(model, params, x, y)
    weights, zero = [params[f"layer1.{name}"] for name in PARAMETERS], x.new_zeros(50, memory.WIDTH)
    first, second = x.view(50, memory.LENGTH, memory.SYMBOLS)[:, :2].unbind(dim=1)
    h, _ = torch.lstm_cell(first, (zero, zero), *weights)
    assert_close(apart.gates[:, 1], memory.forget_gates(second, h, weights), rtol=1e-12, atol=0)
    params[f"layer1.{PARAMETERS[1]}"].zero_()
    alone = memory.examine(model, params, x, y)
    assert_close(alone.gradient, alone.path, rtol=1e-12, atol=0)
    assert (alone.path > 0).all()
    assert (alone.gates.amax(dim=(0, 1)) - alone.gates.amin(dim=(0, 1)) > 0.01).all(), "the gates differ"
    assert_close(apart.path[0], apart.gradient[0], rtol=1e-12, atol=0)
    assert ((apart.gradient / apart.path)[1:] - 1).abs().min() > 1e-3
    assert apart.gates.shape == (50, memory.LENGTH, memory.WIDTH)
    product = apart.gates[:, 1] * apart.gates[:, 2]
    assert_close(memory.kept(apart.gates)[1], product.mean(dim=0), rtol=1e-12, atol=0)
