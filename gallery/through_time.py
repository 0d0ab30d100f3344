"""Backpropagation through time in the recurrent layers of manual_backprop: what is lost between steps and segments."""

from functools import wraps

import torch

from gallery import naive
from gallery.entry import Layer, normal
from manual_backprop.layers import gru, lstm, rnn
from reference import layers as twins

STATES = {rnn: 1, lstm: 2, gru: 1}


def example(layer, gates, steps=3, units=2):
    rows = gates * units

    def draw(g):
        sizes = [(4, units)] * STATES[layer] + [(rows, 5), (rows, units), (rows,), (rows,)]
        return normal(g, 4, steps, 5), *(normal(g, *size) for size in sizes)

    return draw


def in_segments(layer, steps, hand_back=lambda d_states: d_states):
    """The layer, so many steps at a time; `hand_back` changes what a segment's backward gives the one before."""
    states = STATES[layer]

    @wraps(layer.forward)
    def forward(x, *given):
        handed, ys, caches = given[:states], [], []
        for part in x.split(steps, 1):
            y, *handed, cache = layer.forward(part, *handed, *given[states:])
            ys.append(y)
            caches.append(cache)
        return torch.cat(ys, 1), *handed, caches

    def backward(dy, *given):
        *d_states, caches = given
        dxs, totals = [], 0
        for number, (part, cache) in enumerate(zip(reversed(dy.split(steps, 1)), reversed(caches), strict=True)):
            d_states = hand_back(d_states) if number else d_states
            dx, *gradients = layer.backward(part, *d_states, cache)
            dxs.insert(0, dx)
            d_states, own = gradients[:states], gradients[states:]
            totals = [a + b for a, b in zip(totals, own, strict=True)] if number else own
        return torch.cat(dxs, 1), *d_states, *totals

    return forward, backward


def nothing(d_states):
    return [torch.zeros_like(d_state) for d_state in d_states]


RNN = Layer(rnn.forward, rnn.backward, example(rnn, 1), outputs=2)
LSTM = Layer(lstm.forward, lstm.backward, example(lstm, 4), outputs=3)
GRU = Layer(gru.forward, gru.backward, example(gru, 3, units=6), outputs=2)

# between steps, and between segments


@RNN.wrong_pair(
    "RNN: no path through time",
    what="δₜ₊₁ W_hh is left out of ∂hₜ, so that every step learns from its own output alone",
    naive=naive.given("one step", example(rnn, 1, steps=1)),
    diagnosis=["term"],
)
def no_path_through_time():
    return in_segments(rnn, 1, nothing)


@RNN.wrong_pair(
    "RNN: dW_hh of the last step",
    what="dW_hh is the last step's product alone, not the sum over all steps",
    naive=naive.given("one step", example(rnn, 1, steps=1)),
    diagnosis=["term"],
)
def weight_of_the_last_step():
    forward, backward = in_segments(rnn, 1)

    def wrong(dy, dh, caches):
        dx, dh0, dW_ih, _, *db = backward(dy, dh, caches)
        return dx, dh0, dW_ih, rnn.backward(dy[:, -1:], dh, caches[-1])[3], *db

    return forward, wrong


@LSTM.wrong_pair(
    "LSTM: truncated where it must not be",
    what="the sequence is cut behind two steps, and no gradient is handed back over the cut, which was not meant",
    naive=naive.given("a sequence of one segment", example(lstm, 4, steps=2)),
    diagnosis=["term"],
)
def truncated():
    return in_segments(lstm, 2, nothing)


@RNN.wrong(
    "RNN: dh from the next segment ignored",
    what="backward starts from zero, whatever gradient the last state has",
    naive=naive.first_output,
    diagnosis=["term"],
)
def last_state_ignored(dy, dh, cache):
    return rnn.backward(dy, torch.zeros_like(dh), cache)


@LSTM.wrong(
    "LSTM: dc from the next segment ignored",
    what="the gradient of the last cell is dropped, that of the last h is used",
    naive=naive.first_output,
    diagnosis=["term"],
)
def last_cell_ignored(dy, dh, dc, cache):
    return lstm.backward(dy, dh, torch.zeros_like(dc), cache)


# the first states


@LSTM.wrong(
    "LSTM: first cell without gradient",
    what="dc₀ is zero: only dh₀ is handed back",
    naive=naive.only_dx,
    diagnosis=["zero"],
)
def first_cell_zero(dy, dh, dc, cache):
    dx, dh0, dc0, *gradients = lstm.backward(dy, dh, dc, cache)
    return dx, dh0, torch.zeros_like(dc0), *gradients


@LSTM.wrong(
    "LSTM: dh₀ and dc₀ swapped",
    what="the two states' gradients come back in the wrong order",
    naive=naive.only_dx,
    diagnosis=["swapped"],
)
def first_states_swapped(dy, dh, dc, cache):
    dx, dh0, dc0, *gradients = lstm.backward(dy, dh, dc, cache)
    return dx, dc0, dh0, *gradients


# the blocks of gates


def i_f_o_g(blocks):
    """Blocks of rows i f g o in the order i f o g, or back."""
    i, f, g, o = blocks.chunk(4)
    return torch.cat([i, f, o, g])


@LSTM.wrong(
    "LSTM: a bias in the wrong block",
    what="db_ih has the blocks of g and o in each other's place",
    naive=naive.only_dx,
    diagnosis=["rows"],
)
def bias_in_another_block(dy, dh, dc, cache):
    *gradients, db_ih, db_hh = lstm.backward(dy, dh, dc, cache)
    return *gradients, i_f_o_g(db_ih), db_hh


TORCHS_LSTM = Layer(lstm.forward, lstm.backward, LSTM.example, outputs=3, reference=twins.lstm)


@TORCHS_LSTM.wrong_pair(
    "LSTM: gates read as i f o g",
    what="forward takes the blocks of the weights in an order that is not torch's; backward fits this forward",
    naive=naive.random_allclose,
)
def another_gate_order():
    def forward(x, h, c, W_ih, W_hh, b_ih, b_hh):
        return lstm.forward(x, h, c, *map(i_f_o_g, (W_ih, W_hh, b_ih, b_hh)))

    def backward(dy, dh, dc, cache):
        dx, dh0, dc0, *gradients = lstm.backward(dy, dh, dc, cache)
        return dx, dh0, dc0, *map(i_f_o_g, gradients)

    return forward, backward


@GRU.wrong(
    "GRU: db_hh = db_ih",
    what="both biases get one gradient, as in an LSTM, though b_hn stands inside of r ⊙ (…)",
    naive=naive.only_dx,
    diagnosis=["missing factor", "rows"],
)
def one_gradient_for_both_biases(dy, dh, cache):
    *gradients, db_ih, _ = gru.backward(dy, dh, cache)
    return *gradients, db_ih, db_ih.clone()


# sequences of different lengths


def padded(lengths):
    def draw(g):
        sizes = (3, 4, 5), (3, 2), (2, 5), (2, 2), (2,), (2,)
        return *(normal(g, *size) for size in sizes), torch.tensor(lengths)

    return draw


PADDED = Layer(rnn.forward, rnn.backward, padded([4, 4, 2]), outputs=2, reference=twins.rnn)


def inside(y, lengths):
    """y, and 0 behind each sequence's end."""
    return torch.where((torch.arange(y.shape[1]) < lengths[:, None]).unsqueeze(2), y, 0.0)


def forward_over_padding(x, h, W_ih, W_hh, b_ih, b_hh, lengths):
    y, h, cache = rnn.forward(x, h, W_ih, W_hh, b_ih, b_hh)
    return inside(y, lengths), h, (cache, lengths)


def backward_over_padding(dy, dh, cache):
    cache, lengths = cache
    return rnn.backward(inside(dy, lengths), dh, cache)


@PADDED.wrong_pair(
    "RNN: padding in the state",
    what="only y is masked: the state runs on behind a sequence's end, forward and backward",
    naive=naive.random_allclose,
)
def padding_in_the_state():
    return forward_over_padding, backward_over_padding


@PADDED.wrong_pair(
    "RNN: backward over the padding",
    what="forward stops at each sequence's end, but backward starts behind it, where only dy is masked",
    naive=naive.given("all sequences as long as the padding", padded([4] * 3)),
    diagnosis=["rows"],
)
def backward_from_behind_the_end():
    def forward(x, h, W_ih, W_hh, b_ih, b_hh, lengths):
        right = rnn.forward(x, h, W_ih, W_hh, b_ih, b_hh, lengths)[:2]
        return *right, forward_over_padding(x, h, W_ih, W_hh, b_ih, b_hh, lengths)[2]

    return forward, backward_over_padding


# both directions: the first half of y is read from the first step on, the second half from the last step on


def both_forward(x, h, W_ih, W_hh, b_ih, b_hh, h_r, W_ih_r, W_hh_r, b_ih_r, b_hh_r):
    y, _, cache = rnn.forward(x, h, W_ih, W_hh, b_ih, b_hh)
    y_r, _, cache_r = rnn.forward(x, h_r, W_ih_r, W_hh_r, b_ih_r, b_hh_r, reverse=True)
    return torch.cat([y, y_r], 2), (cache, cache_r)


def both_directions(dy, caches):
    """dx and the other gradients, of each direction."""
    dys = dy.chunk(2, 2)
    (dx, *onward), (dx_r, *back) = (
        rnn.backward(dy, torch.zeros_like(dy[:, 0]), cache) for dy, cache in zip(dys, caches, strict=True)
    )
    return dx, dx_r, onward, back


def both_backward(dy, caches):
    dx, dx_r, onward, back = both_directions(dy, caches)
    return dx + dx_r, *onward, *back


BOTH = Layer(both_forward, both_backward, lambda g: (*RNN.example(g), *RNN.example(g)[1:]))


@BOTH.wrong(
    "both directions: gradients swapped",
    what="the parameters of one direction get the gradients of the other",
    naive=naive.only_dx,
    diagnosis=["swapped"],
)
def directions_swapped(dy, caches):
    dx, dx_r, onward, back = both_directions(dy, caches)
    return dx + dx_r, *back, *onward


@BOTH.wrong(
    "both directions: dx not turned around",
    what="the second direction's dx is added from the last step to the first",
    naive=naive.only_parameters,
)
def not_turned_around(dy, caches):
    dx, dx_r, onward, back = both_directions(dy, caches)
    return dx + dx_r.flip(1), *onward, *back
