"""Mistakes that the diagnosis was made with: of affine maps, elementwise functions, masks and indexing."""

from dataclasses import replace
from functools import partial

import torch

from gallery import naive
from gallery.affine import LINEAR, NETWORK, TIED, network_backward
from gallery.attention import DISTINCT, EMBEDDING
from gallery.elementwise import QUOTIENT, TANH
from gallery.entry import OWN, Layer, away_from_one, normal

# z = x Wᵀ + b

of_linear = partial(LINEAR.wrong, where=OWN)
one_example = naive.given("one example", lambda g: (normal(g, 1, 5), normal(g, 3, 5), normal(g, 3)))


@of_linear("weight: sign", what="dW is negated", naive=naive.norms, diagnosis=["sign"])
def weight_negated(dz, cache):
    x, W = cache
    return dz @ W, -dz.T @ x, dz.sum(0)


@of_linear(
    "dx: once per example",
    what="dx is multiplied by the size of the batch, over which the cost is a mean already",
    naive=one_example,
    diagnosis=["batch factor"],
)
def dx_per_example(dz, cache):
    x, W = cache
    return len(x) * dz @ W, dz.T @ x, dz.sum(0)


@of_linear(
    "dW in the shape of Wᵀ",
    what="dW = xᵀ dz, which does not fit",
    naive=naive.only_dx,
    diagnosis=["transposed"],
)
def weight_of_other_shape(dz, cache):
    x, W = cache
    return dz @ W, x.T @ dz, dz.sum(0)


@of_linear(
    "dW: last example lost",
    what="the loop over the batch that adds up dW ends one early",
    naive=naive.only_dx,
    diagnosis=["rows"],
)
def weight_without_last(dz, cache):
    x, W = cache
    return dz @ W, dz[:-1].T @ x[:-1], dz.sum(0)


@of_linear(
    "dW: summed too far",
    what="dW is summed over the neurons too",
    naive=naive.only_dx,
    diagnosis=["shape"],
)
def weight_summed(dz, cache):
    x, W = cache
    return dz @ W, (dz.T @ x).sum(0), dz.sum(0)


@of_linear(
    "bias: wrong axis, wrong shape",
    what="db is summed over the features instead of the batch",
    naive=naive.only_parameters,
    diagnosis=["wrong axis"],
)
def bias_per_example(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz.sum(1)


@of_linear(
    "bias: summed over everything",
    what="every element of db is the sum over batch and features",
    naive=naive.only_parameters,
    diagnosis=["wrong axis"],
)
def bias_of_all(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz.sum().expand(dz.shape[1])


@of_linear(
    "weight: decayed in backward",
    what="the optimizer's weight decay is added to dW already",
    naive=naive.loose,
    diagnosis=["weight decay"],
)
def weight_decays(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x + 0.001 * W, dz.sum(0)


# networks: z = σ(x W₁ᵀ) W₂ᵀ; y = σ(tanh(x Wᵀ) Vᵀ); y = tanh(x W) Wᵀ


@NETWORK.wrong(
    "hidden error: W₂ not transposed",
    what="the error goes back through W₂ᵀ, which fits because W₂ is square",
    where=OWN,
    naive=naive.cost_falls,
    diagnosis=["transposed"],
)
def output_weight_not_transposed(dz, cache):
    x, a1, W1, W2 = cache
    _, _, dW2 = network_backward(dz, cache)
    dz1 = (dz @ W2.T) * a1 * (1 - a1)
    return dz1 @ W1, dz1.T @ x, dW2


def activated_forward(x, W, V):
    a = torch.tanh(x @ W.T)
    y = torch.sigmoid(a @ V.T)
    return y, (x, W, V, a, y)


def activated_backward(dy, cache, output_slope=True):
    x, W, V, a, y = cache
    dz2 = dy * y * (1 - y) if output_slope else dy
    dz1 = dz2 @ V * (1 - a**2)
    return dz1 @ W, dz1.T @ x, dz2.T @ a


ACTIVATED = Layer(activated_forward, activated_backward, lambda g: (normal(g, 7, 5), normal(g, 4, 5), normal(g, 3, 4)))


@ACTIVATED.wrong(
    "output σ′ forgotten",
    what="the error of the output is taken for that of its argument",
    where=OWN,
    naive=naive.cost_falls,
    diagnosis=["derivative forgotten"],
)
def output_slope_forgotten(dy, cache):
    return activated_backward(dy, cache, output_slope=False)


@TIED.wrong(
    "tied weight: first use forgotten",
    what="only the second use's gradient counts",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["term"],
)
def tied_first_use_lost(dy, cache):
    _, W, a = cache
    dz = (dy @ W) * (1 - a**2)
    return dz @ W.T, dy.T @ a


def branch_forward(x, W):
    a = torch.tanh(x @ W)
    return x + a, (x, W, a)


def branch_backward(dy, cache):
    x, W, a = cache
    dz = dy * (1 - a**2)
    return dy + dz @ W.T, x.T @ dz


BRANCH = Layer(branch_forward, branch_backward, lambda g: (normal(g, 7, 5), normal(g, 5, 5)))


@BRANCH.wrong(
    "residual block: branch lost",
    what="dx is only the gradient around the block, not through it",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def branch_lost(dy, cache):
    return dy, branch_backward(dy, cache)[1]


# elementwise functions and factors


def paths_forward(x):
    return x.sin() + x.exp() + 2 * x.tanh() + x**3, x


def paths_backward(dy, x):
    return dy * (x.cos() + x.exp() + 2 * (1 - x.tanh() ** 2) + 3 * x**2)


PATHS = Layer(paths_forward, paths_backward, lambda g: (normal(g, 4, 5),))


@PATHS.wrong(
    "two of four summands forgotten",
    what="x is used four times, two of them do not come back",
    where=OWN,
    naive=naive.cost_falls,
    diagnosis=["term"],
)
def two_paths_lost(dy, x):
    return dy * (x.exp() + 2 * (1 - x.tanh() ** 2))


@TANH.wrong(
    "tanh′ forgotten",
    what="the cotangent goes through the activation unchanged",
    where=OWN,
    naive=naive.cost_falls,
    diagnosis=["derivative forgotten"],
)
def tanh_slope_forgotten(da, a):
    return da.clone()


def relu_forward(z):
    return torch.relu(z), z


RELU = Layer(relu_forward, lambda da, z: da * (z > 0), lambda g: (normal(g, 7, 5),))


@RELU.wrong(
    "rectifier: slope forgotten",
    what="the gradient passes where the rectifier is 0",
    where=OWN,
    naive=naive.given("z > 0", lambda g: (normal(g, 7, 5).abs() + 0.1,)),
    diagnosis=["derivative forgotten"],
)
def relu_slope_forgotten(da, z):
    return da.clone()


def gain_forward(x, a):
    return a * x, (x, a)


GAIN = Layer(
    gain_forward,
    lambda dy, cache: (dy * cache[1], (dy * cache[0]).sum(0, keepdim=True)),
    lambda g: (normal(g, 7), normal(g, 1)),
)


@GAIN.wrong(
    "gain: sign",
    what="the gradient of the one gain is negated",
    where=OWN,
    naive=naive.norms,
    diagnosis=["sign"],
)
def gain_negated(dy, cache):
    x, a = cache
    return dy * a, -(dy * x).sum(0, keepdim=True)


def scaled_forward(x, alpha):
    t = torch.tanh(x)
    return alpha * t, (t, alpha)


SCALED = Layer(scaled_forward, lambda dy, cache: cache[1] * dy * (1 - cache[0] ** 2), lambda g: (normal(g, 4, 5), 0.3))


@SCALED.wrong(
    "scalar forgotten",
    what="forward multiplies by the number α, backward does not",
    where=OWN,
    naive=naive.given("α = 1", lambda g: (normal(g, 4, 5), 1.0)),
    diagnosis=["missing factor"],
)
def scalar_forgotten(dy, cache):
    t, _ = cache
    return dy * (1 - t**2)


def gamma_forward(x, gamma):
    t = torch.tanh(x)
    return gamma * t, (t, gamma)


def gamma_backward(dy, cache):
    t, gamma = cache
    return gamma * dy * (1 - t**2), (dy * t).sum(0)


GAMMA = Layer(gamma_forward, gamma_backward, lambda g: (normal(g, 7, 5), away_from_one(g, 5)))
SQUARE_GAMMA = Layer(gamma_forward, gamma_backward, lambda g: (normal(g, 5, 5), away_from_one(g, 5)))


@GAMMA.wrong(
    "scaled tanh: γ forgotten",
    what="dx is not multiplied by γ",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["missing factor"],
)
def scale_forgotten(dy, cache):
    t, _ = cache
    return dy * (1 - t**2), gamma_backward(dy, cache)[1]


@SQUARE_GAMMA.wrong(
    "scaled tanh: dγ over the wrong axis",
    what="dγ is summed over the features instead of the batch; both are 5",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["wrong axis"],
)
def gamma_over_wrong_axis(dy, cache):
    t, _ = cache
    return gamma_backward(dy, cache)[0], (dy * t).sum(1)


@QUOTIENT.wrong(
    "quotient: division forgotten",
    what="da is not divided by b",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["missing factor"],
)
def division_forgotten(dy, cache):
    a, b = cache
    return dy.clone(), -dy * a / b**2


def weighted_forward(x, w):
    t = torch.tanh(x)
    return (w[:, None] * t).sum(1), (t, w)


def weighted_backward(dy, cache):
    t, w = cache
    return (dy * w)[:, None] * (1 - t**2), dy * t.sum(1)


WEIGHTED = Layer(weighted_forward, weighted_backward, lambda g: (normal(g, 4, 5), normal(g, 4)))


@WEIGHTED.wrong(
    "weights of the examples forgotten",
    what="dx is the same as if every example counted once",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["missing factor"],
)
def example_weights_forgotten(dy, cache):
    t, _ = cache
    return dy[:, None] * (1 - t**2), weighted_backward(dy, cache)[1]


# a sum of squares


def squares_forward(a, y):
    return (a - y).square().sum(), a - y


SQUARES = Layer(
    squares_forward,
    lambda dC, r: 2 * dC * r,
    lambda g: (normal(g, 7, 3), normal(g, 7, 3)),
    not_differentiable=["y"],
)


@SQUARES.wrong(
    "sum of squares: gradient of the mean",
    what="the cost is a sum over the batch, its gradient that of the mean",
    where=OWN,
    naive=naive.cost_falls,
    diagnosis=["batch factor"],
)
def squares_mean(dC, r):
    return 2 * dC * r / max(len(r), 1)


# masks that are given as noise: y = tanh(x) ⊙ m, y = (tanh(x) ⊙ m) W, y = tanh(x W) ⊙ m, y = sin(x W ⊙ m)


def kept(g, *shape, scale=1.0):
    mask = (torch.rand(shape, generator=g) < 0.5).double()
    mask.view(-1)[:2] = torch.tensor([0, 1])
    return mask * scale


def all_kept(*shape):
    return torch.ones(shape, dtype=torch.float64)


def noise_forward(x, noise):
    t = torch.tanh(x)
    return t * noise, (t, noise)


NOISE = Layer(
    noise_forward,
    lambda dy, cache: dy * cache[1] * (1 - cache[0] ** 2),
    lambda g: (normal(g, 7, 5), kept(g, 7, 5, scale=4 / 3)),
    not_differentiable=["noise"],
)


@NOISE.wrong(
    "noise: ignored",
    what="backward knows nothing of the noise",
    where=OWN,
    naive=naive.given("nothing dropped", lambda g: (normal(g, 7, 5), all_kept(7, 5))),
    diagnosis=["mask ignored"],
)
def noise_ignored(dy, cache):
    t, _ = cache
    return dy * (1 - t**2)


@NOISE.wrong(
    "noise: scaled only",
    what="the gradient is scaled by 1/(1 − p) everywhere, also where the value was dropped",
    where=OWN,
    naive=naive.given("nothing dropped", lambda g: (normal(g, 7, 5), all_kept(7, 5))),
    diagnosis=["mask ignored"],
)
def noise_scaled(dy, cache):
    t, noise = cache
    return dy * (1 - t**2) * (noise.max() if noise.numel() else 1)


def before_forward(x, noise, W):
    t = torch.tanh(x)
    return (t * noise) @ W, (t, noise, W)


def before_backward(dy, cache):
    t, noise, W = cache
    return (dy @ W.T) * noise * (1 - t**2), (t * noise).T @ dy


BEFORE = Layer(
    before_forward,
    before_backward,
    lambda g: (normal(g, 7, 5), kept(g, 7, 5, scale=4 / 3), normal(g, 5, 4)),
    not_differentiable=["noise"],
)


@BEFORE.wrong(
    "noise before a layer: ignored",
    what="the error that comes back through W is not masked",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["mask ignored"],
)
def noise_before_ignored(dy, cache):
    t, _, W = cache
    return (dy @ W.T) * (1 - t**2), before_backward(dy, cache)[1]


def behind_forward(x, W, noise):
    t = torch.tanh(x @ W)
    return t * noise, (x, W, noise, t)


def behind_backward(dy, cache):
    x, W, noise, t = cache
    dz = dy * noise * (1 - t**2)
    return dz @ W.T, x.T @ dz


BEHIND = Layer(
    behind_forward,
    behind_backward,
    lambda g: (normal(g, 7, 3), normal(g, 3, 5), kept(g, 7, 5)),
    not_differentiable=["noise"],
)


@BEHIND.wrong(
    "noise behind a layer: ignored in dW",
    what="dW is built from the error before it is masked",
    where=OWN,
    naive=naive.only_dx,
    diagnosis=["mask ignored"],
)
def noise_behind_ignored(dy, cache):
    x, _, _, t = cache
    return behind_backward(dy, cache)[0], x.T @ (dy * (1 - t**2))


def sine_forward(x, W, noise):
    z = (x @ W) * noise
    return torch.sin(z), (x, W, noise, z)


def sine_backward(dy, cache):
    x, W, noise, z = cache
    dz = dy * torch.cos(z) * noise
    return dz @ W.T, x.T @ dz


SINE = Layer(sine_forward, sine_backward, BEHIND.example, not_differentiable=["noise"])


@SINE.wrong(
    "noise before a sine: ignored in dx",
    what="dx gets the error of values that were dropped",
    where=OWN,
    naive=naive.only_parameters,
    diagnosis=["mask ignored"],
)
def noise_before_sine_ignored(dy, cache):
    _, W, _, z = cache
    return (dy * torch.cos(z)) @ W.T, sine_backward(dy, cache)[1]


def where_forward(x, keep):
    y = x.exp()
    return torch.where(keep, y, 0.0), (y, keep)


WHERE = Layer(
    where_forward, lambda dy, cache: dy * cache[0] * cache[1], lambda g: (normal(g, 7, 5), kept(g, 7, 5).bool())
)


@WHERE.wrong(
    "where: condition ignored",
    what="values that were not chosen still get a gradient",
    where=OWN,
    naive=naive.given("all chosen", lambda g: (normal(g, 7, 5), all_kept(7, 5).bool())),
    diagnosis=["mask ignored"],
)
def condition_ignored(dy, cache):
    y, _ = cache
    return dy * y


# indexing


def gather_forward(ids, x):
    return x.gather(1, ids), (ids, x)


def gather_backward(dy, cache):
    ids, x = cache
    return torch.zeros_like(x).scatter_add(1, ids, dy)


GATHER = Layer(gather_forward, gather_backward, lambda g: (torch.tensor([[0, 2, 2], [1, 3, 0]]), normal(g, 2, 4)))


@GATHER.wrong(
    "gather: scattered without adding",
    what="a repeated index keeps the last gradient",
    where=OWN,
    naive=naive.given("no index twice", lambda g: (torch.tensor([[0, 2, 1], [1, 3, 0]]), normal(g, 2, 4))),
    diagnosis=["repeated indices"],
)
def gather_scattered(dy, cache):
    ids, x = cache
    return torch.zeros_like(x).scatter(1, ids, dy)


# a part


def glu_forward(x, W):
    a, b = (x @ W.T).chunk(2, -1)
    return a * torch.sigmoid(b), (x, W, a, torch.sigmoid(b))


def glu_halves(dy, cache):
    _, _, a, s = cache
    return dy * s, dy * a * s * (1 - s)


def glu_backward(dy, cache):
    x, W, *_ = cache
    dz = torch.cat(glu_halves(dy, cache), -1)
    return dz @ W, dz.T @ x


GLU = Layer(glu_forward, glu_backward, lambda g: (normal(g, 7, 5), normal(g, 6, 5)))


@GLU.wrong(
    "gated linear unit: gate halved",
    what="dW is halved in the rows that make the gate",
    naive=naive.only_dx,
    diagnosis=["factor", "term"],
)
def gate_halved(dy, cache):
    dx, dW = glu_backward(dy, cache)
    return dx, torch.cat([dW[:3], dW[3:] / 2])


@GLU.wrong(
    "gated linear unit: halves in the wrong order",
    what="dW has the rows of the gate where those of the value belong, and these where the gate's belong",
    naive=naive.only_dx,
    diagnosis=["rows"],
)
def halves_exchanged(dy, cache):
    dx, dW = glu_backward(dy, cache)
    return dx, dW.roll(3, 0)


EVERY_ID_TWICE = replace(EMBEDDING, example=lambda g: (torch.tensor([[1, 3, 5], [5, 3, 1]]), normal(g, 7, 4)))


@EVERY_ID_TWICE.wrong(
    "embedding: the last one counts, every id twice",
    what="a repeated id keeps the gradient of its last place, and no id is there once",
    naive=DISTINCT,
    diagnosis=["repeated indices"],
)
def last_place(dy, cache):
    ids, W = cache
    dW = torch.zeros_like(W)
    dW[ids.flatten()] = dy.flatten(0, -2)
    return dW
