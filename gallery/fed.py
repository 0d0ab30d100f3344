"""Mistakes that only what the check feeds beside the example shows: other sizes, layouts, values, and a second call."""

import torch

from gallery import naive
from gallery.affine import LINEAR, backward, forward
from gallery.elementwise import TANH
from gallery.entry import OWN, Layer, normal
from gallery.memory import SCALED_SQUARE
from gallery.memory import backward as scaled_square_backward

# cotangents that are large or small


@LINEAR.wrong(
    "large gradients clamped",
    what="what arrives is clamped to ±100",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["not linear"],
)
def clamped(dz, cache):
    return backward(dz.clamp(-100, 100), cache)


@LINEAR.wrong(
    "small gradients flushed",
    what="what arrives counts as zero below 1e-6",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["not linear"],
)
def flushed(dz, cache):
    return backward(torch.where(dz.abs() < 1e-6, 0, dz), cache)


@LINEAR.wrong(
    "first example looked at",
    what="backward reads the first row, which an empty batch has not",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["raised"],
)
def looks_at_first(dz, cache):
    return backward(dz + 0 * dz[0], cache)


# batches of other sizes


EIGHT = Layer(forward, backward, lambda g: (normal(g, 8, 5), normal(g, 3, 5), normal(g, 3)))


@EIGHT.wrong(
    "remainder of the batch lost",
    what="dW is added up in pieces of four examples",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["rows"],
)
def in_pieces(dz, cache):
    x, W = cache
    whole = len(x) // 4 * 4
    return dz @ W, dz[:whole].T @ x[:whole], dz.sum(0)


# layouts of images and of attention


FOUR = Layer(TANH.forward, TANH.backward, lambda g: (normal(g, 2, 3, 4, 5),))


@FOUR.wrong(
    "channels last misread",
    what="a kernel reads a cotangent whose channels lie last in memory in the wrong order",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["strided"],
)
def channels_misread(da, a):
    last = da.stride(1) == 1 and da.shape[1] > 1 and not da.is_contiguous()
    return TANH.backward(da.flip(1) if last else da, a)


@FOUR.wrong(
    "heads misread",
    what="a kernel reads a cotangent whose heads and places are transposed in the wrong order",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["strided"],
)
def heads_misread(da, a):
    return TANH.backward(da.flip(2) if 1 < da.stride(1) < da.stride(2) else da, a)


@SCALED_SQUARE.wrong(
    "expanded weight misread",
    what="a kernel reads a weight that is not contiguous as if it were, as torch 2.15's batch norm does on a CPU",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["strided"],
)
def weight_misread(dy, cache):
    x, gamma = cache
    return scaled_square_backward(dy, (x, gamma if gamma.is_contiguous() else gamma + 5))


# values


SAME = Layer(lambda z: (z * 1.0, z), lambda da, z: da.clone(), lambda g: (normal(g, 9, 8),))


@SAME.wrong(
    "slope lost beyond 5",
    what="between ±5 and ±50 the slope is 0",
    where=OWN,
    naive=naive.random_allclose,
)
def lost_beyond_five(da, z):
    return da * torch.where((z.abs() > 5) & (z.abs() < 50), 0.0, 1.0)


# a second call


@LINEAR.wrong_pair(
    "buffer returned",
    what="dx lies in a buffer of the layer, which the next call writes over",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["not linear"],
)
def returns_its_buffer():
    buffer = torch.empty(7, 5, dtype=torch.float64)

    def with_buffer(dz, cache):
        x, W = cache
        return torch.mm(dz, W, out=buffer) if len(x) == 7 else dz @ W, dz.T @ x, dz.sum(0)

    return forward, with_buffer
