"""Convolution and pooling."""

import torch
from torch.nn import functional as F

from gallery import naive
from gallery.entry import Layer, normal

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


# with groups, stride, padding and dilation, dx by a transposed convolution


def grouped_forward(x, W, b, stride, padding, dilation, groups):
    return F.conv2d(x, W, b, stride, padding, dilation, groups), (x, W, stride, padding, dilation, groups)


def behind(cache):
    """How many rows and columns of the padded image lie behind the last window."""
    x, W, stride, padding, dilation, _ = cache
    return [(n + 2 * padding - dilation * (k - 1) - 1) % stride for n, k in zip(x.shape[2:], W.shape[2:], strict=True)]


def weight_gradient(dz, cache):
    x, W, stride, padding, dilation, groups = cache
    seen = F.unfold(x, W.shape[2:], dilation, padding, stride).unflatten(1, (groups, -1))
    return torch.einsum("bgol,bgkl->gok", dz.flatten(2).unflatten(1, (groups, -1)), seen).reshape(W.shape)


def grouped_backward(dz, cache):
    _, W, stride, padding, dilation, groups = cache
    dx = F.conv_transpose2d(dz, W, None, stride, padding, behind(cache), groups, dilation)
    return dx, weight_gradient(dz, cache), dz.sum((0, 2, 3))


def grouped(g, size=(8, 7), stride=2, padding=1, dilation=1, groups=2):
    return normal(g, 3, 4, *size), normal(g, 4, 4 // groups, 3, 3), normal(g, 4), stride, padding, dilation, groups


GROUPED = Layer(grouped_forward, grouped_backward, grouped)


def fitted(dx, x):
    """Cut, or filled up with zeros, to the shape of x."""
    return F.pad(dx, (0, x.shape[3] - dx.shape[3], 0, x.shape[2] - dx.shape[2]))


@GROUPED.wrong(
    "convolution: dW with rows for columns",
    what="the kernel's two directions are exchanged in dW, which fits because it is square",
    naive=naive.norms,
    diagnosis=["transposed"],
)
def dW_across(dz, cache):
    dx, dW, db = grouped_backward(dz, cache)
    return dx, dW.transpose(2, 3), db


@GROUPED.wrong(
    "convolution: dW flipped",
    what="dW is that of a true convolution, whose kernel is turned around",
    naive=naive.norms,
)
def dW_flipped(dz, cache):
    dx, dW, db = grouped_backward(dz, cache)
    return dx, dW.flip(2, 3), db


@GROUPED.wrong(
    "convolution: stride in dx",
    what="dx lays the kernels down one pixel apart, whatever forward's stride was",
    naive=naive.given("stride 1", lambda g: grouped(g, stride=1)),
)
def dx_stride(dz, cache):
    x, W, _, padding, dilation, groups = cache
    _, dW, db = grouped_backward(dz, cache)
    return fitted(F.conv_transpose2d(dz, W, None, 1, padding, 0, groups, dilation), x), dW, db


@GROUPED.wrong(
    "convolution: stride for dilation",
    what="stride and dilation are exchanged in dx",
    naive=naive.given("both 2", lambda g: grouped(g, dilation=2)),
)
def dx_stride_for_dilation(dz, cache):
    x, W, stride, padding, dilation, groups = cache
    _, dW, db = grouped_backward(dz, cache)
    rest = behind(cache) if stride == dilation else 0
    return fitted(F.conv_transpose2d(dz, W, None, dilation, padding, rest, groups, stride), x), dW, db


@GROUPED.wrong(
    "convolution: what no window sees",
    what="the rows and columns behind the last window are taken to lie before the first one",
    diagnosis=["rows"],
    naive=naive.given("sizes that the stride goes into", lambda g: grouped(g, size=(7, 9))),
)
def dx_begins_late(dz, cache):
    _, W, stride, padding, dilation, groups = cache
    _, dW, db = grouped_backward(dz, cache)
    rows, columns = behind(cache)
    dx = F.conv_transpose2d(dz, W, None, stride, padding, 0, groups, dilation)
    return F.pad(dx, (columns, 0, rows, 0)), dW, db


@GROUPED.wrong(
    "convolution: groups mixed in dW",
    what="each group's dW takes the error of the next group",
    naive=naive.given("one group", lambda g: grouped(g, groups=1)),
)
def dW_groups(dz, cache):
    dx, _, db = grouped_backward(dz, cache)
    *_, groups = cache
    return dx, weight_gradient(dz.roll(dz.shape[1] // groups % dz.shape[1], 1), cache), db


@GROUPED.wrong(
    "convolution: groups side by side in dx",
    what="every group's dx is written from the first group's kernels",
    naive=naive.only_parameters,
    diagnosis=["rows"],
)
def dx_groups(dz, cache):
    _, W, stride, padding, dilation, groups = cache
    _, dW, db = grouped_backward(dz, cache)
    first = W[: len(W) // groups].repeat(groups, 1, 1, 1)
    return F.conv_transpose2d(dz, first, None, stride, padding, behind(cache), groups, dilation), dW, db


@GROUPED.wrong(
    "convolution: db averaged",
    what="db is summed over the places but averaged over the batch",
    naive=naive.given("one image", lambda g: (normal(g, 1, 4, 8, 7), *grouped(g)[1:])),
    diagnosis=["batch factor"],
)
def db_averaged(dz, cache):
    dx, dW, db = grouped_backward(dz, cache)
    return dx, dW, db / max(len(dz), 1)


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


# pooling of images: windows may overlap, be padded, and stick out behind (ceil_mode)


def windows_forward(x, kernel, stride, padding):
    y, place = F.max_pool2d(x, kernel, stride, padding, ceil_mode=True, return_indices=True)
    return y, (x.shape, place, padding)


def windows_backward(dy, cache):
    shape, place, _ = cache
    return dy.new_zeros(shape).flatten(2).scatter_add(2, place.flatten(2), dy.flatten(2)).view(shape)


def overlapping(g, kernel=3, stride=2, padding=1, size=(7, 6)):
    return normal(g, 2, 3, *size), kernel, stride, padding


WINDOWS = Layer(windows_forward, windows_backward, overlapping)


@WINDOWS.wrong(
    "max pooling: overlaps overwritten",
    what="a pixel that is the largest of several windows gets the gradient of one of them",
    naive=naive.given("windows that do not overlap", lambda g: overlapping(g, 2, 2, 0)),
)
def windows_overwritten(dy, cache):
    shape, place, _ = cache
    return dy.new_zeros(shape).flatten(2).scatter(2, place.flatten(2), dy.flatten(2)).view(shape)


@WINDOWS.wrong(
    "max pooling: place in the padded image",
    what="the place of the largest pixel is counted in the image with its padding, and used in the one without",
    naive=naive.given("no padding", lambda g: overlapping(g, padding=0)),
)
def windows_padded(dy, cache):
    shape, place, padding = cache
    wide = shape[-1] + padding
    there = (place // shape[-1] * wide + place % shape[-1] + padding) % (shape[-2] * shape[-1])
    return windows_backward(dy, (shape, there, padding))


def means_forward(x, kernel, stride, padding):
    return F.avg_pool2d(x, kernel, stride, padding, ceil_mode=True), (x, kernel, stride, padding)


def spread(shares, cache):
    """Each share to all pixels of its window."""
    x, kernel, stride, padding = cache
    dx = x.new_zeros(*x.shape[:2], *(n + 2 * padding + kernel + stride for n in x.shape[2:]))
    for i in range(kernel):
        for j in range(kernel):
            rows, columns = (slice(a, a + stride * n, stride) for a, n in zip((i, j), shares.shape[2:], strict=True))
            dx[:, :, rows, columns] += shares
    return dx[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]]


def window_sizes(dy, cache, padded=True):
    """Of each window the pixels that count: those of the image, and of the padding if `padded`."""
    x, kernel, stride, padding = cache
    sizes = []
    for n, count in zip(x.shape[2:], dy.shape[2:], strict=True):
        begin = stride * torch.arange(count) - padding
        within = (0, n) if not padded else (-padding, n + padding)
        sizes.append((begin + kernel).clamp(max=within[1]) - begin.clamp(min=within[0]))
    return sizes[0][:, None] * sizes[1]


def means_backward(dy, cache):
    return spread(dy / window_sizes(dy, cache), cache)


MEANS = Layer(means_forward, means_backward, overlapping)


@MEANS.wrong(
    "average pooling: windows at the border",
    what="backward divides by the kernel's size, forward by the window's, which is cut off behind the padding",
    naive=naive.given("windows that fit", lambda g: overlapping(g, size=(7, 9))),
    diagnosis=["rows"],
)
def means_of_whole_windows(dy, cache):
    return spread(dy / cache[1] ** 2, cache)


@MEANS.wrong(
    "average pooling: padding not counted",
    what="backward divides by the pixels of the image in the window, forward by those of the padding too",
    naive=naive.given("no padding", lambda g: overlapping(g, padding=0)),
)
def means_without_padding(dy, cache):
    return spread(dy / window_sizes(dy, cache, padded=False), cache)


# adaptive average pooling: as many windows as are asked for


def adaptive_forward(x, size):
    return F.adaptive_avg_pool1d(x, size), (x, size)


def shares(x, size):
    """A, of y = x Aᵀ."""
    n = x.shape[-1]
    A = x.new_zeros(size, n)
    for u in range(size):
        begin, end = u * n // size, -(-(u + 1) * n // size)
        A[u, begin:end] = 1 / (end - begin)
    return A


def adaptive_backward(dy, cache):
    return dy @ shares(*cache)


ADAPTIVE = Layer(adaptive_forward, adaptive_backward, lambda g: (normal(g, 2, 3, 7), 3))


@ADAPTIVE.wrong(
    "adaptive pooling: windows taken for equal",
    what="each gradient is spread over n/n′ pixels, rounded up, as if the windows did not overlap",
    naive=naive.given("a size that goes into the image's", lambda g: (normal(g, 2, 3, 6), 3)),
)
def adaptive_equal(dy, cache):
    x, size = cache
    width = -(-x.shape[-1] // size)
    return dy.repeat_interleave(width, -1)[..., : x.shape[-1]] / width


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
