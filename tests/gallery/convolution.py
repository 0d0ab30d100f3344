"""Convolution and pooling."""

import torch
from torch.nn import functional as F

from tests.gallery import naive
from tests.gallery.entry import Layer, normal

# convolution, with one row and column of zeros around the image


def taps(W, shape, stride, dilation):
    """For each element of the kernel: its row, its column, and the part of the padded image that it sees."""
    height, width = shape
    for i in range(W.shape[2]):
        for j in range(W.shape[3]):
            rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
            yield i, j, rows, columns


def conv_forward(x, W, b, stride, dilation):
    return F.conv2d(x, W, b, stride, 1, dilation), (x, W, stride, dilation)


def conv_backward(dz, cache):
    x, W, stride, dilation = cache
    padded = F.pad(x, (1, 1, 1, 1))
    dpadded, dW = torch.zeros_like(padded), torch.zeros_like(W)
    for i, j, rows, columns in taps(W, dz.shape[2:], stride, dilation):
        dW[:, :, i, j] = torch.einsum("bohw,bihw->oi", dz, padded[:, :, rows, columns])
        dpadded[:, :, rows, columns] += torch.einsum("bohw,oi->bihw", dz, W[:, :, i, j])
    return dpadded[:, :, 1:-1, 1:-1], dW, dz.sum((0, 2, 3))


def images(g, stride=2, dilation=2):
    return normal(g, 2, 3, 9, 8), normal(g, 4, 3, 3, 3), normal(g, 4), stride, dilation


CONV = Layer(conv_forward, conv_backward, images)


@CONV.wrong(
    "convolution: stride in dW",
    what="dW walks over the image with stride 1, whatever forward's was",
    naive=naive.given("stride 1", lambda g: images(g, stride=1)),
)
def conv_stride(dz, cache):
    x, W, _, dilation = cache
    padded = F.pad(x, (1, 1, 1, 1))
    dW = torch.zeros_like(W)
    for i, j, rows, columns in taps(W, dz.shape[2:], 1, dilation):
        dW[:, :, i, j] = torch.einsum("bohw,bihw->oi", dz, padded[:, :, rows, columns])
    dx, _, db = conv_backward(dz, cache)
    return dx, dW, db


@CONV.wrong(
    "convolution: dilation in dW",
    what="dW takes the kernel for a dense one",
    naive=naive.given("dilation 1", lambda g: images(g, dilation=1)),
)
def conv_dilation(dz, cache):
    x, W, stride, _ = cache
    padded = F.pad(x, (1, 1, 1, 1))
    dW = torch.zeros_like(W)
    for i, j, rows, columns in taps(W, dz.shape[2:], stride, 1):
        dW[:, :, i, j] = torch.einsum("bohw,bihw->oi", dz, padded[:, :, rows, columns])
    dx, _, db = conv_backward(dz, cache)
    return dx, dW, db


@CONV.wrong(
    "convolution: padding not removed",
    what="dx is cut from the corner of the padded gradient instead of its middle",
    naive=naive.only_parameters,
)
def conv_padding(dz, cache):
    x, W, stride, dilation = cache
    dpadded = torch.zeros_like(F.pad(x, (1, 1, 1, 1)))
    for i, j, rows, columns in taps(W, dz.shape[2:], stride, dilation):
        dpadded[:, :, rows, columns] += torch.einsum("bohw,oi->bihw", dz, W[:, :, i, j])
    _, dW, db = conv_backward(dz, cache)
    return dpadded[:, :, : x.shape[2], : x.shape[3]], dW, db


@CONV.wrong(
    "convolution: overlaps overwritten",
    what="where windows overlap, `=` keeps the last one's gradient",
    naive=naive.only_parameters,
)
def conv_overlap(dz, cache):
    x, W, stride, dilation = cache
    dpadded = torch.zeros_like(F.pad(x, (1, 1, 1, 1)))
    for i, j, rows, columns in taps(W, dz.shape[2:], stride, dilation):
        dpadded[:, :, rows, columns] = torch.einsum("bohw,oi->bihw", dz, W[:, :, i, j])
    _, dW, db = conv_backward(dz, cache)
    return dpadded[:, :, 1:-1, 1:-1], dW, db


# the same at stride 1, by convolutions


def same_forward(x, W):
    return F.conv2d(x, W, padding=1), (x, W)


def same_backward(dz, cache):
    x, W = cache
    dx = F.conv2d(dz, W.flip(2, 3).transpose(0, 1), padding=1)
    padded, dW = F.pad(x, (1, 1, 1, 1)), torch.zeros_like(W)
    for i, j, rows, columns in taps(W, dz.shape[2:], 1, 1):
        dW[:, :, i, j] = torch.einsum("bohw,bihw->oi", dz, padded[:, :, rows, columns])
    return dx, dW


SAME = Layer(same_forward, same_backward, lambda g: (normal(g, 2, 3, 7, 6), normal(g, 4, 3, 3, 3)))


@SAME.wrong(
    "convolution: kernel not flipped",
    what="dx correlates with the kernel instead of convolving",
    naive=naive.given("a kernel of ones", lambda g: (normal(g, 2, 3, 7, 6), torch.ones(4, 3, 3, 3).double())),
)
def not_flipped(dz, cache):
    _, W = cache
    _, dW = same_backward(dz, cache)
    return F.conv2d(dz, W.transpose(0, 1), padding=1), dW


# max pooling over pairs: the first largest element takes all


def max_pool_forward(x):
    pairs = x.unflatten(-1, (-1, 2))
    y, k = pairs.max(-1)
    return y, (pairs, k)


def max_pool_backward(dy, cache):
    pairs, k = cache
    return torch.zeros_like(pairs).scatter(-1, k[..., None], dy[..., None]).flatten(-2)


MAX_POOL = Layer(max_pool_forward, max_pool_backward, lambda g: (normal(g, 5, 6),))


@MAX_POOL.wrong(
    "max pooling: all of a tie",
    what="every element that equals the maximum gets the whole gradient",
    naive=naive.random_allclose,
    diagnosis=["kink"],
)
def all_of_a_tie(dy, cache):
    pairs, _ = cache
    return (dy[..., None] * (pairs == pairs.amax(-1, keepdim=True))).flatten(-2)


# average pooling over pairs


def average_pool_forward(x):
    pairs = x.unflatten(-1, (-1, 2))
    return pairs.mean(-1), pairs


def average_pool_backward(dy, pairs):
    return (dy[..., None] / 2).expand_as(pairs).flatten(-2)


AVERAGE_POOL = Layer(average_pool_forward, average_pool_backward, lambda g: (normal(g, 5, 6),))


@AVERAGE_POOL.wrong(
    "average pooling: 1/k",
    what="every element of the window gets the whole gradient instead of its share",
    naive=naive.cost_falls,
    diagnosis=["factor"],
)
def average_pool_sum(dy, pairs):
    return dy[..., None].expand_as(pairs).flatten(-2)


# nearest-neighbor upsampling by 2


def upsample_forward(x):
    return x.repeat_interleave(2, -1), None


def upsample_backward(dy, cache):
    return dy.unflatten(-1, (-1, 2)).sum(-1)


UPSAMPLE = Layer(upsample_forward, upsample_backward, lambda g: (normal(g, 5, 6),))


@UPSAMPLE.wrong(
    "upsampling: one copy's gradient",
    what="each element gets the gradient of its first copy instead of the sum over its copies",
    naive=naive.cost_falls,
)
def one_copy(dy, cache):
    return dy[..., ::2]
