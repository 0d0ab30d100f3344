"""Gated recurrent units over whole sequences: the new state is a mean of the old one and of a candidate n.

    r_t = σ(W_ir x_t + b_ir + W_hr h_{t−1} + b_hr) resets,  u_t = σ(W_iu x_t + b_iu + W_hu h_{t−1} + b_hu) keeps
    q_t = W_hn h_{t−1} + b_hn,  n_t = tanh(W_in x_t + b_in + r_t ⊙ q_t)
    h_t = (1 − u_t) ⊙ n_t + u_t ⊙ h_{t−1}

    x (B, T, I), h₀ (B, N), W_ih (3N, I) and W_hh (3N, N) with the blocks r, u, n (torch: r, z, n), b_ih and b_hh (3N,)
    y (B, T, N) has all h_t, h (B, N) is the last one

The bias b_hn stands inside of r ⊙ (…), so that db_hh differs from db_ih in its last block. δ_t has the blocks of what
is added to W_ih x_t, ε_t of what is added to W_hh h_{t−1}. From the last step to the first:

    GR1  ∂h_t = dy_t + ∂h_{t+1} ⊙ u_{t+1} + ε_{t+1} W_hh        at the last step dy_T + dh
    GR2  δ_n = ∂h_t ⊙ (1 − u_t) ⊙ (1 − n_t²)
    GR3  δ_u = ∂h_t ⊙ (h_{t−1} − n_t) ⊙ u_t (1 − u_t)
    GR4  δ_r = δ_n ⊙ q_t ⊙ r_t (1 − r_t)
    GR5  ε_t = (δ_r, δ_u, δ_n ⊙ r_t)
    GR6  dx = δ_t W_ih                                          at every step
    GR7  dh = ∂h₁ ⊙ u₁ + ε₁ W_hh                                of h₀
    GR8  dW_ih = Σ_t δ_tᵀ x_t                                   all steps at once, as one product
    GR9  dW_hh = Σ_t ε_tᵀ h_{t−1}
    GR10  db_ih = Σ_t Σ_batch δ_t
    GR11  db_hh = Σ_t Σ_batch ε_t

`lengths`, `reverse` and the cut of the gradient are as in rnn.py.

Raises ValueError for shapes that do not fit. Source: Cho et al. 2014, with r applied behind the product as torch does.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.sequences import by_step, check, examples_of, order, products, states, where

OUTPUTS = ("y", "h")
EQUATIONS = ("GR6", "GR7", "GR8", "GR9", "GR10", "GR11")
not_differentiable = ("lengths",)

Cache = tuple[Any, ...]


def forward(
    x: Tensor,
    h: Tensor,
    W_ih: Tensor,
    W_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Cache]:
    check(3, x, [h], [W_ih, W_hh, b_ih, b_hh], lengths)
    N = h.shape[1]
    running, runs, steps = order(x, lengths, reverse)
    first, xs = h, by_step(x)
    inputs = torch.addmm(b_ih, xs.flatten(0, 1), W_ih.T).view(*xs.shape[:2], 3 * N).unbind()
    after: list[Any] = [None] * len(steps)
    kept: list[Any] = [None] * len(steps)
    for t in steps:
        hidden = torch.addmm(b_hh, h, W_hh.T)
        r, u = torch.sigmoid(inputs[t][:, : 2 * N] + hidden[:, : 2 * N]).chunk(2, dim=1)
        q = hidden[:, 2 * N :].clone()  # not a view, which would keep the other blocks too
        n = torch.tanh(inputs[t][:, 2 * N :] + r * q)
        new = n + u * (h - n)  # (1 − u) ⊙ n + u ⊙ h
        kept[t] = r, u, q, n
        after[t] = h = where(runs[t], new, h)
    before, shown = states(first, after, reverse)
    y = where(running, shown, 0.0).transpose(0, 1)
    return y, h, (xs, before, kept, W_ih, W_hh, runs, steps)


def backward(dy: Tensor, dh: Tensor, cache: Cache, need_dx: bool = True) -> tuple[Any, ...]:
    """dx (None unless `need_dx`) and the other gradients."""
    xs, before, kept, W_ih, W_hh, runs, steps = cache
    dys = dy.unbind(dim=1)
    N = W_hh.shape[1]
    epsilons = xs.new_empty(*xs.shape[:2], 3 * N)
    deltas_n: list[Any] = [None] * len(steps)
    for t in reversed(steps):
        r, u, q, n = kept[t]
        dh = dh + where(runs[t], dys[t], 0.0)  # GR1
        deltas_n[t] = delta_n = where(runs[t], dh * (1 - u) * (1 - n * n), 0.0)  # GR2
        delta_u = where(runs[t], dh * (before[t] - n) * u * (1 - u), 0.0)  # GR3
        delta_r = delta_n * q * r * (1 - r)  # GR4
        torch.cat((delta_r, delta_u, delta_n * r), dim=1, out=epsilons[t])  # GR5
        dh = where(runs[t], dh * u, dh) + epsilons[t] @ W_hh  # GR1, GR7
    dW_hh, db_hh = products(epsilons, before)  # GR9, GR11
    deltas = epsilons  # which differ in the last block alone, and ε is not needed any more
    torch.stack(deltas_n, out=deltas[:, :, 2 * N :])
    dW_ih, db_ih = products(deltas, xs)  # GR8, GR10
    dx = by_step(deltas @ W_ih) if need_dx else None  # GR6
    return dx, dh, dW_ih, dW_hh, db_ih, db_hh


def gates(cache: Cache) -> dict[str, Tensor]:
    """r and u of every step, (T, B, N) both, from what forward kept."""
    r, u, *_ = (torch.stack(values) for values in zip(*cache[2], strict=True))
    return {"r": r, "u": u}


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, ...]]:
    yield from examples_of(3, 1, generator, dtype)
