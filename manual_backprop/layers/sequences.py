"""What recurrent layers share: the order of the steps, sequences of different lengths, sums over all steps.

A layer takes sequences batch first, (B, T, …), and works on them step by step, (T, B, …). A sequence of length n runs
in its first n steps; behind them its output is 0 and its state stays what it was. In the other direction, `reverse`,
the steps are taken from the last to the first, so that a state starts at the end of each sequence.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def by_step(x: Tensor) -> Tensor:
    """(B, T, …) as (T, B, …), or back."""
    return x.transpose(0, 1).contiguous()


def unrolled(
    x: Tensor, W: Tensor, b: Tensor, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor] | list[None], Sequence[int]]:
    """What needs no state, of all steps at once.

    xs (T, B, I); x Wᵀ + b of every step; for each step which sequences run, (B, 1), None where all do; the steps in
    their order.
    """
    xs, steps = by_step(x), range(x.shape[1])
    inputs = torch.addmm(b, xs.flatten(0, 1), W.T).view(*xs.shape[:2], len(W)).unbind()
    order = steps[::-1] if reverse else steps
    if lengths is None:
        return xs, inputs, [None] * len(steps), order
    runs = torch.arange(len(steps), device=x.device)[:, None] < lengths
    return xs, inputs, list(runs.unsqueeze(2)), order


def where(runs: Tensor | None, a: Tensor, b: Tensor | float) -> Tensor:
    return a if runs is None else torch.where(runs, a, b)


def product(deltas: Tensor, values: Tensor) -> Tensor:
    """Σ over all steps and sequences of δᵀ v, for δ (T, B, G) and v (T, B, I): one matrix product for one weight."""
    return deltas.flatten(0, 1).T @ values.flatten(0, 1)


def check(
    gates: int, x: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor], lengths: Tensor | None
) -> None:
    """Raises ValueError for shapes that do not fit: `gates` is how many blocks of N rows the weights have."""
    W_ih, W_hh, *biases = parameters
    N = W_hh.shape[-1] if W_hh.dim() else 0
    fits = x.dim() == 3 and x.shape[1] > 0 and W_ih.shape == (gates * N, x.shape[-1]) and W_hh.shape == (gates * N, N)
    fits = fits and all(state.shape == (len(x), N) for state in states)
    fits = fits and all(bias.shape == (gates * N,) for bias in biases)
    if not fits or (lengths is not None and lengths.shape != x.shape[:1]):
        given = ", ".join(str(tuple(v.shape)) for v in (*states, *parameters))
        own = "" if lengths is None else f", lengths are {tuple(lengths.shape)}"
        rows = f"{gates}N" if gates > 1 else "N"
        raise ValueError(
            f"x is {tuple(x.shape)}, states, weights and biases are {given}{own}: give (B, T, I) with T from 1, "
            f"states of (B, N), ({rows}, I), ({rows}, N), biases of ({rows},) and lengths of (B,)"
        )


def examples_of(gates: int, states: int, generator: torch.Generator, dtype: torch.dtype) -> list[tuple[object, ...]]:
    """Argument sets of a recurrent layer: all sequences alike, of different lengths, and in the other direction."""
    drawn: list[tuple[object, ...]] = []
    for B, T, inputs, N, lengths, reverse in (
        (3, 5, 4, 2, None, False),
        (4, 2, 3, 5, [2, 1, 2, 2], False),
        (2, 6, 3, 4, None, True),
        (4, 3, 5, 2, [3, 1, 2, 2], True),
    ):
        sizes = [(B, T, inputs), *[(B, N)] * states, (gates * N, inputs), (gates * N, N), (gates * N,), (gates * N,)]
        tensors = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
        drawn.append((*tensors, None if lengths is None else torch.tensor(lengths), reverse))
    return drawn
