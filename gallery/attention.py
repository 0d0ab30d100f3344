"""Attention and embeddings."""

import torch

from gallery import naive
from gallery.entry import Layer, normal

# causal attention of one head


def attention_forward(q, k, v, visible):
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
    p = torch.softmax(scores, -1)
    return p @ v, (q, k, v, p, visible)


def attention_scores(dy, cache):
    """The gradient of q kᵀ/√d."""
    _, _, v, p, _ = cache
    dp = dy @ v.mT
    return p * (dp - (p * dp).sum(-1, keepdim=True))


def attention_backward(dy, cache):
    q, k, _, p, _ = cache
    ds = attention_scores(dy, cache) / q.shape[-1] ** 0.5
    return ds @ k, ds.mT @ q, p.mT @ dy


def causal(time):
    return torch.ones(time, time, dtype=torch.bool).tril()


def tokens(g, time=5):
    return normal(g, 2, time, 3), normal(g, 2, time, 3), normal(g, 2, time, 3), causal(time)


ATTENTION = Layer(attention_forward, attention_backward, tokens)


@ATTENTION.wrong(
    "attention: scale in dq",
    what="1/√d is forgotten in dq, not in dk",
    naive=naive.cost_falls,
    diagnosis=["factor"],
)
def scale_forgotten(dy, cache):
    _, k, _, _, _ = cache
    _, dk, dv = attention_backward(dy, cache)
    return attention_scores(dy, cache) @ k, dk, dv


@ATTENTION.wrong(
    "attention: mask ignored",
    what="backward computes the probabilities again, without the causal mask",
    naive=naive.given("nothing masked", lambda g: (*tokens(g)[:3], torch.ones(5, 5, dtype=torch.bool))),
    diagnosis=["mask ignored"],
)
def mask_ignored(dy, cache):
    q, k, v, _, visible = cache
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
    return attention_backward(dy, (q, k, v, p, visible))


@ATTENTION.wrong(
    "attention: dv by P",
    what="dv = P dy instead of Pᵀ dy, which fits because P is square",
    naive=naive.only_dx,
    diagnosis=["transposed"],
)
def probabilities_not_transposed(dy, cache):
    p = cache[3]
    dq, dk, _ = attention_backward(dy, cache)
    return dq, dk, p @ dy


@ATTENTION.wrong(
    "attention: dk by dS",
    what="dk = dS q instead of dSᵀ q",
    naive=naive.only_dx,
    diagnosis=["transposed"],
)
def scores_not_transposed(dy, cache):
    q = cache[0]
    dq, _, dv = attention_backward(dy, cache)
    return dq, attention_scores(dy, cache) / q.shape[-1] ** 0.5 @ q, dv


@ATTENTION.wrong(
    "attention: dq and dk swapped",
    what="the gradients of queries and keys come back in the wrong order",
    naive=naive.cost_falls,
    diagnosis=["swapped"],
)
def queries_for_keys(dy, cache):
    dq, dk, dv = attention_backward(dy, cache)
    return dk, dq, dv


@ATTENTION.wrong(
    "attention: softmax over the queries",
    what="softmax's gradient subtracts the sum over the queries instead of the keys",
    naive=naive.cost_falls,
    diagnosis=["wrong axis"],
)
def wrong_softmax_axis(dy, cache):
    q, k, v, p, _ = cache
    dp = dy @ v.mT
    ds = p * (dp - (p * dp).sum(-2, keepdim=True)) / q.shape[-1] ** 0.5
    return ds @ k, ds.mT @ q, p.mT @ dy


# heads put side by side: (batch, heads, time, d) → (batch, time, heads · d)


def merge_forward(x):
    return x.transpose(1, 2).flatten(2), x.shape


def merge_backward(dy, shape):
    return dy.unflatten(2, (shape[1], shape[3])).transpose(1, 2)


MERGE = Layer(merge_forward, merge_backward, lambda g: (normal(g, 2, 3, 5, 4),))


@MERGE.wrong(
    "heads reshaped, not transposed",
    what="the merged heads are split by `reshape` alone",
    naive=naive.ones,
)
def reshaped(dy, shape):
    return dy.reshape(shape)


# an embedding


def embedding_forward(ids, W):
    return W[ids], (ids, W)


def embedding_backward(dy, cache):
    ids, W = cache
    return torch.zeros_like(W).index_add(0, ids.flatten(), dy.flatten(0, -2))


def repeated(g):
    return torch.tensor([[2, 5, 2], [0, 2, 5]]), normal(g, 7, 4)


EMBEDDING = Layer(embedding_forward, embedding_backward, repeated)
DISTINCT = naive.given("no id twice", lambda g: (torch.randperm(7, generator=g)[:6].view(2, 3), normal(g, 7, 4)))


@EMBEDDING.wrong(
    "embedding: `dW[ids] += dy`",
    what="an indexed `+=` writes each repeated id once",
    where="classic, NumPy and PyTorch alike",
    naive=DISTINCT,
    diagnosis=["repeated indices"],
)
def indexed_add(dy, cache):
    ids, W = cache
    dW = torch.zeros_like(W)
    dW[ids] += dy
    return dW


@EMBEDDING.wrong(
    "embedding: `=` in a loop",
    what="the loop over the tokens assigns instead of adding",
    naive=DISTINCT,
    diagnosis=["repeated indices"],
)
def assigned(dy, cache):
    ids, W = cache
    dW = torch.zeros_like(W)
    for row, d in zip(ids.flatten().tolist(), dy.flatten(0, -2), strict=True):
        dW[row] = d
    return dW


# an embedding whose row 0 stands for padding and is not used


def padded_forward(ids, W):
    used = (ids != 0)[..., None].to(W.dtype)
    return W[ids] * used, (ids, W, used)


def padded_backward(dy, cache):
    ids, W, used = cache
    return torch.zeros_like(W).index_add(0, ids.flatten(), (dy * used).flatten(0, -2))


PADDED = Layer(padded_forward, padded_backward, repeated)


@PADDED.wrong(
    "embedding: padding is trained",
    what="the padding's row gets a gradient",
    naive=naive.given("no padding", lambda g: (torch.tensor([[2, 5, 2], [1, 2, 5]]), normal(g, 7, 4))),
    diagnosis=["rows", "mask ignored"],
)
def padding_trained(dy, cache):
    ids, W, _ = cache
    return torch.zeros_like(W).index_add(0, ids.flatten(), dy.flatten(0, -2))


# embedding and output layer share E: logits = tanh(E[ids]) Eᵀ


def shared_forward(ids, E):
    a = torch.tanh(E[ids])
    return a @ E.T, (ids, E, a)


def shared_backward(dz, cache):
    ids, E, a = cache
    return (dz.T @ a).index_add(0, ids, (dz @ E) * (1 - a**2))


SHARED = Layer(shared_forward, shared_backward, lambda g: (torch.tensor([2, 5, 2, 0, 1]), normal(g, 7, 4)))


@SHARED.wrong(
    "tied embedding: output's part only",
    what="the gradient of the embedding's lookup is lost",
    naive=naive.cost_falls,
    diagnosis=["term"],
)
def lookup_lost(dz, cache):
    _, _, a = cache
    return dz.T @ a


# positions added to every sequence


def positions_forward(x, P):
    return x + P, None


def positions_backward(dy, cache):
    return dy, dy.sum(0)


POSITIONS = Layer(positions_forward, positions_backward, lambda g: (normal(g, 3, 5, 4), normal(g, 5, 4)))


@POSITIONS.wrong(
    "positions: mean over the batch",
    what="the positions' gradient is averaged over the sequences",
    naive=naive.given("one sequence", lambda g: (normal(g, 1, 5, 4), normal(g, 5, 4))),
    diagnosis=["batch factor"],
)
def positions_mean(dy, cache):
    return dy, dy.mean(0)
