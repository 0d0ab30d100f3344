"""Long short-term memory over whole sequences: gates decide what a cell c takes in, keeps and shows.

    z_t = W_ih x_t + b_ih + W_hh h_{t−1} + b_hh, in four blocks of N rows, in this order:
    i_t = σ(z_i) takes in,  f_t = σ(z_f) keeps,  g_t = tanh(z_g) is what is taken in,  o_t = σ(z_o) shows
    c_t = f_t ⊙ c_{t−1} + i_t ⊙ g_t,    h_t = o_t ⊙ tanh(c_t)

    x (B, T, I), h₀ and c₀ (B, N), W_ih (4N, I), W_hh (4N, N), b_ih and b_hh (4N,)
    y (B, T, N) has all h_t, h and c (B, N) are the last ones

Backpropagation through time, from the last step to the first; δ_t, of the shape of z_t, has the four blocks:

    LS1  ∂h_t = dy_t + δ_{t+1} W_hh                           at the last step dy_T + dh
    LS2  ∂c_t = ∂c_{t+1} ⊙ f_{t+1} + ∂h_t ⊙ o_t ⊙ (1 − tanh²(c_t))      at the last step dc is the first term
    LS3  δ_i = ∂c_t ⊙ g_t ⊙ i_t (1 − i_t)
    LS4  δ_f = ∂c_t ⊙ c_{t−1} ⊙ f_t (1 − f_t)
    LS5  δ_g = ∂c_t ⊙ i_t ⊙ (1 − g_t²)
    LS6  δ_o = ∂h_t ⊙ tanh(c_t) ⊙ o_t (1 − o_t)
    LS7  dx = δ_t W_ih                                        at every step
    LS8  dh = δ₁ W_hh                                         of h₀
    LS9  dc = ∂c₁ ⊙ f₁                                        of c₀
    LS10  dW_ih = Σ_t δ_tᵀ x_t                                all steps at once, as one product
    LS11  dW_hh = Σ_t δ_tᵀ h_{t−1}
    LS12  db_ih = db_hh = Σ_t Σ_batch δ_t

In LS2 what comes from t + 1 is only multiplied by f, and by no matrix: where the cell keeps (f = 1) its gradient
neither vanishes nor explodes. `lengths`, `reverse` and the cut of the gradient are as in rnn.py.

Raises ValueError for shapes that do not fit. Sources: Hochreiter and Schmidhuber 1997; Gers et al. 2000.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.sequences import by_step, check, examples_of, order, products, states, where

OUTPUTS = ("y", "h", "c")
EQUATIONS = ("LS7", "LS8", "LS9", "LS10", "LS11", "LS12", "LS12")
not_differentiable = ("lengths",)

Cache = tuple[Any, ...]


def forward(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    W_ih: Tensor,
    W_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Cache]:
    check(4, x, [h, c], [W_ih, W_hh, b_ih, b_hh], lengths)
    running, runs, steps = order(x, lengths, reverse)
    first, b, xs = h, b_ih + b_hh, by_step(x)
    after: list[Any] = [None] * len(steps)
    kept: list[Any] = [None] * len(steps)
    for t in steps:
        new_h, new_c, kept[t] = step(torch.addmm(b, xs[t], W_ih.T).addmm_(h, W_hh.T), c)
        h, c = where(runs[t], new_h, h), where(runs[t], new_c, c)
        after[t] = h
    before, shown = states(first, after, reverse)
    y = where(running, shown, 0.0).transpose(0, 1)
    return y, h, c, (xs, before, kept, W_ih, W_hh, runs, steps)


def step(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """h_t, c_t, and what backward needs of the step; z, which is the largest, is not kept."""
    z_i, z_f, z_g, z_o = z.chunk(4, dim=1)
    i, f, g, o = torch.sigmoid(z_i), torch.sigmoid(z_f), torch.tanh(z_g), torch.sigmoid(z_o)
    new = torch.addcmul(f * c, i, g)
    shown = torch.tanh(new)
    return o * shown, new, (i, f, g, o, c, shown)


def backward(dy: Tensor, dh: Tensor, dc: Tensor, cache: Cache, need_dx: bool = True) -> tuple[Any, ...]:
    """dx (None unless `need_dx`) and the other gradients.

    A product that two equations share is made once, and v (1 − v) a is made of k = a v, as k − k ⊙ v; behind its label
    stands what a line computes.
    """
    xs, before, kept, W_ih, W_hh, runs, steps = cache
    dys = dy.unbind(dim=1)
    deltas = xs.new_empty(*xs.shape[:2], len(W_hh))
    one = xs.new_ones(())
    blocks = [block.unbind() for block in deltas.chunk(4, dim=2)]
    for t in reversed(steps):
        i, f, g, o, c, shown = kept[t]
        delta_i, delta_f, delta_g, delta_o = (block[t] for block in blocks)
        dh = dh + where(runs[t], dys[t], 0.0)  # LS1
        d_shown = dh * o
        dc_t = torch.addcmul(dc, d_shown, minus(one, shown, shown))  # LS2  dc + dh * o * (1 - shown * shown)
        d_g, d_c = dc_t * i, dc_t * f
        k = d_g * g
        minus(k, k, i, out=delta_i)  # LS3  dc_t * g * i * (1 - i)
        k = d_c * c
        minus(k, k, f, out=delta_f)  # LS4  dc_t * c * f * (1 - f)
        torch.mul(d_g, minus(one, g, g), out=delta_g)  # LS5  dc_t * i * (1 - g * g)
        k = d_shown * shown
        minus(k, k, o, out=delta_o)  # LS6  dh * shown * o * (1 - o)
        if runs[t] is not None:
            deltas[t].masked_fill_(~runs[t], 0.0)
        dh = where(runs[t], deltas[t] @ W_hh, dh)  # LS1, LS8
        dc = where(runs[t], d_c, dc)  # LS2, LS9
    dx = by_step(deltas @ W_ih) if need_dx else None  # LS7
    dW_ih, dW_hh, db = products(deltas, xs, before)  # LS10, LS11, LS12
    return dx, dh, dc, dW_ih, dW_hh, db, db.clone()


def minus(a: Tensor, b: Tensor, c: Tensor, out: Tensor | None = None) -> Tensor:
    """a − b ⊙ c, in one pass over the memory."""
    return torch.addcmul(a, b, c, value=-1, out=out)


def gates(cache: Cache) -> dict[str, Tensor]:
    """i, f, o and c_t of every step, (T, B, N) each, from what forward kept."""
    i, f, g, o, c, _ = (torch.stack(values) for values in zip(*cache[2], strict=True))
    return {"i": i, "f": f, "o": o, "c": f * c + i * g}


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, ...]]:
    yield from examples_of(4, 2, generator, dtype)
