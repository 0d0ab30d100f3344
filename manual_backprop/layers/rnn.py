"""A simple recurrent layer over whole sequences: h_t = σ(z_t),  z_t = W_ih x_t + b_ih + W_hh h_{t−1} + b_hh

    x (B, T, I), h₀ (B, N), W_ih (N, I), W_hh (N, N), b_ih and b_hh (N,); σ is tanh, or relu
    y (B, T, N) has all h_t, h (B, N) is the last one

Backpropagation through time, from the last step to the first; dy_t comes from the output, dh from who had the last h:

    RN1  ∂h_t = dy_t + δ_{t+1} W_hh           what comes back to h_t on both ways; at the last step dy_T + dh
    RN2  δ_t = ∂h_t ⊙ σ′(z_t)
    RN3  dx = δ_t W_ih                        at every step
    RN4  dh = δ₁ W_hh                         of h₀
    RN5  dW_ih = Σ_t δ_tᵀ x_t                 all steps at once, as one product
    RN6  dW_hh = Σ_t δ_tᵀ h_{t−1}
    RN7  db_ih = db_hh = Σ_t Σ_batch δ_t

With `lengths` (B,) a sequence ends after so many steps: behind them y is 0, and h is that of its own last step.
`reverse` takes the steps from the last to the first. Whoever does not hand dh₀ on to the segment before cuts the
gradient there, which is truncated backpropagation through time.

Raises ValueError for shapes that do not fit; IndexError for a length below 0 or beyond T.
Sources: Elman 1990; Werbos 1990.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.sequences import by_step, check, examples_of, order, products, states, where

OUTPUTS = ("y", "h")
EQUATIONS = ("RN3", "RN4", "RN5", "RN6", "RN7", "RN7")
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
    activation: str = "tanh",
) -> tuple[Tensor, Tensor, Cache]:
    check(1, x, [h], [W_ih, W_hh, b_ih, b_hh], lengths)
    if activation not in ("tanh", "relu"):
        raise ValueError(f"activation is {activation!r}: give 'tanh' or 'relu'")
    sigma = torch.tanh if activation == "tanh" else torch.relu
    running, runs, steps = order(x, lengths, reverse)
    first, b, xs = h, b_ih + b_hh, by_step(x)
    after: list[Any] = [None] * len(steps)
    for t in steps:
        new = sigma(torch.addmm(b, xs[t], W_ih.T).addmm_(h, W_hh.T))
        after[t] = h = where(runs[t], new, h)
    before, shown = states(first, after, reverse)
    y = where(running, shown, 0.0).transpose(0, 1)
    return y, h, (xs, before, shown, W_ih, W_hh, runs, steps, activation)


def backward(dy: Tensor, dh: Tensor, cache: Cache, need_dx: bool = True) -> tuple[Any, ...]:
    """dx (None unless `need_dx`) and the other gradients."""
    xs, before, after, W_ih, W_hh, runs, steps, activation = cache
    dys = dy.unbind(dim=1)
    deltas = xs.new_empty(*xs.shape[:2], len(W_hh))
    for t in reversed(steps):
        dh = dh + where(runs[t], dys[t], 0.0)  # RN1
        slope = 1 - after[t] * after[t] if activation == "tanh" else after[t] > 0
        deltas[t] = where(runs[t], dh * slope, 0.0)  # RN2
        dh = where(runs[t], deltas[t] @ W_hh, dh)  # RN1, RN4
    dx = by_step(deltas @ W_ih) if need_dx else None  # RN3
    dW_ih, dW_hh, db = products(deltas, xs, before)  # RN5, RN6, RN7
    return dx, dh, dW_ih, dW_hh, db, db.clone()


def gates(cache: Cache) -> dict[str, Tensor]:
    """h_t of every step, (T, B, N), from what forward kept: there are no gates."""
    return {"h": cache[2]}


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, ...]]:
    for k, arguments in enumerate(examples_of(1, 1, generator, dtype)):
        yield *arguments, "relu" if k % 2 else "tanh"
