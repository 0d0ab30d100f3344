"""Mistakes that the diagnosis was made with: of normalization, softmax, attention and recurrent networks."""

import torch
from torch.nn import functional as F

from gallery import naive
from gallery.attention import ATTENTION, attention_backward, tokens
from gallery.entry import OWN, Layer, normal
from gallery.losses import SOFTMAX
from gallery.normalization import BATCH_NORM, EPS, LAYER_NORM, batch_norm_backward, layer_norm_backward
from gallery.recurrent import RNN, lstm_forward, lstm_gates, lstm_gradients, rnn_backward

# layer norm: dx = (g − mean(g) − x̂ mean(g ⊙ x̂))/σ, g = γ ⊙ dy


def layer_norm_dx(dy, cache, first, second, third):
    """With another factor for each of the three terms."""
    xhat, rstd, gamma = cache
    g = dy * gamma
    mean, projection = g.mean(-1, keepdim=True), (g * xhat).mean(-1, keepdim=True)
    return rstd * (first * g - second * mean - third * xhat * projection)


def with_right_parameters(dx, dy, cache):
    return dx, *layer_norm_backward(dy, cache)[1:]


@LAYER_NORM.wrong(
    "layer norm: affine",
    what="mean and variance are taken for constants",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def layer_norm_affine(dy, cache):
    return with_right_parameters(layer_norm_dx(dy, cache, 1, 0, 0), dy, cache)


@LAYER_NORM.wrong(
    "layer norm: sign of the third term",
    what="the path through σ is added instead of subtracted",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def layer_norm_sign(dy, cache):
    return with_right_parameters(layer_norm_dx(dy, cache, 1, 1, -1), dy, cache)


@LAYER_NORM.wrong(
    "layer norm: a sum for a mean",
    what="the second term is not divided by the number of features",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def layer_norm_sum(dy, cache):
    return with_right_parameters(layer_norm_dx(dy, cache, 1, dy.shape[-1], 1), dy, cache)


@LAYER_NORM.wrong(
    "layer norm: x̂ forgotten in dγ",
    what="dγ is the sum of the cotangent, as dβ is",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["missing factor"],
)
def xhat_forgotten(dy, cache):
    return layer_norm_backward(dy, cache)[0], dy.sum(0), dy.sum(0)


def torch_layer_norm_forward(x, gamma, beta):
    centered = x - x.mean(-1, keepdim=True)
    rstd = (centered.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return F.layer_norm(x, x.shape[-1:], gamma, beta, EPS), (centered * rstd, rstd, gamma)


TORCH_LAYER_NORM = Layer(torch_layer_norm_forward, layer_norm_backward, LAYER_NORM.example)


@TORCH_LAYER_NORM.wrong(
    "layer norm of torch: third term",
    what="the path through σ is missing; forward is one operation, which autograd's graph does not take apart",
    where=OWN,
    naive=naive.only_parameters,
)
def torch_layer_norm_without_variance(dy, cache):
    return with_right_parameters(layer_norm_dx(dy, cache, 1, 1, 0), dy, cache)


def torch_batch_norm_forward(x, gamma, beta):
    rstd = (x.var(0, correction=0) + EPS).rsqrt()
    return F.batch_norm(x, None, None, gamma, beta, training=True), (x, (x - x.mean(0)) * rstd, rstd, gamma)


TORCH_BATCH_NORM = Layer(torch_batch_norm_forward, batch_norm_backward, BATCH_NORM.example)


@TORCH_BATCH_NORM.wrong(
    "batch norm of torch: affine",
    what="mean and variance are taken for constants; forward is one operation",
    where=OWN,
    naive=naive.only_parameters,
)
def torch_batch_norm_affine(dy, cache):
    _, xhat, rstd, gamma = cache
    return dy * gamma * rstd, (dy * xhat).sum(0), dy.sum(0)


# softmax and means


@SOFTMAX.wrong(
    "softmax: sum over the wrong axis",
    what="the sum of p ⊙ dp runs over the batch instead of the classes",
    where=OWN,
    naive=naive.given("all classes and examples alike", lambda g: (0 * normal(g, 5, 5),), naive.ones),
)
def softmax_over_batch(dp, p):
    return p * (dp - (p * dp).sum(0))


def centered_forward(x):
    z = x - x.mean(1, keepdim=True)
    return z.sin(), z


def centered_backward(dy, z):
    dz = dy * z.cos()
    return dz - dz.mean(1, keepdim=True)


CENTERED = Layer(centered_forward, centered_backward, lambda g: (normal(g, 7, 5),))


@CENTERED.wrong(
    "centering: mean over the wrong axis",
    what="backward subtracts the mean over the batch, forward that over the features",
    where=OWN,
    naive=naive.cost_falls,
)
def centered_over_batch(dy, z):
    dz = dy * z.cos()
    return dz - dz.mean(0)


# attention, and scores alone


@ATTENTION.wrong(
    "attention: mask ignored in dv",
    what="dv is computed with probabilities that were not masked",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["mask ignored"],
)
def values_unmasked(dy, cache):
    q, k, _, _, _ = cache
    dq, dk, _ = attention_backward(dy, cache)
    return dq, dk, torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1).mT @ dy


def scores_forward(q, k):
    s = torch.tanh(q @ k.mT)
    return s, (q, k, s)


def scores_backward(dy, cache):
    q, k, s = cache
    ds = dy * (1 - s**2)
    return ds @ k, ds.mT @ q


SCORES = Layer(scores_forward, scores_backward, lambda g: tokens(g)[:2])


@SCORES.wrong(
    "scores: dq by dSᵀ",
    what="dq = dSᵀ k instead of dS k, which fits because S is square",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["transposed"],
)
def queries_transposed(dy, cache):
    _, k, s = cache
    return (dy * (1 - s**2)).mT @ k, scores_backward(dy, cache)[1]


# over time


def rnn_with(dhs, cache, through_time=True, slope=True):
    """All gradients, with or without the path through time and tanh′."""
    x, hs, Wx, Wh = cache
    dx, dWx, dWh, db = torch.zeros_like(x), torch.zeros_like(Wx), torch.zeros_like(Wh), torch.zeros_like(Wh[0])
    dh = torch.zeros_like(hs[0])
    for t in reversed(range(x.shape[1])):
        dz = (dhs[:, t] + dh) * (1 - hs[t + 1] ** 2 if slope else 1)
        dx[:, t] = dz @ Wx
        dWx += dz.T @ x[:, t]
        dWh += dz.T @ hs[t]
        db += dz.sum(0)
        dh = dz @ Wh if through_time else torch.zeros_like(dh)
    return dx, dh, dWx, dWh, db


@RNN.wrong(
    "RNN: dWh without the path through time",
    what="each step's error is the one that arrives there itself",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["term"],
)
def recurrent_weight_without_time(dhs, cache):
    dx, dh0, dWx, _, db = rnn_backward(dhs, cache)
    return dx, dh0, dWx, rnn_with(dhs, cache, through_time=False)[3], db


@RNN.wrong(
    "RNN: tanh′ forgotten",
    what="the slope of every step is forgotten in dWx",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["derivative forgotten"],
)
def slope_of_every_step(dhs, cache):
    dx, dh0, _, dWh, db = rnn_backward(dhs, cache)
    return dx, dh0, rnn_with(dhs, cache, slope=False)[2], dWh, db


@RNN.wrong(
    "RNN: mean over batch and time",
    what="dWx is divided by the number of examples and steps",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["batch factor"],
)
def mean_over_time(dhs, cache):
    dx, dh0, dWx, dWh, db = rnn_backward(dhs, cache)
    return dx, dh0, dWx / max(dhs.shape[0] * dhs.shape[1], 1), dWh, db


# an LSTM over time, its steps those of `recurrent`


def lstms_forward(x, h0, c0, Wx, Wh):
    h, c, hs, caches = h0, c0, [], []
    for t in range(x.shape[1]):
        h, c, cache = lstm_forward(x[:, t], h, c, Wx, Wh, torch.zeros_like(Wh[:, 0]))
        hs.append(h)
        caches.append(cache)
    return torch.stack(hs, 1), (x, h0, caches, Wx, Wh)


def lstms_backward(dhs, cache, through_h=True):
    x, h0, caches, Wx, Wh = cache
    dx, dWx, dWh = torch.zeros_like(x), torch.zeros_like(Wx), torch.zeros_like(Wh)
    dh, dc = torch.zeros_like(h0), torch.zeros_like(h0)
    for t in reversed(range(x.shape[1])):
        dc, *gates = lstm_gates(dhs[:, t] + dh, dc, caches[t])
        dx[:, t], dh, dc, own_dWx, own_dWh, _ = lstm_gradients(torch.cat(gates, -1), dc, caches[t])
        dWx, dWh, dh = dWx + own_dWx, dWh + own_dWh, dh if through_h else torch.zeros_like(dh)
    return dx, dh, dc, dWx, dWh


LSTMS = Layer(
    lstms_forward,
    lstms_backward,
    lambda g: (normal(g, 4, 3, 5), normal(g, 4, 2), normal(g, 4, 2), normal(g, 8, 5), normal(g, 8, 2)),
)


@LSTMS.wrong(
    "LSTM: time through c alone",
    what="dWx lacks the path through the states h",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["term"],
)
def without_states(dhs, cache):
    dx, dh0, dc0, _, dWh = lstms_backward(dhs, cache)
    return dx, dh0, dc0, lstms_backward(dhs, cache, through_h=False)[3], dWh
