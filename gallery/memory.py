"""Memory: strides, offsets, and writing where one should only read."""

import torch

from gallery import naive
from gallery.entry import Layer, normal

GRADCHECK = "PyTorch #194719: gradcheck feeds contiguous cotangents only"

# y = γ ⊙ x²


def forward(x, gamma):
    return gamma * x**2, (x, gamma)


def backward(dy, cache):
    x, gamma = cache
    return 2 * dy * gamma * x, (dy * x**2).sum(0)


SCALED_SQUARE = Layer(forward, backward, lambda g: (normal(g, 7, 5), normal(g, 5)))


def contiguous_strides(shape):
    strides, step = [], 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(size, 1)
    return strides


@SCALED_SQUARE.wrong(
    "strides of the cotangent ignored",
    what="a kernel walks through the cotangent's memory as if it were contiguous",
    where=GRADCHECK,
    naive=naive.random_allclose,
    diagnosis=["strided"],
)
def strides_ignored(dy, cache):
    dy = dy.as_strided(dy.shape, contiguous_strides(dy.shape))
    return backward(dy, cache)


@SCALED_SQUARE.wrong(
    "offset of the cotangent ignored",
    what="a kernel starts at the beginning of the cotangent's storage",
    where=GRADCHECK,
    naive=naive.random_allclose,
    diagnosis=["strided"],
)
def offset_ignored(dy, cache):
    dy = dy.as_strided(dy.shape, dy.stride(), 0)
    return backward(dy, cache)


@SCALED_SQUARE.wrong(
    "width taken for the row stride",
    what="a kernel takes the width for the stride from row to row, and misreads a slice of a wider matrix",
    where=GRADCHECK,
    naive=naive.random_allclose,
    diagnosis=["strided"],
)
def row_stride(dy, cache):
    dy = dy.as_strided(dy.shape, (dy.shape[1] * dy.stride(1), dy.stride(1)))
    return backward(dy, cache)


@SCALED_SQUARE.wrong(
    "`view` of the cotangent",
    what="`dy.view(-1)` raises for a cotangent that is transposed or expanded",
    where=GRADCHECK,
    naive=naive.random_allclose,
    diagnosis=["strided", "raised"],
)
def viewed(dy, cache):
    x, gamma = cache
    dx = 2 * dy.view(-1) * (gamma * x).reshape(-1)
    return dx.view(x.shape), (dy * x**2).sum(0)


@SCALED_SQUARE.wrong(
    "strides of the input ignored",
    what="a kernel walks through the saved input's memory as if it were contiguous",
    naive=naive.random_allclose,
    diagnosis=["strided"],
)
def input_strides_ignored(dy, cache):
    x, gamma = cache
    x = x.as_strided(x.shape, contiguous_strides(x.shape))
    return backward(dy, (x, gamma))


@SCALED_SQUARE.wrong(
    "cotangent overwritten",
    what="`dy *= 2` writes into a tensor that others still read",
    where="classic; gradcheck cannot see it (PyTorch #81417)",
    naive=naive.random_allclose,
    diagnosis=["in place"],
)
def cotangent_overwritten(dy, cache):
    x, gamma = cache
    dgamma = (dy * x**2).sum(0)
    dy *= 2
    return dy * gamma * x, dgamma


@SCALED_SQUARE.wrong(
    "input overwritten",
    what="dx is built in the memory of x",
    where="classic; gradcheck cannot see it (PyTorch #81417)",
    naive=naive.random_allclose,
    diagnosis=["in place"],
)
def input_overwritten(dy, cache):
    x, gamma = cache
    dgamma = (dy * x**2).sum(0)
    return x.mul_(2 * gamma).mul_(dy), dgamma


# sigmoid again, whose cache is its output


def sigmoid_forward(z):
    a = torch.sigmoid(z)
    return a, a


def sigmoid_backward(da, a):
    return da * a * (1 - a)


SIGMOID = Layer(sigmoid_forward, sigmoid_backward, lambda g: (normal(g, 7, 5),))


@SIGMOID.wrong(
    "output overwritten",
    what="a (1 − a) is computed in the memory of the output a",
    naive=naive.random_allclose,
    diagnosis=["in place"],
)
def output_overwritten(da, a):
    return a.sub_(a**2).mul_(da)


@SIGMOID.wrong_pair(
    "every second call",
    what="backward frees its cache and answers the second call with zeros",
    naive=naive.random_allclose,
    diagnosis=["stale"],
)
def cache_freed():
    def forward(z):
        a = torch.sigmoid(z)
        return a, {"a": a}

    def backward(da, cache):
        a = cache.pop("a", torch.zeros_like(da))
        return da * a * (1 - a)

    return forward, backward
