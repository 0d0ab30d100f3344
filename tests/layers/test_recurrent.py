"""Recurrent layers: any number of steps, sequences of any lengths, and segments that are one long sequence."""

import pytest
import torch

from gradient_check import check_backward
from manual_backprop.layers import embedding, gru, lstm, rnn
from reference import layers as twins
from tests.support.against_torch import normal, refusal

LAYERS = {"rnn": (rnn, 1, 1), "lstm": (lstm, 4, 2), "gru": (gru, 3, 1)}
each_layer = pytest.mark.parametrize("name", LAYERS)
B, T, I, N = 3, 5, 4, 2


def drawn(name, steps=T):
    """x, the initial states, and the parameters."""
    _, gates, states = LAYERS[name]
    weights = [normal(k, *size) for k, size in enumerate([(gates * N, I), (gates * N, N), (gates * N,), (gates * N,)])]
    return normal(9, B, steps, I), [normal(10 + k, B, N) for k in range(states)], [w * 0.7 for w in weights]


@each_layer
@pytest.mark.parametrize(
    ("steps", "lengths", "reverse"),
    [
        (1, None, False),
        (1, [1] * B, True),
        (2, [2, 1, 1], False),
        (2, None, True),
        (5, [5, 4, 1], True),
        (5, [1] * B, False),
        (5, [3] * B, False),
        pytest.param(50, None, False, marks=pytest.mark.slow),
        pytest.param(50, [50, 31, 2], True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_number_of_steps_and_any_lengths(name, steps, lengths, reverse):
    x, states, weights = drawn(name, steps)
    layer = LAYERS[name][0]
    lengths = None if lengths is None else torch.tensor(lengths)
    check_backward(
        layer.forward,
        layer.backward,
        [x, *states, *weights, lengths, reverse],
        outputs=1 + len(states),
        reference=getattr(twins, name),
        not_differentiable=["lengths"],
        cases=[],
    ).assert_passed()


@each_layer
@pytest.mark.parametrize("reverse", [False, True], ids=["onward", "reverse"])
@pytest.mark.parametrize("lengths", [None, [5, 3, 1]], ids=["all alike", "one ends in the first segment"])
def test_two_segments_are_one_long_sequence_and_so_are_their_gradients(name, lengths, reverse):
    (x, states, weights), layer = drawn(name), LAYERS[name][0]
    lengths = None if lengths is None else torch.tensor(lengths)
    y, *last, cache = layer.forward(x, *states, *weights, lengths, reverse)
    parts, handed, caches = [slice(0, 2), slice(2, T)], states, {}
    order = parts[::-1] if reverse else parts
    for part in order:
        own = None if lengths is None else (lengths - part.start).clamp(0, part.stop - part.start)
        piece, *handed, caches[part.start] = layer.forward(x[:, part], *handed, *weights, own, reverse)
        torch.testing.assert_close(piece, y[:, part], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(handed, last, rtol=1e-12, atol=1e-14)

    dy, d_states = normal(20, *y.shape), [normal(21 + k, B, N) for k in range(len(last))]
    dx, *gradients = layer.backward(dy, *d_states, cache)
    totals = [torch.zeros_like(w) for w in weights]
    for part in reversed(order):
        piece, *own = layer.backward(dy[:, part], *d_states, caches[part.start])
        d_states, totals = own[: len(last)], [a + b for a, b in zip(totals, own[len(last) :], strict=True)]
        torch.testing.assert_close(piece, dx[:, part], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close([*d_states, *totals], gradients, rtol=1e-12, atol=1e-13)


@each_layer
def test_behind_its_end_a_sequence_neither_gives_nor_takes(name):
    (x, states, weights), layer, lengths = drawn(name), LAYERS[name][0], torch.tensor([2, 5, 1])
    y, *last, cache = layer.forward(x, *states, *weights, lengths)
    alone, *state, _ = layer.forward(x[:1, :2], *(s[:1] for s in states), *weights)
    assert torch.equal(y[2, 1:], torch.zeros_like(y[2, 1:]))
    for whole, part in ((y[:1, :2], alone), *zip((s[:1] for s in last), state, strict=True)):
        torch.testing.assert_close(whole, part, rtol=1e-12, atol=1e-14)
    dx = layer.backward(torch.full_like(y, torch.inf), *last, cache)[0]
    assert torch.equal(dx[0, 2:], torch.zeros_like(dx[0, 2:]))


@each_layer
def test_dx_can_be_left_out(name):
    (x, states, weights), layer = drawn(name), LAYERS[name][0]
    *outputs, cache = layer.forward(x, *states, *weights)
    _, *expected = layer.backward(*outputs, cache)
    dx, *rest = layer.backward(*outputs, cache, need_dx=False)
    assert dx is None
    assert all(torch.equal(a, e) for a, e in zip(rest, expected, strict=True))


@each_layer
def test_no_gradient_is_changed_with_another_one(name):
    """Both biases of an LSTM have the same one, and who scales each in place scales each once."""
    (x, states, weights), layer = drawn(name), LAYERS[name][0]
    *outputs, cache = layer.forward(x, *states, *weights)
    gradients, again = layer.backward(*outputs, cache), layer.backward(*outputs, cache)
    for own, expected in zip(gradients, again, strict=True):
        assert torch.equal(own.mul_(2), 2 * expected)


@each_layer
def test_lengths_of_another_batch_are_refused(name):
    x, states, weights = drawn(name)
    with pytest.raises(ValueError, match=r"biases are .*, lengths are \(2,\): give \(B, T, I\) .* lengths of \(B,\)"):
        LAYERS[name][0].forward(x, *states, *weights, torch.tensor([1, 2]))


@pytest.mark.parametrize("changed", [{0: (3, 0, 4)}, {0: (3, 4)}, {1: (2, 2)}, {2: (8, 3)}, {4: (3,)}], ids=str)
def test_shapes_that_do_not_fit_are_said(changed):
    given = [changed.get(k, shape) for k, shape in enumerate([(3, 5, 4), (3, 2), (2, 4), (2, 2), (2,), (2,)])]
    said = refusal(rnn.forward, *given)
    assert said.startswith(f"x is {given[0]}, states, weights and biases are {given[1]}, ")
    assert said.endswith(
        "give (B, T, I) with T from 1, states of (B, N), (N, I), (N, N), biases of (N,) and lengths of (B,)"
    )


def test_another_activation_is_refused():
    x, states, weights = drawn("rnn")
    with pytest.raises(ValueError, match="activation is 'sigmoid': give 'tanh' or 'relu'"):
        rnn.forward(x, *states, *weights, activation="sigmoid")


@each_layer
@pytest.mark.parametrize("length", [-1, T + 1])
def test_a_length_outside_of_the_steps_is_refused(name, length):
    x, states, weights = drawn(name)
    with pytest.raises(IndexError, match=rf"lengths are from .*{length}.*: give them from 0 to 5"):
        LAYERS[name][0].forward(x, *states, *weights, torch.tensor([T, 1, length]))


@pytest.mark.parametrize("id_", [-1, 5])
def test_an_id_outside_of_the_embedding_is_refused(id_):
    with pytest.raises(IndexError, match=rf"{id_}.*: give ids from 0 to 4, the rows of E"):
        embedding.forward(torch.tensor([[0, 4], [1, id_]]), torch.zeros(5, 3))


def test_the_embeddings_examples_have_ids_that_are_repeated():
    """Without them a dE that assigns where it should add would pass."""
    examples = list(embedding.examples(torch.Generator().manual_seed(0)))
    assert all(len(ids.unique()) < ids.numel() for ids, *_ in examples)


@pytest.mark.parametrize(("shape", "padding"), [((5,), None), ((5, 3), 5), ((5, 3), -1)], ids=str)
def test_an_embedding_says_what_it_takes(shape, padding):
    with pytest.raises(ValueError, match=r"E is \(5.*, the padding id .*: give \(V, C\), and an id from 0 to V − 1"):
        embedding.forward(torch.zeros(2, dtype=torch.int64), torch.zeros(shape), padding)
