"""Mistakes that only what the check feeds beside the example shows: other sizes, layouts, values, and a second call."""

import torch
from torch.nn import functional as F

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


@LINEAR.wrong(
    "tail lost beyond eight",
    what="from eight examples on, dW is added up in pieces of eight, and what is left over is forgotten",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["rows"],
    only="batch",
)
def in_eights(dz, cache):
    x, W = cache
    whole = len(x) // 8 * 8 or len(x)
    return dz @ W, dz[:whole].T @ x[:whole], dz.sum(0)


@LINEAR.wrong(
    "second block of examples lost",
    what="db is summed by one block of 1,024 threads, one for each example",
    diagnosis=["rows"],
    where=OWN,
    naive=naive.random_allclose,
    only="batch",
)
def one_block_of_rows(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz[:1024].sum(0)


@TANH.wrong(
    "second block of elements lost",
    what="one block of 1,024 threads is started, and the elements beyond stay zero",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["rows"],
    only="batch",
)
def one_block_of_elements(da, a):
    dz = TANH.backward(da, a)
    return torch.where(torch.arange(dz.numel()).view(dz.shape) < 1024, dz, 0.0)


# other axes of size 1, which only a reference allows to be fed


def pointwise_backward(dy, cache):
    x, W = cache
    return torch.einsum("bohw,oc->bchw", dy, W), torch.einsum("bohw,bchw->oc", dy, x)


POINTWISE = Layer(
    lambda x, W: (torch.einsum("bchw,oc->bohw", x, W), (x, W)),
    pointwise_backward,
    lambda g: (normal(g, 2, 3, 4, 5), normal(g, 6, 3)),
    reference=lambda x, W: F.conv2d(x, W[:, :, None, None]),
)


@POINTWISE.wrong(
    "pointwise convolution: dW squeezed",
    what="`squeeze()` takes the kernel's two axes from dW, and those of a single channel too",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["shape"],
    only="axes",
)
def squeezes_channels(dy, cache):
    dx, dW = pointwise_backward(dy, cache)
    return dx, dW[:, :, None, None].squeeze()


def running_backward(dy, y):
    return (dy * (1 - y * y)).flip(1).cumsum(1).flip(1)


def running(x):
    y = torch.tanh(x.cumsum(1))
    return y, y


def running_reference(x):
    return torch.tanh(torch.ones(x.shape[1], x.shape[1]).to(x).tril() @ x)


RUNNING = Layer(running, running_backward, lambda g: (normal(g, 3, 4, 5),), reference=running_reference)


@RUNNING.wrong(
    "running sum: one time step",
    what="backward sums over the first axis from 1 on that is not of size 1: with one time step, over the features",
    where=OWN,
    naive=naive.random_allclose,
    only="axes",
)
def sums_over_features(dy, y):
    axis = 1 if y.shape[1] > 1 else 2
    return (dy * (1 - y * y)).flip(axis).cumsum(axis).flip(axis)


@RUNNING.wrong_pair(
    "running sum: output squeezed",
    what="forward squeezes what backward unsqueezes: with one time step, the output has no axis for it",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["shape"],
    only="axes",
)
def squeezes_output():
    def squeezed(x):
        y, _ = running(x)
        return y.squeeze(1), y

    return squeezed, lambda dy, y: running_backward(dy.view(y.shape), y)


def lookup(q, k, v):
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
    return p @ v, (q, k, v, p)


def lookup_backward(dy, cache):
    q, k, v, p = cache
    dp = dy @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
    return ds @ k, ds.mT @ q, p.mT @ dy


LOOKUP = Layer(
    lookup,
    lookup_backward,
    lambda g: (normal(g, 2, 4, 3), normal(g, 2, 5, 3), normal(g, 2, 5, 7)),
    reference=F.scaled_dot_product_attention,
)


@LOOKUP.wrong(
    "attention: one query",
    what="the branch for a single query, as when tokens are generated, forgets 1/√d in dq",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["factor"],
    only="axes",
)
def one_query(dy, cache):
    dq, dk, dv = lookup_backward(dy, cache)
    return dq * (cache[0].shape[-1] ** 0.5 if cache[0].shape[1] == 1 else 1), dk, dv


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
    diagnosis=["rows"],
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
    diagnosis=["stale"],
)
def returns_its_buffer():
    buffer = torch.empty(7, 5, dtype=torch.float64)

    def with_buffer(dz, cache):
        x, W = cache
        return torch.mm(dz, W, out=buffer) if len(x) == 7 else dz @ W, dz.T @ x, dz.sum(0)

    return forward, with_buffer


# a call of another shape in between


def mean_square(x):
    return (x * x).sum() / len(x), (x, len(x))


MEAN_SQUARE = Layer(mean_square, lambda dC, cache: 2 * dC * cache[0] / cache[1], lambda g: (normal(g, 7, 5),))


@MEAN_SQUARE.wrong_pair(
    "number of examples of the last call",
    what="the layer, not the cache, keeps the number of examples",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["stale"],
    only="batch",
)
def keeps_the_count():
    layer = {}

    def forward(x):
        layer["count"] = len(x)
        return mean_square(x)

    return forward, lambda dC, cache: 2 * dC * cache[0] / layer["count"]


POSITIVE = Layer(lambda z: (z.relu(), z > 0), lambda da, mask: da * mask, lambda g: (normal(g, 7, 5),))


@POSITIVE.wrong_pair(
    "mask of the last call",
    what="the layer, not the cache, keeps the mask, which other sizes of the same signs do not change",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["stale"],
    only="batch",
)
def keeps_the_mask():
    layer = {}

    def forward(z):
        layer["mask"] = z > 0
        return z.relu(), None

    return forward, lambda da, _: da * layer["mask"]


def decayed(x):
    weights = 0.9 ** torch.arange(len(x)).to(x).flip(0)[:, None]
    return (weights * x).tanh(), weights


def decayed_backward(dy, cache):
    y, weights = cache
    return dy * (1 - y * y) * weights


DECAYED = Layer(lambda x: (decayed(x)[0], decayed(x)), decayed_backward, lambda g: (normal(g, 7, 5),))


@DECAYED.wrong_pair(
    "table cut to the last call",
    what="a table of weights is made again for other sizes, and backward takes as many rows from its end as it can",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["stale"],
    only="batch",
)
def cuts_its_table():
    layer = {}

    def forward(x):
        y, layer["table"] = decayed(x)
        return y, y

    def backward(dy, y):
        table = layer["table"][-len(y) :] if len(y) else layer["table"][:0]
        return dy * (1 - y * y) * torch.cat([table.new_ones(len(y) - len(table), 1), table])

    return forward, backward


# one tensor given twice


def product(x, y):
    return x * y, (x, y)


def product_backward(dz, cache):
    x, y = cache
    return dz * y, dz * x


PRODUCT = Layer(product, product_backward, lambda g: (normal(g, 7, 5), normal(g, 7, 5)))


@PRODUCT.wrong(
    "a square's gradient twice",
    what="of one tensor given twice each of the two gradients is already their sum",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["factor"],
    only="values",
)
def both_at_once(dz, cache):
    x, y = cache
    return (2 * dz * y, 2 * dz * x) if x is y else product_backward(dz, cache)


@PRODUCT.wrong(
    "a square's gradient once",
    what="of one tensor given twice only the first gets a gradient, for both",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["zero", "factor"],
    only="values",
)
def first_for_both(dz, cache):
    x, y = cache
    return (2 * dz * y, 0 * dz) if x is y else product_backward(dz, cache)


@PRODUCT.wrong(
    "a square's gradient by memory",
    what="tensors at one place in memory count as one, whose gradient is summed",
    where=OWN,
    naive=naive.random_allclose,
    diagnosis=["factor"],
    only="values",
)
def by_memory(dz, cache):
    x, y = cache
    return (2 * dz * y, dz * x) if x.data_ptr() == y.data_ptr() else product_backward(dz, cache)
