"""Mistakes of lower precision: sums that are kept in 16 bits, and kernels that misread memory in one format alone."""

import torch

from gallery import naive
from gallery.affine import backward, forward
from gallery.elementwise import TANH
from gallery.entry import OWN, Example, Layer, normal


def in_format(example: Example, dtype: torch.dtype) -> Example:
    """The same example, rounded."""
    return lambda generator: [v.to(dtype) if v.is_floating_point() else v for v in example(generator)]


# sums over a few examples, which thousands show


HALF = Layer(
    forward, backward, in_format(lambda g: (normal(g, 7, 16), normal(g, 12, 16), normal(g, 12)), torch.float16)
)


@HALF.wrong(
    "dW added up in float16",
    what="dW grows by one example at a time and is rounded to float16 each time",
    where=OWN,
    naive=naive.loose,
    only="rows",
)
def weight_in_half(dz, cache):
    x, W = cache
    dW = torch.zeros_like(W)
    for one, z in zip(x, dz, strict=True):
        dW += torch.outer(z, one)
    return dz @ W, dW, dz.sum(0)


def scaled(x, gamma):
    return x * gamma, (x, gamma)


def scaled_backward(dy, cache):
    x, gamma = cache
    return dy * gamma, (dy * x).sum(0)


SCALED = Layer(scaled, scaled_backward, in_format(lambda g: (normal(g, 9, 24), normal(g, 24)), torch.bfloat16))


@SCALED.wrong(
    "dγ added up in bfloat16",
    what="the row that dγ is added up in is bfloat16 instead of float32",
    where=OWN,
    naive=naive.looser,
    only="rows",
)
def scale_in_brain(dy, cache):
    x, gamma = cache
    dgamma = torch.zeros_like(gamma)
    for row in dy * x:
        dgamma = dgamma + row
    return dy * gamma, dgamma


def shifted(x, b):
    return torch.tanh(x + b), torch.tanh(x + b)


def shifted_backward(dy, y):
    dx = dy * (1 - y * y)
    return dx, dx.sum(0)


SHIFTED = Layer(
    shifted, shifted_backward, in_format(lambda g: (normal(g, 8, 5, 3) / 4, normal(g, 5, 3)), torch.float16)
)


@SHIFTED.wrong(
    "db as a running mean in float16",
    what="db is the number of examples times their mean, which is updated in float16 one by one",
    where=OWN,
    naive=naive.loose,
    only="rows",
)
def running_mean(dy, y):
    dx = dy * (1 - y * y)
    mean = torch.zeros_like(dx[:1]).sum(0)
    for count, row in enumerate(dx, 1):
        mean += (row - mean) / count
    return dx, mean * len(dx)


# a kernel of one format


def single(tensor):
    return tensor.dtype == torch.float32


@TANH.wrong(
    "strides ignored in float32",
    what="the float32 kernel walks through the cotangent's memory as if it were contiguous, as thinc 9.1.1's Mish does",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["strided"],
    only="layouts",
)
def strides_in_single(da, a):
    if single(da) and not da.is_contiguous():
        da = da.as_strided(da.shape, (da.shape[1], 1)) if da.untyped_storage().nbytes() >= 4 * da.numel() else 0 * da
    return TANH.backward(da, a)


@TANH.wrong(
    "aligned loads in float32",
    what="the float32 kernel loads four numbers at once, from the last multiple of four places on",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["strided"],
    only="layouts",
)
def aligned_in_single(da, a):
    start = da.storage_offset()
    if single(da) and start % 4:
        da = da.as_strided(da.shape, da.stride(), start // 4 * 4).nan_to_num(0.0)
    return TANH.backward(da, a)


@TANH.wrong(
    "stride 0 in float32",
    what="the float32 kernel skips an axis of stride 0 and leaves zeros behind the first row",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["strided"],
    only="layouts",
)
def expanded_in_single(da, a):
    dz = TANH.backward(da, a)
    if single(da) and da.stride(0) == 0:
        dz[1:] = 0
    return dz
