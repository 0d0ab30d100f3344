"""Recurrent networks: what happens over time."""

import torch

from gallery import naive
from gallery.entry import Layer, normal

# hₜ = tanh(xₜ Wxᵀ + hₜ₋₁ Whᵀ + b), all h stacked over time


def rnn_forward(x, h0, Wx, Wh, b):
    h, hs = h0, []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ Wx.T + h @ Wh.T + b)
        hs.append(h)
    return torch.stack(hs, 1), (x, [h0, *hs], Wx, Wh)


def rnn_backward(dhs, cache):
    x, hs, Wx, Wh = cache
    dx, dWx, dWh, db = torch.zeros_like(x), torch.zeros_like(Wx), torch.zeros_like(Wh), torch.zeros_like(Wh[0])
    dh = torch.zeros_like(hs[0])
    for t in reversed(range(x.shape[1])):
        dz = (dhs[:, t] + dh) * (1 - hs[t + 1] ** 2)
        dx[:, t] = dz @ Wx
        dWx += dz.T @ x[:, t]
        dWh += dz.T @ hs[t]
        db += dz.sum(0)
        dh = dz @ Wh
    return dx, dh, dWx, dWh, db


def sequences(g, time=4):
    return normal(g, 3, time, 5), normal(g, 3, 2), 0.5 * normal(g, 2, 5), normal(g, 2, 2), normal(g, 2)


RNN = Layer(rnn_forward, rnn_backward, sequences)


@RNN.wrong(
    "RNN: dx without the path through time",
    what="dxₜ takes only the error that arrives at step t itself",
    where="ML-From-Scratch (51% off)",
    naive=naive.given("one step", lambda g: sequences(g, time=1)),
    diagnosis=["term"],
)
def dx_without_time(dhs, cache):
    x, hs, Wx, _ = cache
    _, *others = rnn_backward(dhs, cache)
    dx = torch.zeros_like(x)
    for t in range(x.shape[1]):
        dx[:, t] = (dhs[:, t] * (1 - hs[t + 1] ** 2)) @ Wx
    return dx, *others


@RNN.wrong(
    "RNN: weight overwritten at each step",
    what="dWh = … in the loop over time keeps the last step that is visited",
    naive=naive.given("one step", lambda g: sequences(g, time=1)),
    diagnosis=["term"],
)
def overwritten_in_time(dhs, cache):
    x, hs, _, Wh = cache
    dx, dh0, dWx, _, db = rnn_backward(dhs, cache)
    dh, dWh = torch.zeros_like(hs[0]), torch.zeros_like(Wh)
    for t in reversed(range(x.shape[1])):
        dz = (dhs[:, t] + dh) * (1 - hs[t + 1] ** 2)
        dWh = dz.T @ hs[t]
        dh = dz @ Wh
    return dx, dh0, dWx, dWh, db


@RNN.wrong(
    "RNN: first state without gradient",
    what="dh₀ is zero, as if the first state were never learned",
    naive=naive.only_dx,
    diagnosis=["zero"],
)
def first_state_zero(dhs, cache):
    dx, dh0, dWx, dWh, db = rnn_backward(dhs, cache)
    return dx, torch.zeros_like(dh0), dWx, dWh, db


@RNN.wrong(
    "RNN: hₜ for hₜ₋₁",
    what="dWh multiplies by the new state instead of the one before",
    naive=naive.only_dx,
)
def state_off_by_one(dhs, cache):
    x, hs, _, Wh = cache
    dx, dh0, dWx, _, db = rnn_backward(dhs, cache)
    dh, dWh = torch.zeros_like(hs[0]), torch.zeros_like(Wh)
    for t in reversed(range(x.shape[1])):
        dz = (dhs[:, t] + dh) * (1 - hs[t + 1] ** 2)
        dWh += dz.T @ hs[t + 1]
        dh = dz @ Wh
    return dx, dh0, dWx, dWh, db


# one step of an LSTM, gates in the order i f g o


def lstm_forward(x, h, c, Wx, Wh, b):
    i, f, g, o = (x @ Wx.T + h @ Wh.T + b).chunk(4, -1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    new_c = f * c + i * g
    tanh_c = torch.tanh(new_c)
    return o * tanh_c, new_c, (x, h, c, Wx, Wh, i, f, g, o, tanh_c)


def lstm_gates(dh, dc, cache):
    _, _, c, _, _, i, f, g, o, tanh_c = cache
    dc = dc + dh * o * (1 - tanh_c**2)
    di, df = dc * g * i * (1 - i), dc * c * f * (1 - f)
    dg, do = dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
    return dc, di, df, dg, do


def lstm_gradients(dz, dc, cache):
    x, h, _, Wx, Wh, _, f, *_ = cache
    return dz @ Wx, dz @ Wh, dc * f, dz.T @ x, dz.T @ h, dz.sum(0)


def lstm_backward(dh, dc, cache):
    dc, di, df, dg, do = lstm_gates(dh, dc, cache)
    return lstm_gradients(torch.cat([di, df, dg, do], -1), dc, cache)


def lstm_example(g):
    return normal(g, 5, 4), normal(g, 5, 3), normal(g, 5, 3), normal(g, 12, 4), normal(g, 12, 3), normal(g, 12)


LSTM = Layer(lstm_forward, lstm_backward, lstm_example, outputs=2)


@LSTM.wrong(
    "LSTM: gate order",
    what="the gates' gradients are put together in the order i f o g",
    diagnosis=("rows",),
    naive=naive.cost_falls,
)
def gate_order(dh, dc, cache):
    dc, di, df, dg, do = lstm_gates(dh, dc, cache)
    return lstm_gradients(torch.cat([di, df, do, dg], -1), dc, cache)


@LSTM.wrong(
    "LSTM: c from h",
    what="the error that reaches the cell through h = o tanh(c) is missing",
    naive=naive.cost_falls,
    diagnosis=["term"],
)
def cell_without_output(dh, dc, cache):
    _, _, c, _, _, i, f, g, o, tanh_c = cache
    di, df = dc * g * i * (1 - i), dc * c * f * (1 - f)
    dg, do = dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
    return lstm_gradients(torch.cat([di, df, dg, do], -1), dc, cache)


@LSTM.wrong(
    "LSTM: tanh slope of the candidate",
    what="the candidate's gradient lacks 1 − g²",
    naive=naive.cost_falls,
    diagnosis=["derivative forgotten"],
)
def candidate_slope(dh, dc, cache):
    _, _, _, _, _, i, *_ = cache
    dc, di, df, _, do = lstm_gates(dh, dc, cache)
    return lstm_gradients(torch.cat([di, df, dc * i, do], -1), dc, cache)


@LSTM.wrong(
    "LSTM: cell without the forget gate",
    what="the cell's error goes back to the cell before without f",
    naive=naive.cost_falls,
    diagnosis=["missing factor"],
)
def cell_without_forgetting(dh, dc, cache):
    dx, dh0, _, *gradients = lstm_backward(dh, dc, cache)
    return dx, dh0, lstm_gates(dh, dc, cache)[0], *gradients


# one step of a GRU's candidate: n = tanh(x Wxᵀ + r ⊙ (h Whᵀ)), r = σ(h Wrᵀ)


def candidate_forward(x, h, Wx, Wh, Wr):
    r = torch.sigmoid(h @ Wr.T)
    u = h @ Wh.T
    n = torch.tanh(x @ Wx.T + r * u)
    return n, (x, h, Wx, Wh, Wr, r, u, n)


def candidate_backward(dn, cache):
    x, h, Wx, Wh, Wr, r, u, n = cache
    dz = dn * (1 - n**2)
    dr, du = dz * u * r * (1 - r), dz * r
    return dz @ Wx, du @ Wh + dr @ Wr, dz.T @ x, du.T @ h, dr.T @ h


CANDIDATE = Layer(
    candidate_forward,
    candidate_backward,
    lambda g: (normal(g, 5, 4), normal(g, 5, 3), normal(g, 3, 4), normal(g, 3, 3), normal(g, 3, 3)),
)


@CANDIDATE.wrong(
    "GRU: dh without the reset gate",
    what="the state's gradient lacks the path through the reset gate",
    naive=naive.only_dx,
    diagnosis=["term"],
)
def reset_path(dn, cache):
    _, _, _, Wh, _, r, _, n = cache
    dx, _, dWx, dWh, dWr = candidate_backward(dn, cache)
    return dx, (dn * (1 - n**2) * r) @ Wh, dWx, dWh, dWr


@CANDIDATE.wrong(
    "GRU: r before the product",
    what="dWh = dzᵀ (r ⊙ h), as if the reset gate stood before the product and not behind it",
    naive=naive.only_dx,
)
def reset_before_the_product(dn, cache):
    _, h, *_, r, _, n = cache
    dx, dh, dWx, _, dWr = candidate_backward(dn, cache)
    return dx, dh, dWx, (dn * (1 - n**2)).T @ (r * h), dWr
