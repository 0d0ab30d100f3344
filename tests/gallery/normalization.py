"""Layer, batch and RMS normalization, and unit vectors."""

import torch

from tests.gallery import naive
from tests.gallery.entry import Layer, away_from_one, normal

EPS = 1e-5

# layer norm: y = γ x̂ + β, x̂ = (x − μ)/σ


def layer_norm_forward(x, gamma, beta):
    centered = x - x.mean(-1, keepdim=True)
    rstd = (centered.square().mean(-1, keepdim=True) + EPS).rsqrt()
    xhat = centered * rstd
    return gamma * xhat + beta, (xhat, rstd, gamma)


def layer_norm_backward(dy, cache):
    xhat, rstd, gamma = cache
    dxhat = dy * gamma
    mean, projection = dxhat.mean(-1, keepdim=True), (dxhat * xhat).mean(-1, keepdim=True)
    return rstd * (dxhat - mean - xhat * projection), (dy * xhat).sum(0), dy.sum(0)


def defaults(g):
    one = torch.ones(5, dtype=torch.float64)
    return normal(g, 7, 5), one, 0 * one


LAYER_NORM = Layer(
    layer_norm_forward, layer_norm_backward, lambda g: (normal(g, 7, 5), away_from_one(g, 5), normal(g, 5))
)


@LAYER_NORM.wrong(
    "layer norm: zeros",
    what="dx is zero, as the true one nearly is for γ = 1 and a cotangent of ones",
    where="what the tests of numpy-ml and tinygrad, with ones, would accept",
    naive=naive.given("γ = 1, β = 0", defaults, naive.ones),
    diagnosis=["zero"],
)
def layer_norm_zero(dy, cache):
    xhat, _, _ = cache
    return torch.zeros_like(xhat), (dy * xhat).sum(0), dy.sum(0)


@LAYER_NORM.wrong(
    "layer norm: third term",
    what="the path through σ is missing",
    naive=naive.given("γ = 1, β = 0", defaults, naive.ones),
    diagnosis=["term"],
)
def without_variance(dy, cache):
    xhat, rstd, gamma = cache
    dxhat = dy * gamma
    return rstd * (dxhat - dxhat.mean(-1, keepdim=True)), (dy * xhat).sum(0), dy.sum(0)


@LAYER_NORM.wrong(
    "layer norm: second term",
    what="the path through μ is missing",
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def without_mean(dy, cache):
    xhat, rstd, gamma = cache
    dxhat = dy * gamma
    return rstd * (dxhat - xhat * (dxhat * xhat).mean(-1, keepdim=True)), (dy * xhat).sum(0), dy.sum(0)


@LAYER_NORM.wrong(
    "layer norm: γ forgotten",
    what="dx is not multiplied by γ",
    where="llm.c #763 tells of the same in an RMS norm, found after days",
    naive=naive.given("γ = 1, β = 0", defaults),
    diagnosis=["missing factor"],
)
def gamma_forgotten(dy, cache):
    xhat, rstd, _ = cache
    mean, projection = dy.mean(-1, keepdim=True), (dy * xhat).mean(-1, keepdim=True)
    return rstd * (dy - mean - xhat * projection), (dy * xhat).sum(0), dy.sum(0)


@LAYER_NORM.wrong(
    "layer norm: ε in backward",
    what="backward adds 1e-8 to σ, forward has its own ε already",
    naive=naive.random_allclose,
)
def softened(dy, cache):
    xhat, rstd, gamma = cache
    sigma = 1 / rstd + 1e-8
    dxhat = dy * gamma
    mean, projection = dxhat.mean(-1, keepdim=True), (dxhat * xhat).mean(-1, keepdim=True)
    return (dxhat - mean - xhat * projection) / sigma, (dy * xhat).sum(0), dy.sum(0)


# batch norm, in training


def batch_norm_forward(x, gamma, beta):
    mu = x.mean(0)
    rstd = ((x - mu).square().mean(0) + EPS).rsqrt()
    xhat = (x - mu) * rstd
    return gamma * xhat + beta, (x, xhat, rstd, gamma)


def batch_norm_backward(dy, cache):
    _, xhat, rstd, gamma = cache
    dxhat = dy * gamma
    return rstd * (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0)), (dy * xhat).sum(0), dy.sum(0)


BATCH_NORM = Layer(
    batch_norm_forward, batch_norm_backward, lambda g: (normal(g, 7, 5) + 2, away_from_one(g, 5), normal(g, 5))
)


@BATCH_NORM.wrong(
    "batch norm: dγ right, dx affine",
    what="mean and variance are taken for constants",
    where="of mlpack #1923's kind: the tests had no layer below the batch norm, so nobody looked at dx",
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def batch_norm_affine(dy, cache):
    _, xhat, rstd, gamma = cache
    return dy * gamma * rstd, (dy * xhat).sum(0), dy.sum(0)


@BATCH_NORM.wrong(
    "batch norm: n − 1",
    what="forward divides the variance by n, backward by n − 1",
    naive=naive.only_parameters,
    diagnosis=["term"],
)
def batch_norm_unbiased(dy, cache):
    _, xhat, rstd, gamma = cache
    dxhat = dy * gamma
    n = len(xhat)
    projection = (dxhat * xhat).sum(0) / max(n - 1, 1)
    return rstd * (dxhat - dxhat.mean(0) - xhat * projection), (dy * xhat).sum(0), dy.sum(0)


@BATCH_NORM.wrong(
    "batch norm: dγ from x",
    what="dγ multiplies by the input instead of the normalized input",
    naive=naive.only_dx,
)
def gamma_from_input(dy, cache):
    x, xhat, rstd, gamma = cache
    dxhat = dy * gamma
    return rstd * (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0)), (dy * x).sum(0), dy.sum(0)


# RMS norm: y = γ x/rms(x)


def rms_norm_forward(x, gamma):
    rrms = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    xhat = x * rrms
    return gamma * xhat, (xhat, rrms, gamma)


def rms_norm_backward(dy, cache):
    xhat, rrms, gamma = cache
    dxhat = dy * gamma
    return rrms * (dxhat - xhat * (dxhat * xhat).mean(-1, keepdim=True)), (dy * xhat).sum(0)


RMS_NORM = Layer(rms_norm_forward, rms_norm_backward, lambda g: (normal(g, 7, 5), away_from_one(g, 5)))


@RMS_NORM.wrong(
    "RMS norm: weight never trained",
    what="backward returns None for the weight",
    where="unsloth (#4533)",
    naive=naive.only_dx,
    diagnosis=["missing"],
)
def weight_gradient_missing(dy, cache):
    return rms_norm_backward(dy, cache)[0], None


@RMS_NORM.wrong(
    "RMS norm: a maximum of one side",
    what="dγ is averaged over the tokens; a test that forgets the absolute value sees only that it is not too large",
    where="the test: unsloth",
    naive=naive.given("x > 0", lambda g: (normal(g, 7, 5).abs(), 1 + 0 * normal(g, 5)), naive.one_sided),
    diagnosis=["batch factor"],
)
def averaged_over_tokens(dy, cache):
    dx, dgamma = rms_norm_backward(dy, cache)
    return dx, dgamma / max(len(dx), 1)


@RMS_NORM.wrong(
    "RMS norm: dx written over dy",
    what="dx is built in the memory of the cotangent",
    where="unsloth (#4550 tells how dW then came out wrong)",
    naive=naive.random_allclose,
    diagnosis=["in place"],
)
def writes_over_cotangent(dy, cache):
    xhat, rrms, gamma = cache
    dgamma = (dy * xhat).sum(0)
    dxhat = dy.mul_(gamma)
    dxhat -= xhat * (dxhat * xhat).mean(-1, keepdim=True)
    return dxhat.mul_(rrms), dgamma


# unit vectors: y = x/‖x‖


def unit_forward(x):
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm, (x / norm, norm)


def unit_backward(dy, cache):
    y, norm = cache
    return (dy - y * (y * dy).sum(-1, keepdim=True)) / norm


UNIT = Layer(unit_forward, unit_backward, lambda g: (normal(g, 7, 5),))


@UNIT.wrong(
    "unit vector: projection forgotten",
    what="the norm is taken for a constant",
    naive=naive.given("10,000 dimensions", lambda g: (normal(g, 7, 10_000),), naive.loose),
    diagnosis=["term"],
)
def not_projected(dy, cache):
    _, norm = cache
    return dy / norm


# the norm ‖x‖


def norm_forward(x):
    norm = torch.linalg.vector_norm(x, dim=-1)
    return norm, (x, norm)


def norm_backward(dn, cache):
    x, norm = cache
    direction = x / torch.where(norm > 0, norm, 1)[..., None]
    return dn[..., None] * direction


NORM = Layer(norm_forward, norm_backward, lambda g: (normal(g, 7, 5),))


@NORM.wrong(
    "norm at the origin",
    what="x/‖x‖ is 0/0 for the zero vector",
    naive=naive.random_allclose,
    diagnosis=["nan"],
)
def norm_at_zero(dn, cache):
    x, norm = cache
    return dn[..., None] * x / norm[..., None]
