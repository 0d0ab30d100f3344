"""Right layers whose example lies at a kink or a jump, loses digits, or has no gradient where one would expect it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F


class Singular(NamedTuple):
    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    example: Callable[[torch.Generator], tuple[Any, ...]]
    reference: Callable[..., Any]


SINGULAR: list[Singular] = []


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def add(name: str, example: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate what returns the pair."""

    def decorate(pair: Callable[[], Any]) -> Callable[[], Any]:
        SINGULAR.append(Singular(name, *pair(), example, reference))
        return pair

    return decorate


def others_margins(scores, target):
    return F.relu(torch.cat([scores[:target], scores[target + 1 :]]) - scores[target] + 1).sum()


@add("hinge, margins of zero", lambda g: (numbers(1, 0.5, 0, -0.5, 2), torch.tensor(0)), others_margins)
def hinge():
    def forward(scores, target):
        margins = (scores - scores[target] + 1).clamp(min=0)
        margins[target] = 0
        return margins.sum(), (scores, target)

    def backward(d_loss, cache):
        scores, target = cache
        lost = (scores - scores[target] + 1 > 0).to(scores.dtype)
        lost[target] = 0
        lost[target] = -lost.sum()
        return d_loss * lost

    return forward, backward


@add(
    "table, at its own places",
    lambda g: (numbers(0, 1, 2, 2, 3.4), normal(g, 6)),
    lambda x, T: T[0] + (T[1] - T[0]) * x + sum(bend * F.relu(x - k) for k, bend in enumerate(T.diff(n=2), 1)),
)
def table():
    def forward(x, T):
        i = x.floor().long().clamp(0, len(T) - 2)
        return torch.lerp(T[i], T[i + 1], x - i), (x - i, i, T)

    def backward(dy, cache):
        part, i, T = cache
        dT = torch.zeros_like(T).index_add(0, i, dy * (1 - part)).index_add(0, i + 1, dy * part)
        return dy * (T[i + 1] - T[i]), dT

    return forward, backward


def mean_square(x):
    c = x - x.mean()
    return (c * c).mean(), c


def mean_square_backward(d, c):
    return d * 2 * c / c.numel()


@add("variance of nearly equal numbers", lambda g: (1e4 + 1e-3 * normal(g, 9),), lambda x: x.var(correction=0))
def variance():
    return mean_square, mean_square_backward


@add("variance that cancels", lambda g: (100 + 0.1 * normal(g, 9),), lambda x: x.var(correction=0))
def cancelling():
    return lambda x: ((x * x).mean() - x.mean() ** 2, x - x.mean()), mean_square_backward


def nearly_constant(generator):
    rows = 5 + 1e-4 * normal(generator, 4, 6)
    rows[1] = 5.0
    return (rows,)


@add("layer norm of constant rows", nearly_constant, lambda x: F.layer_norm(x, x.shape[-1:]))
def layer_norm():
    def forward(x):
        c = x - x.mean(-1, keepdim=True)
        r = ((c * c).mean(-1, keepdim=True) + 1e-5).rsqrt()
        return c * r, (c * r, r)

    def backward(dy, cache):
        y, r = cache
        return r * (dy - dy.mean(-1, keepdim=True) - y * (dy * y).mean(-1, keepdim=True))

    return forward, backward


def centred(x, b):
    """What is added before centring is taken away again: the gradient of b is zero, but for its rounding."""
    a = torch.tanh(x + b - (x + b).mean(dim=0))
    return a, a


def centred_backward(da, a):
    dc = da * (1 - a**2)
    dz = dc - dc.mean(dim=0)
    return dz, dz.sum(dim=0)


@add("power of zero", lambda g: (numbers(0, 2, 0.5, 0), numbers(1, 2, 1.5, 3)), torch.pow)
def power():
    def backward(dy, cache):
        a, b = cache
        log = torch.where(a > 0, a, 1.0).log()
        return dy * torch.where(b == 0, 0.0, b * a ** (b - 1)), dy * a**b * log

    return lambda a, b: (a**b, (a, b)), backward


@add("sign times a weight", lambda g: (normal(g, 4, 3), normal(g, 4, 3)), lambda x, w: x.sign() * w)
def sign():
    return lambda x, w: (x.sign() * w, x), lambda dy, x: (torch.zeros_like(dy), dy * x.sign())


def sine(x, W):
    return torch.sin(x @ W)


@add("sines of large angles in float32", lambda g: (60 * normal(g, 7, 5).float(), normal(g, 5, 4).float()), sine)
def sines():
    def backward(dy, cache):
        x, W, z = cache
        dz = dy * z.cos()
        return dz @ W.T, x.T @ dz

    return lambda x, W: (sine(x, W), (x, W, x @ W)), backward


@add("hard swish at its corners", lambda g: (numbers(-3, 3, 0, 1, -5, 5),), F.hardswish)
def hard_swish():
    def backward(dy, x):
        return dy * torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, (2 * x + 3) / 6))

    return lambda x: (x * (x + 3).clamp(0, 6) / 6, x), backward


def inner(x, low, high):
    return torch.minimum(torch.maximum(x, x.new_tensor(low)), x.new_tensor(high))


@add("clamp at its bounds", lambda g: (numbers(-1, 1, 0.3, 2, -4), -1.0, 1.0), inner)
def clamp():
    def forward(x, low, high):
        return x.clamp(low, high), (x >= low) & (x <= high)

    return forward, lambda dy, inside: dy * inside


@add("many zeros before relu", lambda g: (normal(g, 40, 30).relu(),), F.relu)
def relu():
    return lambda x: (x.clamp(min=0), x), lambda dy, x: dy * (x >= 0)


@add("the last of a tie", lambda g: (numbers(1, 1, 0, 2, 3, 3).view(2, 3),), lambda x: x.amax(-1))
def largest():
    def backward(dy, x):
        last = x.shape[-1] - 1 - x.flip(-1).argmax(-1, keepdim=True)
        return torch.zeros_like(x).scatter(-1, last, dy[..., None])

    return lambda x: (x.max(-1).values, x), backward


@add("softplus of pieces", lambda g: (numbers(0, 0.5, -2, 0, 3),), lambda x: torch.logaddexp(x, torch.zeros_like(x)))
def softplus():
    return lambda x: (x.clamp(min=0) + x.abs().neg().exp().log1p(), x), lambda dy, x: dy * x.sigmoid()
