"""The diagnosis names known mistakes, and nothing else.

A mistake is a forward and one gradient of it as somebody wrote it, wrong in one known way. The right one is autograd's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradient_check.diagnosis import OTHER_SHAPE, SAME_SHAPE, Evidence, diagnose
from gradient_check.patterns.case import Case, plain
from gradient_check.report import Diagnosis
from gradient_check.terms import Graph, Spelled, kind

NOISE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    id: str
    kind: str | None
    words: str  # part of what the diagnosis says
    name: str
    forward: Callable[..., Tensor]
    example: Callable[["Draw"], Arguments]
    wrong: Callable[..., Tensor]  # (dy, right gradient, arguments by name) → the wrong gradient


class Draw:
    """Random tensors of one dtype."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def positive(self, *shape: int) -> Tensor:
        return self(*shape).abs() + 0.5

    def mask(self, *shape: int) -> Tensor:
        mask = torch.rand(shape, generator=self.generator) < 0.5
        mask.view(-1)[0], mask.view(-1)[1] = True, False
        return mask

    def size(self, low: int = 3, high: int = 9) -> int:
        return int(torch.randint(low, high, (), generator=self.generator))


def right_gradients(forward: Callable[..., Any], arguments: Arguments, dy: Tensor) -> dict[str, Tensor]:
    """In float64, of the same (rounded) arguments."""
    fed = {
        key: value.double().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in arguments.items()
    }
    leaves = {key: value for key, value in fed.items() if isinstance(value, Tensor) and value.requires_grad}
    gradients = torch.autograd.grad(forward(*fed.values()), list(leaves.values()), dy.double(), allow_unused=True)
    return {f"d{k}": torch.zeros_like(leaves[k]) if g is None else g for k, g in zip(leaves, gradients, strict=True)}


def evidence_of(
    mistake: Mistake, seed: int, dtype: torch.dtype, *, blind: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor], Evidence]:
    """What backward returned, what is right, and what is known; `blind`: when there is no forward to run again."""
    draw = Draw(seed, dtype)
    arguments = mistake.example(draw)
    output = mistake.forward(*arguments.values())
    dy = draw(*output.shape)
    expected = right_gradients(mistake.forward, arguments, dy)
    right = {key: value.to(dtype) for key, value in expected.items()}
    actual = {**right, mistake.name: mistake.wrong(dy, right[mistake.name], **arguments)}
    evidence = Evidence(arguments, [output], [dy], None if blind else mistake.forward, noise=NOISE[dtype])
    return actual, expected, evidence


def diagnosed(mistake: Mistake, seed: int, dtype: torch.dtype, *, blind: bool = False) -> Diagnosis | None:
    return diagnose(mistake.name, *evidence_of(mistake, seed, dtype, blind=blind))


# forwards


def linear(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return x @ W.T + b


def linear_example(draw: Draw) -> Arguments:
    return {"x": draw(7, 5), "W": draw(4, 5), "b": draw(4)}


def square_example(draw: Draw) -> Arguments:
    n = draw.size()
    return {"x": draw(n, n), "W": draw(n, n), "b": draw(n)}


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return gamma * centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() + beta


def native_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), gamma, beta)


def norm_example(draw: Draw) -> Arguments:
    n = draw.size(5)
    return {"x": draw(6, n), "gamma": draw(n), "beta": draw(n)}


def layer_norm_terms(dy: Tensor, x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1/σ and the three terms."""
    centered = x - x.mean(-1, keepdim=True)
    rstd = (centered.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
    xhat, g = centered * rstd, dy * gamma
    return rstd, g, g.mean(-1, keepdim=True).expand_as(g), xhat * (g * xhat).mean(-1, keepdim=True)


def affine(dy: Tensor, right: Tensor, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    rstd, first, *_ = layer_norm_terms(dy, x, gamma)
    return rstd * first


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    mean, var = x.mean(0), x.var(0, unbiased=False)
    return gamma * (x - mean) / (var + 1e-5).sqrt() + beta


def native_batch_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, gamma, beta, training=True)


def batch_affine(dy: Tensor, right: Tensor, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return dy * gamma / (x.var(0, unbiased=False) + 1e-5).sqrt()


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def softmax_diagonal(dy: Tensor, right: Tensor, x: Tensor) -> Tensor:
    p = x.softmax(-1)
    return dy * p * (1 - p)


def recurrent(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor) -> Tensor:
    h, states = h0, []
    for step in x:
        h = torch.tanh(step @ Wx.T + h @ Wh.T)
        states.append(h)
    return torch.stack(states)


def recurrent_example(draw: Draw) -> Arguments:
    return {"x": draw(5, 3, 4), "h0": draw(3, 6), "Wx": draw(6, 4), "Wh": draw(6, 6)}


def recurrent_gradients(
    dy: Tensor, x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, *, through_time: bool = True, slope: bool = True
) -> dict[str, Tensor]:
    states = recurrent(x, h0, Wx, Wh)
    carried = torch.zeros_like(h0)
    dx, dWx, dWh = torch.zeros_like(x), torch.zeros_like(Wx), torch.zeros_like(Wh)
    for t in reversed(range(len(x))):
        dz = (dy[t] + carried) * (1 - states[t] ** 2 if slope else 1)
        dx[t] = dz @ Wx
        dWx += dz.T @ x[t]
        dWh += dz.T @ (states[t - 1] if t else h0)
        if through_time:
            carried = dz @ Wh
    return {"x": dx, "Wx": dWx, "Wh": dWh}


def no_time(which: str) -> Callable[..., Tensor]:
    return lambda dy, right, **a: recurrent_gradients(dy, **a, through_time=False)[which]


def no_slope(which: str) -> Callable[..., Tensor]:
    return lambda dy, right, **a: recurrent_gradients(dy, **a, slope=False)[which]


def lstm(x: Tensor, h0: Tensor, c0: Tensor, Wx: Tensor, Wh: Tensor) -> Tensor:
    h, c, states = h0, c0, []
    for step in x:
        i, f, g, o = (step @ Wx.T + h @ Wh.T).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states)


def lstm_example(draw: Draw) -> Arguments:
    return {"x": draw(4, 3, 5), "h0": draw(3, 6), "c0": draw(3, 6), "Wx": draw(24, 5), "Wh": draw(24, 6)}


def lstm_without_h(dy: Tensor, right: Tensor, x: Tensor, h0: Tensor, c0: Tensor, Wx: Tensor, Wh: Tensor) -> Tensor:
    """Time goes through c alone: autograd with h detached at every step."""
    leaf = Wx.detach().clone().requires_grad_()
    h, c, states = h0, c0, []
    for step in x:
        i, f, g, o = (step @ leaf.T + h.detach() @ Wh.T).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.autograd.grad(torch.stack(states), leaf, dy)[0]


def gates_reordered(dy: Tensor, right: Tensor, **arguments: Tensor) -> Tensor:
    i, f, g, o = right.chunk(4)
    return torch.cat([i, f, o, g])


def tied(x: Tensor, E: Tensor) -> Tensor:
    return torch.tanh(x @ E) @ E.T


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(mask, -torch.inf).softmax(-1) @ v


def attention_example(draw: Draw) -> Arguments:
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
    return {"q": draw(2, 4, 7), "k": draw(2, 4, 7), "v": draw(2, 4, 7), "mask": mask}


def perceptron(x: Tensor, W: Tensor, V: Tensor) -> Tensor:
    return torch.sigmoid(torch.tanh(x @ W.T) @ V.T)


def perceptron_example(draw: Draw) -> Arguments:
    return {"x": draw(6, 5), "W": draw(4, 5), "V": draw(3, 4)}


def slope_forgotten(layer: int) -> Callable[..., Tensor]:
    def wrong(dy: Tensor, right: Tensor, x: Tensor, W: Tensor, V: Tensor) -> Tensor:
        a = torch.tanh(x @ W.T)
        y = torch.sigmoid(a @ V.T)
        dz = dy if layer == 2 else dy * y * (1 - y)
        dz = dz @ V if layer == 1 else dz @ V * (1 - a * a)
        return dz.T @ x

    return wrong


def slope_twice(dy: Tensor, right: Tensor, x: Tensor, W: Tensor, V: Tensor) -> Tensor:
    a = torch.tanh(x @ W.T)
    y = torch.sigmoid(a @ V.T)
    return (dy * y * (1 - y) @ V * (1 - a * a) ** 2).T @ x


def embed(ids: Tensor, E: Tensor) -> Tensor:
    return E[ids]


def embed_example(draw: Draw) -> Arguments:
    return {"ids": torch.tensor([[3, 1, 3], [0, 5, 1]]), "E": draw(8, 4)}


def last_wins(dy: Tensor, right: Tensor, ids: Tensor, E: Tensor) -> Tensor:
    result = torch.zeros_like(E)
    for row, i in zip(dy.flatten(0, -2), ids.flatten(), strict=True):
        result[i] = row
    return result


def drop(x: Tensor, noise: Tensor) -> Tensor:
    return torch.tanh(x) * noise


def drop_example(draw: Draw) -> Arguments:
    return {"x": draw(5, 6), "noise": draw.mask(5, 6).to(draw.dtype) / 0.75}


def times(right: float) -> Callable[..., Tensor]:
    return lambda dy, value, **_: right * value


def replaced(dy: Tensor, right: Tensor, **_: Any) -> Tensor:
    return torch.randn(right.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(right.dtype)


def set_rows(rows: Any, *, dim: int = 0) -> Callable[..., Tensor]:
    """Garbage in some rows."""

    def wrong(dy: Tensor, right: Tensor, **_: Any) -> Tensor:
        result = right.clone().movedim(dim, 0)
        result[rows] = replaced(dy, right).movedim(dim, 0)[rows]
        return result.movedim(0, dim)

    return wrong


MISTAKES = [
    # constants
    Mistake("sign", "sign", "−1", "dW", linear, linear_example, times(-1)),
    Mistake("sign of one element", "sign", "−1", "da", lambda x, a: a * x, lambda d: {"x": d(7), "a": d(1)}, times(-1)),
    Mistake(
        "mean",
        "batch factor",
        "1/7 times the right value (7 = dimension 0 of the output): mean against sum",
        "dW",
        linear,
        linear_example,
        times(1 / 7),
    ),
    Mistake("sum", "batch factor", "7 = dimension 0", "dx", linear, linear_example, times(7)),
    Mistake(
        "mean over time", "batch factor", "15 = dimensions 0·1", "dWx", recurrent, recurrent_example, times(1 / 15)
    ),
    Mistake(
        "mean of a cost",
        "batch factor",
        "1/6 times the right value (6 = dimension 0 of x)",
        "dx",
        lambda x, y: (x - y).pow(2).sum(),
        lambda d: {"x": d(6, 5), "y": d(6, 5)},
        times(1 / 6),
    ),
    Mistake("half", "factor", "½", "dx", linear, linear_example, times(0.5)),
    Mistake("twice", "factor", "2 times", "dW", linear, linear_example, times(2)),
    Mistake("any constant", "factor", "0.3717", "dW", linear, linear_example, times(0.3717)),
    Mistake("scale forgotten", "factor", "√7", "dq", attention, attention_example, times(7**0.5)),
    Mistake(
        "scalar argument",
        "missing factor",
        "alpha = 0.3",
        "dx",
        lambda x, alpha: alpha * x.tanh(),
        lambda d: {"x": d(4, 5), "alpha": 0.3},
        times(1 / 0.3),
    ),
    Mistake("zero", "zero", "zero", "dW", linear, linear_example, times(0)),
    # places
    Mistake("transposed", "transposed", "transposed", "dW", linear, square_example, lambda dy, right, **_: right.T),
    Mistake(
        "transposed shape", "transposed", "transposed", "dW", linear, linear_example, lambda dy, right, **_: right.T
    ),
    Mistake("W transposed", "transposed", "W", "dx", linear, square_example, lambda dy, right, x, W, b: dy @ W.T),
    Mistake(
        "W transposed inside",
        "transposed",
        "V",
        "dW",
        perceptron,
        lambda d: {"x": d(6, 5), "W": d(4, 5), "V": d(4, 4)},
        lambda dy, right, x, W, V: (
            ((dy * (y := torch.sigmoid((a := torch.tanh(x @ W.T)) @ V.T)) * (1 - y)) @ V.T * (1 - a * a)).T @ x
        ),
    ),
    Mistake(
        "NaN",
        "nan",
        "first is NaN at [0, 2]",
        "dx",
        linear,
        linear_example,
        lambda dy, right, **_: right.where(torch.arange(5) < 2, torch.nan),
    ),
    Mistake(
        "NaN at zero",
        "nan",
        "exactly where x is 0",
        "dx",
        lambda x: x.abs(),
        lambda d: {"x": d(4, 5).relu()},
        lambda dy, right, x: dy * x / x.abs(),
    ),
    Mistake(
        "from row 3",
        "rows",
        "right up to row 2, wrong from row 3 on",
        "dx",
        linear,
        linear_example,
        set_rows(slice(3, None)),
    ),
    Mistake(
        "up to row 3",
        "rows",
        "wrong up to row 3, right from row 4 on",
        "dx",
        linear,
        linear_example,
        set_rows(slice(0, 4)),
    ),
    Mistake("one row", "rows", "only row 2 is wrong", "dx", linear, linear_example, set_rows(slice(2, 3))),
    Mistake("one column", "rows", "only column 1 is wrong", "dW", linear, linear_example, set_rows(slice(1, 2), dim=1)),
    Mistake(
        "last example lost",
        "rows",
        "row 6 of dimension 0 of the cotangent",
        "dW",
        linear,
        linear_example,
        lambda dy, right, x, W, b: dy[:-1].T @ x[:-1],
    ),
    Mistake("repeated ids", "repeated indices", "1, 3", "dE", embed, embed_example, last_wins),
    Mistake(
        "repeated gather",
        "repeated indices",
        "ids",
        "dx",
        lambda ids, x: x.gather(1, ids),
        lambda d: {"ids": torch.tensor([[0, 2, 2], [1, 3, 0]]), "x": d(2, 4)},
        lambda dy, right, ids, x: torch.zeros_like(x).scatter(1, ids, dy),
    ),
    # shapes
    Mistake("keepdim", "shape", "(1, 4), not (4,)", "db", linear, linear_example, lambda dy, right, **_: right[None]),
    Mistake(
        "not summed", "shape", "not summed over dimension 0", "db", linear, linear_example, lambda dy, right, **_: dy
    ),
    Mistake("summed too far", "shape", "too", "dW", linear, linear_example, lambda dy, right, **_: right.sum(0)),
    Mistake(
        "strange shape", "shape", "(3, 3), not (4,)", "db", linear, linear_example, lambda dy, right, **_: dy[:3, :3]
    ),
    # axes
    Mistake(
        "bias over the wrong axis",
        "wrong axis",
        "dimension 1 of the (7, 4) gradient instead of dimension 0",
        "db",
        linear,
        linear_example,
        lambda dy, right, **_: dy.sum(1),
    ),
    Mistake(
        "bias over the wrong axis, square",
        "wrong axis",
        "instead of dimension 0",
        "db",
        linear,
        square_example,
        lambda dy, right, **_: dy.sum(1),
    ),
    Mistake(
        "gamma over the wrong axis",
        "wrong axis",
        "dimension 1",
        "dgamma",
        lambda x, gamma: x * gamma,
        lambda d: {"x": d(5, 5), "gamma": d(5)},
        lambda dy, right, x, gamma: (dy * x).sum(1),
    ),
    Mistake(
        "bias over everything",
        "wrong axis",
        "dimensions 0·1",
        "db",
        linear,
        linear_example,
        lambda dy, right, **_: dy.sum().expand(4),
    ),
    # what was forgotten
    Mistake("ones", "ones", "ones", "dW", linear, linear_example, lambda dy, right, x, W, b: torch.ones_like(dy).T @ x),
    Mistake(
        "gamma forgotten",
        "missing factor",
        "gamma",
        "dx",
        lambda x, gamma: x.tanh() * gamma,
        lambda d: {"x": d(4, 5), "gamma": d(5)},
        lambda dy, right, x, gamma: dy * (1 - x.tanh() ** 2),
    ),
    Mistake(
        "division forgotten",
        "missing factor",
        "s",
        "dx",
        lambda x, s: x / s,
        lambda d: {"x": d(4, 5), "s": d.positive(5)},
        lambda dy, *_, **__: dy,
    ),
    Mistake(
        "weights of examples forgotten",
        "missing factor",
        "w",
        "dx",
        lambda x, w: (x.tanh() * w[:, None]).sum(1),
        lambda d: {"x": d(4, 5), "w": d(4)},
        lambda dy, right, x, w: dy[:, None] * (1 - x.tanh() ** 2),
    ),
    Mistake(
        "xhat forgotten",
        "missing factor",
        "the sum of the cotangent",
        "dgamma",
        layer_norm,
        norm_example,
        lambda dy, *_, **__: dy.sum(0),
    ),
    Mistake(
        "tanh's slope",
        "derivative forgotten",
        "",
        "dx",
        lambda x: x.tanh(),
        lambda d: {"x": d(4, 5)},
        lambda dy, right, x: dy,
    ),
    Mistake(
        "relu's slope",
        "derivative forgotten",
        "",
        "dx",
        lambda x: x.relu(),
        lambda d: {"x": d(4, 5)},
        lambda dy, right, x: dy,
    ),
    Mistake(
        "slope of layer 1", "derivative forgotten", "tanh", "dW", perceptron, perceptron_example, slope_forgotten(1)
    ),
    Mistake(
        "slope of layer 2", "derivative forgotten", "sigmoid", "dW", perceptron, perceptron_example, slope_forgotten(2)
    ),
    Mistake(
        "slope at every step",
        "derivative forgotten",
        "tanh was forgotten (5 times)",
        "dWx",
        recurrent,
        recurrent_example,
        no_slope("Wx"),
    ),
    Mistake(
        "dropout",
        "mask ignored",
        "noise",
        "dx",
        drop,
        drop_example,
        lambda dy, right, x, noise: dy * (1 - x.tanh() ** 2),
    ),
    Mistake(
        "dropout but scaled",
        "mask ignored",
        "noise",
        "dx",
        drop,
        drop_example,
        lambda dy, right, x, noise: dy * (1 - x.tanh() ** 2) / 0.75,
    ),
    Mistake(
        "dropout before a layer",
        "mask ignored",
        "noise",
        "dx",
        lambda x, noise, W: torch.tanh(x) * noise @ W,
        lambda d: {**drop_example(d), "W": d(6, 4)},
        lambda dy, right, x, noise, W: dy @ W.T * (1 - x.tanh() ** 2),
    ),
    Mistake(
        "dropout inside",
        "mask ignored",
        "noise",
        "dW",
        lambda x, W, noise: (x @ W).tanh() * noise,
        lambda d: {"x": d(5, 3), "W": d(3, 6), "noise": d.mask(5, 6).to(d.dtype)},
        lambda dy, right, x, W, noise: x.T @ (dy * (1 - (x @ W).tanh() ** 2)),
    ),
    Mistake(
        "boolean mask",
        "mask ignored",
        "keep",
        "dx",
        lambda x, keep: torch.where(keep, x.exp(), 0.0),
        lambda d: {"x": d(5, 6), "keep": d.mask(5, 6)},
        lambda dy, right, x, keep: dy * x.exp(),
    ),
    # terms
    Mistake(
        "LayerNorm without the third term",
        "term",
        "missing",
        "dx",
        layer_norm,
        norm_example,
        lambda dy, right, x, gamma, beta: (lambda r, a, b, c: r * (a - b))(*layer_norm_terms(dy, x, gamma)),
    ),
    Mistake(
        "LayerNorm without the second term",
        "term",
        "mean",
        "dx",
        layer_norm,
        norm_example,
        lambda dy, right, x, gamma, beta: (lambda r, a, b, c: r * (a - c))(*layer_norm_terms(dy, x, gamma)),
    ),
    Mistake("LayerNorm as affine", "term", "missing", "dx", layer_norm, norm_example, affine),
    Mistake(
        "LayerNorm, a term's sign",
        "term",
        "sign",
        "dx",
        layer_norm,
        norm_example,
        lambda dy, right, x, gamma, beta: (lambda r, a, b, c: r * (a - b + c))(*layer_norm_terms(dy, x, gamma)),
    ),
    Mistake(
        "LayerNorm, a mean is a sum",
        "term",
        "",
        "dx",
        layer_norm,
        norm_example,
        lambda dy, right, x, gamma, beta: (lambda r, a, b, c: r * (a - b * x.shape[-1] - c))(
            *layer_norm_terms(dy, x, gamma)
        ),
    ),
    Mistake(
        "torch's LayerNorm without the third term",
        "term",
        "missing",
        "dx",
        native_layer_norm,
        norm_example,
        lambda dy, right, x, gamma, beta: (lambda r, a, b, c: r * (a - b))(*layer_norm_terms(dy, x, gamma)),
    ),
    Mistake("BatchNorm as affine", "term", "missing", "dx", batch_norm, norm_example, batch_affine),
    Mistake("torch's BatchNorm as affine", "term", "missing", "dx", native_batch_norm, norm_example, batch_affine),
    Mistake("softmax's diagonal", "term", "diagonal", "dx", softmax, lambda d: {"x": d(4, 5)}, softmax_diagonal),
    Mistake(
        "softmax without its sum",
        "term",
        "sum",
        "dx",
        softmax,
        lambda d: {"x": d(4, 5)},
        lambda dy, right, x: dy * x.softmax(-1),
    ),
    Mistake("RNN dx without time", "term", "Wh", "dx", recurrent, recurrent_example, no_time("x")),
    Mistake("RNN dWh without time", "term", "Wh", "dWh", recurrent, recurrent_example, no_time("Wh")),
    Mistake("LSTM without h through time", "term", "Wh", "dWx", lstm, lstm_example, lstm_without_h),
    Mistake(
        "tied, first use lost",
        "term",
        "E",
        "dE",
        tied,
        lambda d: {"x": d(4, 5), "E": d(5, 3)},
        lambda dy, right, x, E: dy.T @ torch.tanh(x @ E),
    ),
    Mistake(
        "residual lost",
        "term",
        "",
        "dx",
        lambda x, W: x + (x @ W).tanh(),
        lambda d: {"x": d(4, 5), "W": d(5, 5)},
        lambda dy, right, x, W: right - dy,
    ),
    Mistake(
        "branch lost",
        "term",
        "",
        "dx",
        lambda x, W: x + (x @ W).tanh(),
        lambda d: {"x": d(4, 5), "W": d(5, 5)},
        lambda dy, right, x, W: dy,
    ),
    Mistake(
        "softmax over the wrong axis",
        "wrong axis",
        "dimension 0",
        "dx",
        softmax,
        lambda d: {"x": d(4, 5)},
        lambda dy, right, x: (lambda p: p * (dy - (p * dy).sum(0)))(x.softmax(-1)),
    ),
    Mistake(
        "mean over the wrong axis",
        "wrong axis",
        "mean",
        "dx",
        lambda x: (x - x.mean(1, keepdim=True)).sin(),
        lambda d: {"x": d(4, 5)},
        lambda dy, right, x: (lambda dz: dz - dz.mean(0))(dy * (x - x.mean(1, keepdim=True)).cos()),
    ),
    Mistake(
        "masked forward, unmasked backward",
        "mask ignored",
        "mask",
        "dv",
        attention,
        attention_example,
        lambda dy, right, q, k, v, mask: (q @ k.mT / 7**0.5).softmax(-1).mT @ dy,
    ),
    Mistake(
        "dk by the scores' transposed",
        "transposed",
        "the cotangent",
        "dk",
        lambda q, k: (q @ k.mT).tanh(),
        lambda d: {"q": d(2, 5, 3), "k": d(2, 5, 3)},
        lambda dy, right, q, k: (dy * (1 - (q @ k.mT).tanh() ** 2)) @ q,
    ),
    Mistake(
        "two paths lost",
        "term",
        "two terms",
        "dx",
        lambda x: x.sin() + x.exp() + x.tanh() * 2 + x**3,
        lambda d: {"x": d(4, 5)},
        lambda dy, right, x: right - dy * (x.cos() + 3 * x**2),
    ),
    Mistake(
        "dropout before a sine",
        "mask ignored",
        "keep",
        "dx",
        lambda x, W, keep: (x @ W * keep).sin(),
        lambda d: {"x": d(5, 3), "W": d(3, 6), "keep": d.mask(5, 6).to(d.dtype)},
        lambda dy, right, x, W, keep: dy * (x @ W * keep).cos() @ W.T,
    ),
    Mistake(
        "dq by the scores' transposed",
        "transposed",
        "the cotangent",
        "dq",
        lambda q, k: (q @ k.mT).tanh(),
        lambda d: {"q": d(2, 5, 3), "k": d(2, 5, 3)},
        lambda dy, right, q, k: (dy * (1 - (q @ k.mT).tanh() ** 2)).mT @ k,
    ),
    Mistake(
        "half of one element", "factor", "½", "da", lambda x, a: a * x, lambda d: {"x": d(7), "a": d(1)}, times(0.5)
    ),
    Mistake(
        "half in a batch of two",
        "factor",
        "½",
        "dW",
        linear,
        lambda d: {"x": d(2, 5), "W": d(4, 5), "b": d(4)},
        times(0.5),
    ),
    Mistake("bias once per weight", "factor", "5 = dimension 1 of x", "db", linear, linear_example, times(5)),
    # additions
    Mistake(
        "weight decay",
        "weight decay",
        "0.01 times W",
        "dW",
        linear,
        linear_example,
        lambda dy, right, x, W, b: right + 0.01 * W,
    ),
    Mistake(
        "decay of a bias",
        "weight decay",
        "b itself",
        "db",
        linear,
        lambda d: {"x": d(7, 5), "W": d(6, 5), "b": d(6)},
        lambda dy, right, x, W, b: right + 0.3 * b,
    ),
]
IDS = [mistake.id for mistake in MISTAKES]


UNKNOWN = [
    Mistake("noise", None, "", "dW", linear, linear_example, replaced),
    Mistake(
        "noise on top",
        None,
        "",
        "dW",
        perceptron,
        perceptron_example,
        lambda dy, right, **_: right + 0.01 * replaced(dy, right),
    ),
    Mistake("noise in a vector", None, "", "db", linear, lambda d: {"x": d(7, 5), "W": d(6, 5), "b": d(6)}, replaced),
    Mistake("noise in two elements", None, "", "da", lambda x, a: x * a, lambda d: {"x": d(7, 2), "a": d(2)}, replaced),
    Mistake("noise in one element", None, "", "da", lambda x, a: x * a, lambda d: {"x": d(7), "a": d(1)}, replaced),
    Mistake("noise with a mask", None, "", "dx", drop, drop_example, replaced),
    Mistake("noise in a recurrent cell", None, "", "dWh", recurrent, recurrent_example, replaced),
    Mistake("noise in attention", None, "", "dk", attention, attention_example, replaced),
    Mistake("noise in an embedding", None, "", "dE", embed, embed_example, replaced),
    Mistake("noise in LayerNorm", None, "", "dx", native_layer_norm, norm_example, replaced),
    Mistake("gates in another order", None, "", "dWx", lstm, lstm_example, gates_reordered),
    Mistake("slope twice", None, "", "dW", perceptron, perceptron_example, slope_twice),
    Mistake(
        "slope of another function",
        None,
        "",
        "dx",
        lambda x: x.tanh(),
        lambda d: {"x": d(4, 5)},
        lambda dy, right, x: dy * x.sigmoid() * (1 - x.sigmoid()),
    ),
    Mistake(
        "nearly half", None, "", "dW", linear, linear_example, lambda dy, right, x, W, b: right * 0.5 + 0.01 * W.flip(0)
    ),
    Mistake(
        "nearly the transposed",
        None,
        "",
        "dW",
        linear,
        square_example,
        lambda dy, right, x, W, b: right.T + 0.01 * W.flip(0),
    ),
    Mistake("nearly zero", None, "", "dW", linear, linear_example, lambda dy, right, **_: 0.01 * replaced(dy, right)),
    Mistake("nearly ones", None, "", "dW", linear, linear_example, lambda dy, right, x, W, b: (1 + 0.01 * dy).T @ x),
    Mistake(
        "flipped", None, "", "dx", lambda x: x.cumsum(1), lambda d: {"x": d(4, 5)}, lambda dy, right, x: dy.cumsum(1)
    ),
    Mistake(
        "rows with a gap",
        None,
        "",
        "dE",
        embed,
        lambda d: {"ids": torch.tensor([0, 1, 2, 4]), "E": d(8, 4)},
        set_rows([2, 4]),
    ),
    Mistake("scattered rows", None, "", "dx", linear, linear_example, set_rows([1, 4])),
    Mistake(
        "repeated ids and another",
        None,
        "",
        "dE",
        embed,
        embed_example,
        lambda dy, right, ids, E: last_wins(dy, right, ids, E) + (torch.arange(8) == 5)[:, None] * replaced(dy, right),
    ),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mistake", MISTAKES, ids=IDS)
def test_names_the_mistake(mistake: Mistake, dtype: torch.dtype) -> None:
    found = diagnosed(mistake, 1 if dtype == torch.float64 else 2, dtype)
    assert found is not None, "unknown"
    assert found.kind == mistake.kind, found
    assert mistake.words in found.text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mistake", UNKNOWN, ids=[mistake.id for mistake in UNKNOWN])
def test_does_not_name_what_it_does_not_know(mistake: Mistake, dtype: torch.dtype) -> None:
    assert diagnosed(mistake, 0, dtype) is None
    assert diagnosed(mistake, 1, dtype, blind=True) is None


@pytest.mark.parametrize("mistake", MISTAKES, ids=IDS)
def test_without_a_forward_it_says_less_but_nothing_wrong(mistake: Mistake) -> None:
    """Where a pattern is one of several that the values alone allow, the weaker name is true, too."""
    found = diagnosed(mistake, 0, torch.float64, blind=True)
    weaker = {"term": {"rows", "derivative forgotten"}, "wrong axis": {"shape", "term"}}
    assert found is None or found.kind in {mistake.kind} | weaker.get(str(mistake.kind), set()), found


@pytest.mark.parametrize(
    "mistake",
    [m for m in MISTAKES if m.id in ("sign", "mean", "half", "zero", "transposed", "ones")],
    ids=lambda m: m.id,
)
def test_names_simple_mistakes_in_bfloat16(mistake: Mistake) -> None:
    found = diagnosed(mistake, 0, torch.bfloat16)
    assert found is not None
    assert found.kind == mistake.kind


@pytest.mark.parametrize("mistake", UNKNOWN, ids=lambda m: m.id)
def test_no_pattern_raises(mistake: Mistake) -> None:
    """`diagnose` would hide it. What nobody knows goes through all of them."""
    actual, expected, evidence = evidence_of(mistake, 0, torch.float64)
    given, wanted = actual[mistake.name], expected[mistake.name]
    patterns = OTHER_SHAPE if given.shape != wanted.shape else SAME_SHAPE
    case = Case(mistake.name, plain(given), plain(wanted), actual, expected, evidence)
    found = next(filter(None, (pattern(case) for pattern in patterns)), None)
    assert (found and found.kind) == mistake.kind


def test_a_right_gradient_has_no_diagnosis() -> None:
    for mistake in MISTAKES:
        actual, expected, evidence = evidence_of(mistake, 0, torch.float64)
        assert diagnose(mistake.name, {**actual, mistake.name: expected[mistake.name]}, expected, evidence) is None


def test_swapped_gradients() -> None:
    draw = Draw(0, torch.float64)
    expected = {"dq": draw(4, 5), "dk": draw(4, 5), "dv": draw(4, 5), "dW": draw(5, 4)}
    swapped = {**expected, "dq": expected["dk"], "dk": expected["dq"]}
    assert [found and found.kind for found in (diagnose(n, swapped, expected, Evidence()) for n in ("dq", "dk"))] == [
        "swapped"
    ] * 2
    found = diagnose("dq", {**expected, "dq": expected["dW"], "dW": expected["dq"]}, expected, Evidence())
    assert found == Diagnosis("swapped", "it is the right value of dW, which has another")
    given_twice = {**expected, "dq": expected["dk"]}  # dk is where it belongs
    assert diagnose("dq", given_twice, expected, Evidence()) is None


@pytest.mark.parametrize(
    ("c", "words"), [(1, "missing"), (2, "wrong sign"), (-1, "counted twice"), (0.75, "0.25 times")]
)
def test_suspected_terms(c: float, words: str) -> None:
    draw = Draw(0, torch.float64)
    right, term, other = draw(4, 5), draw(4, 5), draw(4, 5)
    evidence = Evidence(candidates={"the mean": other, "the spread": term})
    found = diagnose("dx", {"dx": right - c * term}, {"dx": right}, evidence)
    assert found is not None
    assert found.kind == "term"
    assert words in found.text
    assert "the spread" in found.text


def test_one_of_two_outputs_ignored() -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor, str]:
        return x.tanh(), x.exp().sum(0), "cache"

    draw = Draw(0, torch.float64)
    x, dy, ds = draw(4, 5), draw(4, 5), draw(5)
    right = dy * (1 - x.tanh() ** 2)
    evidence = Evidence({"x": x}, forward(x)[:2], (dy, ds), forward)
    found = diagnose("dx", {"dx": right}, {"dx": right + ds * x.exp()}, evidence)
    assert found == Diagnosis("term", "a term is missing: the cotangent of output 1")


def test_a_pattern_has_to_explain_the_whole_error() -> None:
    """Half of this error is weight decay, the rest is below the noise, but no rounding."""
    draw = Draw(0, torch.float64)
    x, right = draw(20, 20), draw(20, 20)
    decayed = right + 0.03 * x
    evidence = Evidence({"x": x}, noise=2e-2)
    found = diagnose("dx", {"dx": decayed}, {"dx": right}, evidence)
    assert found is not None
    assert found.kind == "weight decay"
    assert diagnose("dx", {"dx": decayed + 0.01 * replaced(x, right)}, {"dx": right}, evidence) is None


def refuses(*arguments: Tensor) -> Tensor:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    "forward",
    [refuses, lambda x: x.exp(), lambda x: None, lambda x: x.detach().tanh(), lambda: 0],
    ids=["raises", "another", "nothing", "detached", "none"],
)
def test_a_forward_that_is_of_no_use(forward: Any) -> None:
    draw = Draw(0, torch.float64)
    x, dy = draw(4, 5), draw(4, 5)
    right = dy * (1 - x.tanh() ** 2)
    evidence = Evidence({"x": x}, (x.tanh(),), (dy,), forward)
    assert diagnose("dx", {"dx": -right}, {"dx": right}, evidence) == Diagnosis(
        "sign", "the sign is wrong: it is −1 times the right value"
    )
    assert diagnose("dx", {"dx": replaced(dy, right)}, {"dx": right}, evidence) is None
    assert diagnose("dx", {"dx": x.exp()}, {"dx": right}, evidence) is None  # another forward's, for ones


def test_odd_input_is_unknown() -> None:
    right = Draw(0, torch.float64)(3)
    assert diagnose("dx", {}, {"dx": right}, Evidence()) is None
    nonsense: Any = {"a": "no tensor"}
    assert diagnose("dx", {"dx": replaced(right, right)}, {"dx": right}, Evidence(candidates=nonsense)) is None
    assert diagnose("dx", {"dx": None}, {"dx": right}, Evidence()) is None
    assert diagnose("dx", {"dx": right * 1j}, {"dx": right}, Evidence()) is None
    assert diagnose("dx", {"dx": torch.zeros(0)}, {"dx": torch.zeros(0)}, Evidence()) is None
    assert diagnose("dx", {"dx": replaced(right, right)}, {"dx": torch.zeros(3)}, Evidence()) is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_under_any_grad_mode_and_changes_nothing(mode: Any) -> None:
    with mode():
        draw = Draw(0, torch.float64)
        x, W, dy = draw(4, 5), draw(5, 5), draw(4, 5)
        kept = [t.clone() for t in (x, W, dy)]
        wrong = dy  # the path through W is lost
    evidence = Evidence({"x": x, "W": W}, (x + (x @ W).tanh(),), (dy,), lambda x, W: x + (x @ W).tanh())
    with mode():
        right = dy + (dy * (1 - (x @ W).tanh() ** 2)) @ W.T
        found = diagnose("dx", {"dx": wrong}, {"dx": right}, evidence)
    assert found is not None
    assert found.kind == "term"
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, W, dy), strict=True))
    assert x.grad is None


def test_paths_from_a_tensor_that_is_used_several_times_add_up() -> None:
    draw = Draw(0, torch.float64)
    x, dy = draw(4, 5), draw(4, 5)
    graph = Graph(lambda x: x.sin() + x.exp() * 2 + x, {"x": x}, [dy], "x")
    terms = [graph.value - graph.without([edge]) for edge in graph.edges if graph.leaf_below(*edge) == "x"]
    assert len(terms) == 3
    torch.testing.assert_close(sum(terms), dy * (x.cos() + 2 * x.exp() + 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.softmax(-1),
        lambda x: F.log_softmax(x, 0),
        lambda x: F.layer_norm(x, (5,)),
        lambda x: F.rms_norm(x, (5,)),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.scaled_dot_product_attention(x, x + 1, 2 * x, is_causal=True),
    ],
    ids=["softmax", "log_softmax", "layer_norm", "rms_norm", "batch_norm", "attention"],
)
def test_spelled_functions_have_the_same_value_and_gradient(function: Callable[[Tensor], Tensor]) -> None:
    x = Draw(0, torch.float64)(4, 5).requires_grad_()
    with Spelled():
        spelled = function(x)
    dy = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(spelled, function(x))
    assert kind(spelled.grad_fn) in ("Add", "Mul", "Mm")
    torch.testing.assert_close(*(torch.autograd.grad(y, x, dy)[0] for y in (spelled, function(x))))


def test_long_graphs_are_cut_in_groups() -> None:
    """Eighty steps are over five hundred nodes; the path through time is still found, within the allowed passes."""
    draw = Draw(0, torch.float64)
    arguments = {"x": draw(80, 2, 3), "h0": draw(2, 4), "Wx": draw(4, 3), "Wh": 0.3 * draw(4, 4)}
    dy = draw(80, 2, 4)
    expected = right_gradients(recurrent, arguments, dy)
    wrong = recurrent_gradients(dy, **arguments, through_time=False)["x"]
    evidence = Evidence(arguments, (recurrent(*arguments.values()),), (dy,), recurrent)
    found = diagnose("dx", {"dx": wrong}, expected, evidence)
    assert found is not None
    assert found.text == "a term is missing: the path through the matrix product with Wh, in 79 places"
