"""Affine maps, networks of them, and products."""

import torch

from gallery import naive
from gallery.entry import Layer, normal

# z = x Wᵀ + b


def forward(x, W, b):
    return x @ W.T + b, (x, W)


def backward(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz.sum(0)


LINEAR = Layer(forward, backward, lambda g: (normal(g, 7, 5), normal(g, 3, 5), normal(g, 3)))
SQUARE = Layer(forward, backward, lambda g: (normal(g, 7, 5), normal(g, 5, 5), normal(g, 5)))
CUBE = Layer(forward, backward, lambda g: (normal(g, 5, 5), normal(g, 5, 5), normal(g, 5)))


@LINEAR.wrong(
    "bias: mean instead of sum",
    what="db is averaged over the batch, although the cost's mean is in dz already",
    naive=naive.given("one example", lambda g: (normal(g, 1, 5), normal(g, 3, 5), normal(g, 3))),
    diagnosis=["batch factor"],
)
def bias_mean(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz.mean(0)


@LINEAR.wrong(
    "weight: divided by the batch again",
    what="dW is divided by the batch size a second time",
    naive=naive.cost_falls,
    diagnosis=["batch factor"],
)
def weight_mean(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x / len(x), dz.sum(0)


@SQUARE.wrong(
    "dx: transpose missing",
    what="dx = dz Wᵀ, which fits because W is square",
    naive=naive.only_parameters,
    diagnosis=["transposed"],
)
def weight_not_transposed(dz, cache):
    x, W = cache
    return dz @ W.T, dz.T @ x, dz.sum(0)


@SQUARE.wrong(
    "dW transposed",
    what="dW = xᵀ dz, which fits because W is square",
    naive=naive.norms,
    diagnosis=["transposed"],
)
def gradient_transposed(dz, cache):
    x, W = cache
    return dz @ W, x.T @ dz, dz.sum(0)


@LINEAR.wrong(
    "bias: once per weight",
    what="the bias is updated in the loop over the weights, so db counts once per input",
    where="backprop-explainer",
    naive=naive.cost_falls,
    diagnosis=["factor"],
)
def bias_per_weight(dz, cache):
    x, W = cache
    dW, db = torch.zeros_like(W), torch.zeros_like(W[:, 0])
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            dW[i, j] = (dz[:, i] * x[:, j]).sum()
            db[i] += dz[:, i].sum()
    return dz @ W, dW, db


@LINEAR.wrong(
    "bias: shape (1, n)",
    what="db keeps the batch dimension",
    naive=naive.random_allclose,
    diagnosis=["shape"],
)
def bias_keepdim(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz.sum(0, keepdim=True)


@LINEAR.wrong(
    "bias: not summed",
    what="the gradient of the broadcast bias is not summed over the batch",
    naive=naive.given("one example", lambda g: (normal(g, 1, 5), normal(g, 3, 5), normal(g, 3))),
    diagnosis=["shape"],
)
def bias_not_summed(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz


@CUBE.wrong(
    "bias: wrong axis",
    what="db is summed over the features instead of the batch; both are 5",
    naive=naive.ones,
    diagnosis=["wrong axis"],
)
def bias_axis(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz.sum(1)


@LINEAR.wrong(
    "cotangent ignored",
    what="backward starts from ones instead of from dz",
    naive=naive.ones,
    diagnosis=["ones"],
)
def ignores_cotangent(dz, cache):
    x, W = cache
    dz = torch.ones_like(dz)
    return dz @ W, dz.T @ x, dz.sum(0)


@LINEAR.wrong(
    "dx: zeros",
    what="the input's gradient is not computed, because the first layer does not need it",
    naive=naive.only_parameters,
    diagnosis=["zero"],
)
def dx_zero(dz, cache):
    x, _ = cache
    return torch.zeros_like(x), dz.T @ x, dz.sum(0)


@LINEAR.wrong(
    "bias: forgotten",
    what="backward returns two gradients for three arguments",
    naive=naive.random_allclose,
    diagnosis=["missing"],
)
def too_few(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x


@LINEAR.wrong(
    "last example lost",
    what="the loop over the batch ends one early",
    naive=naive.first_element,
    diagnosis=["rows"],
)
def last_row_lost(dz, cache):
    x, W = cache
    dx = torch.zeros_like(x)
    for i in range(len(x) - 1):
        dx[i] = dz[i] @ W
    return dx, dz.T @ x, dz.sum(0)


@LINEAR.wrong(
    "batch of one squeezed",
    what="`squeeze()` drops the batch dimension of a batch of one",
    naive=naive.random_allclose,
    diagnosis=["shape"],
)
def squeezed(dz, cache):
    x, W = cache
    return (dz @ W).squeeze(), dz.T @ x, dz.sum(0)


@LINEAR.wrong(
    "empty batch",
    what="the examples' gradients are stacked, which fails where there are none",
    naive=naive.random_allclose,
    diagnosis=["raised"],
)
def stacked(dz, cache):
    x, W = cache
    dW = torch.stack([torch.outer(d, a) for d, a in zip(dz, x, strict=True)]).sum(0)
    return dz @ W, dW, dz.sum(0)


@LINEAR.wrong(
    "single precision inside",
    what="the product is computed in float32 and returned in float64",
    naive=naive.random_allclose,
)
def single_precision(dz, cache):
    x, W = cache
    return dz @ W, (dz.float().T @ x.float()).double(), dz.sum(0)


@LINEAR.wrong(
    "single precision returned",
    what="dW comes back as float32 for a float64 weight",
    naive=naive.max_difference,
    diagnosis=["dtype"],
)
def wrong_dtype(dz, cache):
    x, W = cache
    return dz @ W, (dz.T @ x).float(), dz.sum(0)


@LINEAR.wrong(
    "gradient clipped inside",
    what="dW is clipped to ±1 in backward, where clipping belongs into the optimizer",
    naive=naive.small_cotangent,
    diagnosis=["not linear"],
)
def clipped(dz, cache):
    x, W = cache
    return dz @ W, (dz.T @ x).clamp(-1, 1), dz.sum(0)


@LINEAR.wrong_pair(
    "gradients accumulate",
    what="dW is added to a buffer that nobody empties, so that the second call is off",
    naive=naive.random_allclose,
    diagnosis=["stale"],
)
def accumulating():
    kept = {}

    def backward(dz, cache):
        x, W = cache
        kept["dW"] = kept.get("dW", 0) + dz.T @ x
        return dz @ W, kept["dW"], dz.sum(0)

    return forward, backward


@LINEAR.wrong_pair(
    "stale cache",
    what="the layer remembers its last input in itself, so that a second forward spoils the first one's backward",
    naive=naive.random_allclose,
    diagnosis=["stale"],
)
def remembering():
    kept = {}

    def forward(x, W, b):
        kept["x"] = x
        return x @ W.T + b, W

    def backward(dz, W):
        return dz @ W, dz.T @ kept["x"], dz.sum(0)

    return forward, backward


# a network: a₁ = σ(x W₁ᵀ), z = a₁ W₂ᵀ; three layers of one width, so that mistakes fit


def network_forward(x, W1, W2):
    a1 = torch.sigmoid(x @ W1.T)
    return a1 @ W2.T, (x, a1, W1, W2)


def network_backward(dz, cache):
    x, a1, W1, W2 = cache
    dz1 = (dz @ W2) * a1 * (1 - a1)
    return dz1 @ W1, dz1.T @ x, dz.T @ a1


NETWORK = Layer(network_forward, network_backward, lambda g: (normal(g, 7, 4), normal(g, 4, 4), normal(g, 4, 4)))


@NETWORK.wrong(
    "hidden σ′ forgotten",
    what="the error goes back through the hidden layer as if it were linear",
    naive=naive.cost_falls,
    diagnosis=["derivative forgotten"],
)
def hidden_slope_forgotten(dz, cache):
    x, a1, W1, W2 = cache
    dz1 = dz @ W2
    return dz1 @ W1, dz1.T @ x, dz.T @ a1


@NETWORK.wrong(
    "activations of the wrong layer",
    what="dW₂ multiplies by the network's input instead of the hidden activations",
    naive=naive.only_dx,
)
def stale_activations(dz, cache):
    x, a1, W1, W2 = cache
    dz1 = (dz @ W2) * a1 * (1 - a1)
    return dz1 @ W1, dz1.T @ x, dz.T @ x


@NETWORK.wrong(
    "slope of the activation",
    what="the hidden slope is σ′(a) instead of σ′(z)",
    naive=naive.cost_falls,
)
def slope_at_a(dz, cache):
    x, a1, W1, W2 = cache
    s = torch.sigmoid(a1)
    dz1 = (dz @ W2) * s * (1 - s)
    return dz1 @ W1, dz1.T @ x, dz.T @ a1


# one weight, used twice: y = tanh(x W) Wᵀ


def tied_forward(x, W):
    a = torch.tanh(x @ W)
    return a @ W.T, (x, W, a)


def tied_backward(dy, cache):
    x, W, a = cache
    dz = (dy @ W) * (1 - a**2)
    return dz @ W.T, dy.T @ a + x.T @ dz


TIED = Layer(tied_forward, tied_backward, lambda g: (normal(g, 7, 5), normal(g, 5, 3)))


@TIED.wrong(
    "tied weight overwritten",
    what="the second use's gradient replaces the first one's instead of being added",
    naive=naive.only_dx,
    diagnosis=["term"],
)
def tied_overwritten(dy, cache):
    x, W, a = cache
    dz = (dy @ W) * (1 - a**2)
    dW = dy.T @ a
    dW = x.T @ dz
    return dz @ W.T, dW


# a gate: y = x ⊙ σ(x Wᵀ)


def gate_forward(x, W):
    s = torch.sigmoid(x @ W.T)
    return x * s, (x, W, s)


def gate_backward(dy, cache):
    x, W, s = cache
    dz = dy * x * s * (1 - s)
    return dy * s + dz @ W, dz.T @ x


GATE = Layer(gate_forward, gate_backward, lambda g: (normal(g, 7, 5), normal(g, 5, 5)))


@GATE.wrong(
    "gate detached",
    what="dx takes the gate for a constant",
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def gate_detached(dy, cache):
    x, _, s = cache
    dz = dy * x * s * (1 - s)
    return dy * s, dz.T @ x


# a residual block: y = x + tanh(x Wᵀ)


def residual_forward(x, W):
    a = torch.tanh(x @ W.T)
    return x + a, (x, W, a)


def residual_backward(dy, cache):
    x, W, a = cache
    dz = dy * (1 - a**2)
    return dy + dz @ W, dz.T @ x


RESIDUAL = Layer(residual_forward, residual_backward, lambda g: (normal(g, 7, 5), normal(g, 5, 5)))


@RESIDUAL.wrong(
    "skip connection lost",
    what="dx is only the gradient through the block, not around it",
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def skip_lost(dy, cache):
    x, W, a = cache
    dz = dy * (1 - a**2)
    return dz @ W, dz.T @ x


# ∂(a ⊙ b)


def product_forward(a, b):
    return a * b, (a, b)


def product_backward(dy, cache):
    a, b = cache
    return dy * b, dy * a


def twice(v):
    return v, v.clone()


PRODUCT = Layer(product_forward, product_backward, lambda g: (normal(g, 7, 5), normal(g, 7, 5)))


@PRODUCT.wrong(
    "factors' gradients swapped",
    what="each factor of a ⊙ b gets the other's gradient",
    naive=naive.given("with a = b", lambda g: twice(normal(g, 7, 5))),
    diagnosis=["swapped"],
)
def product_swapped(dy, cache):
    a, b = cache
    return dy * a, dy * b
