"""Softmax, costs and their relatives."""

import torch
from torch.nn import functional as F

from gallery import naive
from gallery.entry import Layer, normal

# softmax


def softmax_forward(z):
    p = torch.softmax(z, -1)
    return p, p


def softmax_backward(dp, p):
    return p * (dp - (p * dp).sum(-1, keepdim=True))


SOFTMAX = Layer(softmax_forward, softmax_backward, lambda g: (normal(g, 7, 5),))


@SOFTMAX.wrong(
    "softmax: zeros",
    what="the gradient is zero, as the true one is for a cotangent of ones",
    where="what the tests of numpy-ml and tinygrad, with ones, would accept",
    naive=naive.ones,
    diagnosis=["zero"],
)
def softmax_zero(dp, p):
    return torch.zeros_like(p)


@SOFTMAX.wrong(
    "softmax: diagonal only",
    what="dz = p (1 − p) dp, as if softmax were elementwise",
    naive=naive.cost_falls,
    diagnosis=["term"],
)
def softmax_diagonal(dp, p):
    return p * (1 - p) * dp


@SOFTMAX.wrong(
    "softmax: denominator constant",
    what="dz = p dp; the path through the sum is missing",
    naive=naive.cost_falls,
    diagnosis=["term"],
)
def softmax_numerator(dp, p):
    return p * dp


# log-softmax


def log_softmax_forward(z):
    q = torch.log_softmax(z, -1)
    return q, q


def log_softmax_backward(dq, q):
    return dq - q.exp() * dq.sum(-1, keepdim=True)


LOG_SOFTMAX = Layer(log_softmax_forward, log_softmax_backward, lambda g: (normal(g, 5, 5),))


@LOG_SOFTMAX.wrong(
    "log-softmax: cross-entropy's formula",
    what="dz = dq + p, which holds only below the negative log-likelihood, where dq sums to −1",
    naive=naive.one_hot,
    diagnosis=["not linear"],
)
def log_softmax_one_hot(dq, q):
    return dq + q.exp()


# log-sum-exp


def logsumexp_forward(z):
    y = torch.logsumexp(z, -1)
    return y, z


def logsumexp_backward(dy, z):
    return dy[..., None] * torch.softmax(z, -1)


LOGSUMEXP = Layer(logsumexp_forward, logsumexp_backward, lambda g: (normal(g, 7, 5),))


@LOGSUMEXP.wrong(
    "log-sum-exp: overflow",
    what="backward computes exp(z) / Σ exp(z) without the maximum: inf/inf for large z",
    naive=naive.random_allclose,
    diagnosis=["nan"],
)
def logsumexp_overflow(dy, z):
    e = z.exp()
    return dy[..., None] * e / e.sum(-1, keepdim=True)


# the quadratic cost ½‖a − y‖² / B


def quadratic_forward(a, y):
    return 0.5 * (a - y).square().sum() / max(len(a), 1), (a, y)


def quadratic_backward(dC, cache):
    a, y = cache
    return dC * (a - y) / max(len(a), 1)


QUADRATIC = Layer(
    quadratic_forward, quadratic_backward, lambda g: (normal(g, 7, 3), normal(g, 7, 3)), not_differentiable=["y"]
)


@QUADRATIC.wrong(
    "quadratic cost: 2",
    what="2 (a − y), although the cost has its ½",
    naive=naive.cost_falls,
    diagnosis=["factor"],
)
def quadratic_double(dC, cache):
    a, y = cache
    return dC * 2 * (a - y) / max(len(a), 1)


@QUADRATIC.wrong(
    "quadratic cost: sum for a mean",
    what="the cost is a mean over the batch, its gradient that of the sum",
    naive=naive.cost_falls,
    diagnosis=["batch factor"],
)
def quadratic_sum(dC, cache):
    a, y = cache
    return dC * (a - y)


def squared_forward(a, y):
    return (a - y).square().sum() / max(len(a), 1), (a, y)


def squared_backward(dC, cache):
    a, y = cache
    return dC * 2 * (a - y) / max(len(a), 1)


SQUARED = Layer(
    squared_forward, squared_backward, lambda g: (normal(g, 7, 3), normal(g, 7, 3)), not_differentiable=["y"]
)


@SQUARED.wrong(
    "squared error: ½",
    what="a − y for ‖a − y‖², whose 2 is forgotten",
    naive=naive.cost_falls,
    diagnosis=["factor"],
)
def squared_half(dC, cache):
    a, y = cache
    return dC * (a - y) / max(len(a), 1)


# softmax cross-entropy from logits, labels smoothed by ε, mean over the labels that are not ignored (−1)


def cross_entropy_forward(z, labels, smoothing):
    kept = (labels >= 0).to(z.dtype)
    count = kept.sum().clamp(min=1)
    target = F.one_hot(labels.clamp(min=0), z.shape[-1]).to(z.dtype) * (1 - smoothing) + smoothing / z.shape[-1]
    cost = -(target * torch.log_softmax(z, -1)).sum(-1)
    return (kept * cost).sum() / count, (z, target, kept, count)


def cross_entropy_backward(dC, cache):
    z, target, kept, count = cache
    return dC * kept[:, None] * (torch.softmax(z, -1) - target) / count


def labeled(g, ignored=(2, 5), smoothing=0.15):
    labels = torch.randint(0, 4, (7,), generator=g)
    labels[list(ignored)] = -1
    return normal(g, 7, 4), labels, smoothing


CROSS_ENTROPY = Layer(cross_entropy_forward, cross_entropy_backward, labeled)


@CROSS_ENTROPY.wrong(
    "cross-entropy: p − y without 1/B",
    what="the mean over the batch is forgotten in the gradient",
    naive=naive.cost_falls,
    diagnosis=["batch factor", "factor"],
)
def cross_entropy_sum(dC, cache):
    z, target, kept, _ = cache
    return dC * kept[:, None] * (torch.softmax(z, -1) - target)


@CROSS_ENTROPY.wrong(
    "cross-entropy: ignored labels counted",
    what="the gradient divides by the batch, the cost by the labels that are not ignored",
    naive=naive.given("no label ignored", lambda g: labeled(g, ignored=())),
    diagnosis=["factor"],
)
def cross_entropy_counts_ignored(dC, cache):
    z, target, kept, _ = cache
    return dC * kept[:, None] * (torch.softmax(z, -1) - target) / max(len(z), 1)


@CROSS_ENTROPY.wrong(
    "cross-entropy: smoothing forgotten",
    what="the cost smooths its labels, the gradient does not",
    naive=naive.given("no smoothing", lambda g: labeled(g, smoothing=0.0)),
)
def smoothing_forgotten(dC, cache):
    z, target, kept, count = cache
    y = F.one_hot(target.argmax(-1), z.shape[-1]).to(z.dtype)
    return dC * kept[:, None] * (torch.softmax(z, -1) - y) / count


@CROSS_ENTROPY.wrong(
    "cross-entropy: cotangent ignored",
    what="backward returns (p − y)/B whatever the gradient that arrives, as a fused kernel does",
    naive=naive.ones,
    diagnosis=["ones"],
)
def cross_entropy_ones(dC, cache):
    z, target, kept, count = cache
    return kept[:, None] * (torch.softmax(z, -1) - target) / count


# sigmoid cross-entropy from logits


def sigmoid_cross_entropy_forward(z, y):
    return (F.softplus(z) - y * z).sum(), (z, y)


def sigmoid_cross_entropy_backward(dC, cache):
    z, y = cache
    return dC * (torch.sigmoid(z) - y)


SIGMOID_CROSS_ENTROPY = Layer(
    sigmoid_cross_entropy_forward,
    sigmoid_cross_entropy_backward,
    lambda g: (normal(g, 7, 3), torch.rand(7, 3, generator=g, dtype=torch.float64)),
    not_differentiable=["y"],
)


@SIGMOID_CROSS_ENTROPY.wrong(
    "sigmoid cross-entropy: extra σ′",
    what="(a − y) σ′(z), the quadratic cost's formula",
    naive=naive.cost_falls,
)
def extra_slope(dC, cache):
    z, y = cache
    a = torch.sigmoid(z)
    return dC * (a - y) * a * (1 - a)


# Huber's cost with threshold δ


def huber_forward(a, y, delta):
    return F.huber_loss(a, y, reduction="none", delta=delta), (a - y, delta)


def huber_backward(dC, cache):
    r, delta = cache
    return dC * torch.where(r.abs() <= delta, r, delta * r.sign())


HUBER = Layer(
    huber_forward,
    huber_backward,
    lambda g: (2 * normal(g, 7, 5), normal(g, 7, 5), 0.7),
    not_differentiable=["y"],
)


@HUBER.wrong(
    "Huber: δ forgotten",
    what="beyond the threshold the slope is ±1 instead of ±δ",
    diagnosis=["missing factor"],
    naive=naive.given("δ = 1", lambda g: (2 * normal(g, 7, 5), normal(g, 7, 5), 1.0)),
)
def huber_threshold(dC, cache):
    r, delta = cache
    return dC * torch.where(r.abs() <= delta, r, r.sign())


# a network's cost with its penalty: ‖x Wᵀ + b − y‖²/2B + λ‖W‖²/2


def penalized_forward(x, W, b, y, decay):
    z = x @ W.T + b
    return 0.5 * (z - y).square().sum() / max(len(x), 1) + 0.5 * decay * W.square().sum(), (x, W, b, z - y, decay)


def penalized_backward(dC, cache):
    x, W, _, r, decay = cache
    dz = dC * r / max(len(x), 1)
    return dz @ W, dz.T @ x + dC * decay * W, dz.sum(0)


def penalized(g, decay=0.1):
    return normal(g, 7, 5), normal(g, 3, 5), normal(g, 3), normal(g, 7, 3), decay


PENALIZED = Layer(penalized_forward, penalized_backward, penalized, not_differentiable=["y"])


@PENALIZED.wrong(
    "L2 once per example",
    what="the penalty's gradient is added in the loop over the batch",
    where="DeepLearningPython",
    naive=naive.given("λ = 0", lambda g: penalized(g, 0.0)),
    diagnosis=["weight decay", "term"],
)
def penalty_per_example(dC, cache):
    x, W, _, r, decay = cache
    dz = dC * r / max(len(x), 1)
    dW = torch.zeros_like(W)
    for d, a in zip(dz, x, strict=True):
        dW = dW + torch.outer(d, a) + dC * decay * W
    return dz @ W, dW, dz.sum(0)


@PENALIZED.wrong(
    "weight decay on biases",
    what="the bias is decayed like a weight, which the cost does not do",
    naive=naive.given("b = 0", lambda g: (*penalized(g)[:2], torch.zeros(3, dtype=torch.float64), *penalized(g)[3:])),
    diagnosis=["weight decay"],
)
def bias_decays(dC, cache):
    x, W, b, r, decay = cache
    dz = dC * r / max(len(x), 1)
    return dz @ W, dz.T @ x + dC * decay * W, dz.sum(0) + dC * decay * b
