"""Indexing."""

import torch

from gallery.right.base import Draw, RightLayer, family


@family
def embedding(draw: Draw) -> RightLayer:
    def forward(ids, W):
        return W[ids], (ids, W.shape)

    def backward(dy, cache):
        ids, shape = cache
        return dy.new_zeros(shape).index_add(0, ids.flatten(), dy.reshape(-1, shape[1]))

    V, n = draw.shape(2)
    return RightLayer("embedding", forward, backward, (draw.ids(V, *draw.shape(2)), draw.normal(V, n)))


@family
def embedding_with_padding(draw: Draw) -> RightLayer:
    """The first id stands for padding: its rows are 0, and its row of W gets no gradient."""

    def forward(ids, W):
        return W[ids].masked_fill((ids == 0)[..., None], 0.0), (ids, W.shape)

    def backward(dy, cache):
        ids, shape = cache
        dW = dy.new_zeros(shape).index_add(0, ids.flatten(), dy.reshape(-1, shape[1]))
        dW[0] = 0.0
        return dW

    V, n = draw.integer(2, 5), draw.integer(1, 5)
    ids = draw.ids(V, *draw.shape(2))
    ids.view(-1)[-1] = V - 1  # one at least is no padding
    return RightLayer("embedding with padding", forward, backward, (ids, draw.normal(V, n)))


@family
def gather(draw: Draw) -> RightLayer:
    def forward(x, ids):
        return x.gather(1, ids), (ids, x.shape)

    def backward(dy, cache):
        ids, shape = cache
        return dy.new_zeros(shape).scatter_add(1, ids, dy)

    B, n = draw.shape(2)
    return RightLayer("gather", forward, backward, (draw.normal(B, n), draw.ids(n, B, draw.integer(1, 5))))


@family
def scatter(draw: Draw) -> RightLayer:
    """Sums of the rows of x by their ids, added to y."""

    def forward(y, ids, x):
        return y.index_add(0, ids, x), ids

    def backward(dz, ids):
        return dz, dz[ids]

    V, T, n = draw.shape(3)
    return RightLayer("scatter", forward, backward, (draw.normal(V, n), draw.ids(V, T), draw.normal(T, n)))


@family
def selected_element(draw: Draw) -> RightLayer:
    def forward(x, rows, columns):
        return x[rows, columns], (x.shape, rows, columns)

    def backward(dy, cache):
        shape, rows, columns = cache
        dx = dy.new_zeros(shape)
        return dx.index_put((rows, columns), dy, accumulate=True)

    H, width, n = draw.shape(3)
    example = (draw.normal(H, width), draw.ids(H, n), draw.ids(width, n))
    return RightLayer("selected elements", forward, backward, example)


@family
def sort(draw: Draw) -> RightLayer:
    def forward(x):
        y, order = x.sort(-1)
        return y, order

    def backward(dy, order):
        return torch.zeros_like(dy).scatter(-1, order, dy)

    return RightLayer("sort", forward, backward, (draw.normal(*draw.shape(2)),))
