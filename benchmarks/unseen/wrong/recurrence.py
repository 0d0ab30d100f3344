"""Pairs: recurrent cells."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.unseen.subject import add, pair, randn
from gradient_check import Report, check_backward


def gated_sum_forward(a: Tensor, x: Tensor) -> tuple[Tensor, Any]:
    h = [x[0]]
    for t in range(1, len(x)):
        h.append(a[t] * h[-1] + x[t])
    return torch.stack(h), (a, torch.stack(h))


def gated_sum_backward(dh: Tensor, cache: Any) -> tuple[Tensor, ...]:
    a, h = cache
    da, dx = torch.zeros_like(a), torch.zeros_like(dh)
    carried = torch.zeros_like(dh[0])
    for t in reversed(range(len(dh))):
        dx[t] = dh[t] + carried
        if t > 0:
            da[t] = dx[t] * h[t - 1]
        carried = dx[t] * a[t - 1]
    return da, dx


def gated_sum(a: Tensor, x: Tensor) -> Tensor:
    T = len(x)
    rows = [sum(a[s + 1 : t + 1].prod(0) * x[s] for s in range(t + 1)) for t in range(T)]
    return torch.stack([torch.as_tensor(row) for row in rows])


pair(
    "gated recurrence: the gate of the step before",
    "hₜ = aₜ hₜ₋₁ + xₜ, and the error goes back through aₜ₋₁ and not through aₜ",
    gated_sum_forward,
    gated_sum_backward,
    [randn(101, 5, 3), randn(102, 5, 3)],
    reference=gated_sum,
    true=(r"^(term|rows|factor|missing factor)", r"step|shift|time"),
)


def peephole_forward(z: Tensor, c: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Any]:
    zi, zf, zg, zo = z.chunk(4, 1)
    i, f, g = zi.sigmoid(), zf.sigmoid(), zg.tanh()
    after = f * c + i * g
    o = (zo + p * after).sigmoid()
    return o * after.tanh(), after, (i, f, g, o, c, after, p)


def peephole_backward(dh: Tensor, dc: Tensor, cache: Any) -> tuple[Tensor, ...]:
    i, f, g, o, c, after, p = cache
    dzo = dh * after.tanh() * o * (1 - o)
    d_after = dc + dh * o * (1 - after.tanh() ** 2) + dzo * p
    dz = [d_after * g * i * (1 - i), d_after * c * f * (1 - f), d_after * i * (1 - g**2), dzo]
    return torch.cat(dz, 1), d_after * f, (dzo * c).sum(0)


def peephole(z: Tensor, c: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    n = c.shape[1]
    s = torch.sigmoid
    new = s(z[:, n : 2 * n]) * c + s(z[:, :n]) * torch.tanh(z[:, 2 * n : 3 * n])
    return s(torch.addcmul(z[:, 3 * n :], new, p)) * torch.tanh(new), new


pair(
    "LSTM with a peephole: dp from the old cell",
    "the output gate looks at the new cell, and the gradient of its weight is taken with the old one",
    peephole_forward,
    peephole_backward,
    [randn(103, 3, 8), randn(104, 3, 2), randn(105, 2)],
    reference=peephole,
    outputs=2,
    true=(r"^(term|factor|missing factor|swapped)", r"\bc\b|cell"),
)


def leaky_forward(x: Tensor, decay: Tensor) -> tuple[Tensor, Any]:
    h = [x[0]]
    for row in x[1:]:
        h.append(decay * h[-1] + row)
    return torch.stack(h), (torch.stack(h), decay)


class LeakyBackward:
    """Its carried error is an attribute that nothing resets."""

    carried: Tensor | None = None

    def __call__(self, dh: Tensor, cache: Any) -> tuple[Tensor, ...]:
        h, decay = cache
        if self.carried is None or self.carried.shape != dh[0].shape or self.carried.dtype != dh.dtype:
            self.carried = torch.zeros_like(dh[0])
        dx, d_decay = torch.zeros_like(h), torch.zeros_like(decay)
        for t in reversed(range(len(dh))):
            dx[t] = dh[t] + self.carried
            if t > 0:
                d_decay = d_decay + (dx[t] * h[t - 1]).sum()
            self.carried = decay * dx[t]
        return dx, d_decay


def ask_leaky(given: bool) -> Report:
    return check_backward(leaky_forward, LeakyBackward(), [randn(106, 5, 3), torch.tensor(0.6, dtype=torch.float64)])


add(
    name="leaky integrator: the error carried over from the call before",
    what="the error that leaves the first step is where the next call's last step begins; the first call is right",
    ask=ask_leaky,
    true=(r"^(stale|not linear)", r"second call|call before|state"),
)
