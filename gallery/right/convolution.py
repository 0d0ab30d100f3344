"""Convolution and pooling, tap by tap: the kernel's place (i, j) sees every stride-th pixel."""

import torch
from torch.nn import functional as F

from gallery.right.base import Draw, RightLayer, family


def taps(size: tuple[int, int], places: tuple[int, int], stride: int, dilation: int):
    """For each place of the kernel, the slices of the padded input that it is multiplied with."""
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = i * dilation, j * dilation
            rows = slice(top, top + stride * (places[0] - 1) + 1, stride)
            yield i, j, (..., rows, slice(left, left + stride * (places[1] - 1) + 1, stride))


@family
def conv2d(draw: Draw) -> RightLayer:
    stride, padding, dilation = draw.integer(1, 2), draw.integer(0, 2), draw.integer(1, 2)

    def forward(x, W, b):
        return F.conv2d(x, W, b, stride, padding, dilation), (x, W)

    def backward(dz, cache):
        x, W = cache
        padded = F.pad(x, (padding,) * 4)
        dpadded, dW = torch.zeros_like(padded), torch.empty_like(W)
        for i, j, window in taps(W.shape[2:], dz.shape[2:], stride, dilation):
            dW[:, :, i, j] = torch.einsum("bohw,bchw->oc", dz, padded[window])
            dpadded[window] += torch.einsum("bohw,oc->bchw", dz, W[:, :, i, j])
        H, width = x.shape[2:]
        return dpadded[:, :, padding : padding + H, padding : padding + width], dW, dz.sum((0, 2, 3))

    B, C, out = draw.shape(3, high=3)
    kernel = draw.shape(2, high=3)
    x = draw.normal(B, C, draw.integer(5, 7), draw.integer(5, 7))
    return RightLayer("conv2d", forward, backward, (x, draw.normal(out, C, *kernel), draw.normal(out)))


@family
def conv1d(draw: Draw) -> RightLayer:
    """Depthwise: every channel has a kernel of its own."""
    padding = draw.integer(0, 2)

    def forward(x, W):
        return F.conv1d(x, W[:, None], padding=padding, groups=len(W)), (x, W)

    def backward(dz, cache):
        x, W = cache
        T = dz.shape[-1]
        padded = F.pad(x, (padding, padding))
        dpadded, dW = torch.zeros_like(padded), torch.empty_like(W)
        for k in range(W.shape[1]):
            dW[:, k] = (dz * padded[:, :, k : k + T]).sum((0, 2))
            dpadded[:, :, k : k + T] += dz * W[:, k, None]
        return dpadded[:, :, padding : padding + x.shape[-1]], dW

    B, C, k = draw.shape(3, high=3)
    return RightLayer("conv1d", forward, backward, (draw.normal(B, C, draw.integer(3, 6)), draw.normal(C, k)))


@family
def transposed_conv(draw: Draw) -> RightLayer:
    """The transpose of a convolution, so that its dx is that convolution."""
    stride = draw.integer(1, 2)

    def forward(x, W):
        return F.conv_transpose2d(x, W, stride=stride), (x, W)

    def backward(dz, cache):
        x, W = cache
        dW = torch.empty_like(W)
        for i, j, window in taps(W.shape[2:], x.shape[2:], stride, 1):
            dW[:, :, i, j] = torch.einsum("bchw,bohw->co", x, dz[window])
        return F.conv2d(dz, W, stride=stride), dW

    B, C, out, height, width = draw.shape(5, high=3)
    W = draw.normal(C, out, *draw.shape(2, high=3))
    return RightLayer("transposed convolution", forward, backward, (draw.normal(B, C, height, width), W))


@family
def average_pool(draw: Draw) -> RightLayer:
    k, stride = draw.integer(1, 3), draw.integer(1, 3)

    def forward(x):
        return F.avg_pool2d(x, k, stride), x.shape

    def backward(dy, shape):
        dx = dy.new_zeros(shape)
        for _, _, window in taps((k, k), dy.shape[2:], stride, 1):
            dx[window] += dy / k**2
        return dx

    x = draw.normal(*draw.shape(2, high=3), draw.integer(3, 6), draw.integer(3, 6))
    return RightLayer("average pool", forward, backward, (x,))


@family
def max_pool(draw: Draw) -> RightLayer:
    """The gradient goes to where the maximum was found; windows that overlap may find the same."""
    k, stride = draw.integer(1, 3), draw.integer(1, 3)

    def forward(x):
        y, where = F.max_pool2d(x, k, stride, return_indices=True)
        return y, (where, x.shape)

    def backward(dy, cache):
        where, shape = cache
        flat = dy.new_zeros(shape).flatten(2)
        return flat.scatter_add(2, where.flatten(2), dy.flatten(2)).reshape(shape)

    x = draw.normal(*draw.shape(2, high=3), draw.integer(3, 6), draw.integer(3, 6))
    return RightLayer("max pool", forward, backward, (x,))


@family
def upsample(draw: Draw) -> RightLayer:
    """Every pixel becomes r × r of them."""
    r = draw.integer(1, 3)

    def forward(x):
        return x.repeat_interleave(r, -1).repeat_interleave(r, -2), None

    def backward(dy, cache):
        *outer, H, width = dy.shape
        return dy.reshape(*outer, H // r, r, width // r, r).sum((-3, -1))

    return RightLayer("upsample", forward, backward, (draw.normal(*draw.shape(4, high=3)),))
