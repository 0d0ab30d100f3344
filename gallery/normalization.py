"""Layer, batch, group and RMS normalization, and unit vectors."""

import torch

from gallery import naive
from gallery.entry import Layer, away_from_one, normal

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


# batch norm of images, and its running variance


def image_norm_forward(x, gamma, beta):
    mu, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    rstd = (var + EPS).rsqrt()
    xhat = (x - mu) * rstd
    return gamma[:, None, None] * xhat + beta[:, None, None], (xhat, rstd, gamma)


def image_norm_backward(dy, cache, dims=(0, 2, 3)):
    xhat, rstd, gamma = cache
    dxhat = gamma[:, None, None] * dy
    mean, projection = dxhat.mean(dims, keepdim=True), (dxhat * xhat).mean(dims, keepdim=True)
    return rstd * (dxhat - mean - xhat * projection), (dy * xhat).sum((0, 2, 3)), dy.sum((0, 2, 3))


def some_images(g, batch=3):
    return normal(g, batch, 4, 2, 5) + 2, away_from_one(g, 4), normal(g, 4)


IMAGE_NORM = Layer(image_norm_forward, image_norm_backward, some_images)


@IMAGE_NORM.wrong(
    "batch norm: means per image",
    what="backward averages over the places of each image, forward over the batch too",
    naive=naive.given("one image", lambda g: some_images(g, 1)),
    diagnosis=["wrong axis"],
)
def means_per_image(dy, cache):
    return image_norm_backward(dy, cache, (2, 3))


@IMAGE_NORM.wrong(
    "batch norm: sums per image",
    what="dγ and dβ are averaged over the batch, because the statistics were",
    naive=naive.only_dx,
    diagnosis=["batch factor"],
)
def sums_per_image(dy, cache):
    dx, dgamma, dbeta = image_norm_backward(dy, cache)
    return dx, dgamma / max(len(dy), 1), dbeta / max(len(dy), 1)


def running_forward(x, running_var, correction=1):
    var = x.var(0, correction=correction)
    return 0.9 * running_var + 0.1 * var, (x, len(x) - correction)


def running_backward(dv, cache):
    x, n = cache
    return 0.2 / n * (x - x.mean(0)) * dv, 0.9 * dv


RUNNING = Layer(
    running_forward,
    running_backward,
    lambda g: (normal(g, 7, 5), away_from_one(g, 5).abs()),
    reference=lambda x, running_var: running_var.lerp(x.var(0), 0.1),
)


@RUNNING.wrong_pair(
    "batch norm: biased running variance",
    what="the running variance is fed with the one by n instead of n − 1; right in itself",
    naive=naive.random_allclose,
)
def biased_running_variance():
    return lambda x, running_var: running_forward(x, running_var, 0), running_backward


@LAYER_NORM.wrong(
    "layer norm: γ outside of the means",
    what="γ is multiplied in at the end, as in a batch norm, where it is the same for all that is averaged",
    naive=naive.given(
        "γ the same everywhere", lambda g: (normal(g, 7, 5), away_from_one(g, 1).repeat(5), normal(g, 5))
    ),
)
def gamma_outside(dy, cache):
    xhat, rstd, gamma = cache
    mean, projection = dy.mean(-1, keepdim=True), (dy * xhat).mean(-1, keepdim=True)
    return gamma * rstd * (dy - mean - xhat * projection), (dy * xhat).sum(0), dy.sum(0)


@LAYER_NORM.wrong(
    "layer norm: means over the batch",
    what="backward averages over the examples, as in a batch norm",
    naive=naive.only_parameters,
    diagnosis=["wrong axis"],
)
def means_over_the_batch(dy, cache):
    xhat, rstd, gamma = cache
    dxhat = dy * gamma
    return rstd * (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0)), (dy * xhat).sum(0), dy.sum(0)


# group norm: the channels in groups


def group_norm_forward(x, gamma, beta, groups):
    grouped = x.unflatten(1, (groups, -1)).flatten(2)
    centered = grouped - grouped.mean(-1, keepdim=True)
    rstd = (centered.square().mean(-1, keepdim=True) + EPS).rsqrt()
    xhat = (centered * rstd).view(x.shape)
    return gamma[:, None] * xhat + beta[:, None], (xhat, rstd, gamma)


def group_norm_backward(dy, cache, groups=None):
    xhat, rstd, gamma = cache
    own = rstd.shape[1]
    split = groups or own
    dxhat, normed = (v.unflatten(1, (split, -1)).flatten(2) for v in (gamma[:, None] * dy, xhat))
    mean, projection = dxhat.mean(-1, keepdim=True), (dxhat * normed).mean(-1, keepdim=True)
    inside = (dxhat - mean - normed * projection).view(dy.shape).unflatten(1, (own, -1)).flatten(2)
    return (rstd * inside).view(dy.shape), (dy * xhat).sum((0, 2)), dy.sum((0, 2))


def channels(g, groups=2):
    return normal(g, 3, 6, 4), away_from_one(g, 6), normal(g, 6), groups


GROUP_NORM = Layer(group_norm_forward, group_norm_backward, channels)


@GROUP_NORM.wrong(
    "group norm: means per channel",
    what="backward averages over each channel, forward over each group of channels",
    naive=naive.given("a channel per group", lambda g: channels(g, 6)),
)
def means_per_channel(dy, cache):
    return group_norm_backward(dy, cache, dy.shape[1])


@GROUP_NORM.wrong(
    "group norm: means over all channels",
    what="backward averages over all channels of an example, as in a layer norm",
    naive=naive.given("one group", lambda g: channels(g, 1)),
)
def means_over_all_channels(dy, cache):
    return group_norm_backward(dy, cache, 1)


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
