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


def order(
    x: Tensor, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor | None, list[Tensor] | list[None], Sequence[int]]:
    """Which sequences run, (T, B, 1), None where all do; the same for each step; the steps in their order.

    Raises IndexError for a length below 0 or beyond T: lengths are looked up, as ids are, and torch finds it.
    """
    steps = range(x.shape[1])
    taken = steps[::-1] if reverse else steps
    if lengths is None:
        return None, [None] * len(steps), taken
    numbers = torch.arange(len(steps) + 1, device=x.device)
    table = numbers[:-1] < numbers.unsqueeze(1)
    try:
        running = table.index_select(0, lengths).T.unsqueeze(2)  # a row of the table for each sequence
    except IndexError:
        raise IndexError(
            f"lengths are from {lengths.min()} to {lengths.max()}: give them from 0 to {len(steps)}, the steps"
        ) from None
    return running, list(running), taken


def where(runs: Tensor | None, a: Tensor, b: Tensor | float) -> Tensor:
    return a if runs is None else torch.where(runs, a, b)


def states(h: Tensor, after: Sequence[Tensor], reverse: bool) -> tuple[Tensor, Tensor]:
    """The states before and after each step, (T, B, N) both: two views of one tensor of T + 1 states."""
    if reverse:
        both = torch.stack((*after, h))
        return both[1:], both[:-1]
    both = torch.stack((h, *after))
    return both[:-1], both[1:]


def products(deltas: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Σ over all steps and sequences of δᵀ v, for δ (T, B, G) and each v (T, B, I), and last Σ δ, which is v = 1.

    One matrix product for all, so that δ is read once: (Σ vᵀ δ)ᵀ, of fewer rows than columns, which is made faster.
    """
    joined = torch.cat((*values, deltas.new_ones(*deltas.shape[:2], 1)), dim=2)
    sums = (joined.flatten(0, 1).T @ deltas.flatten(0, 1)).T
    *gradients, db = sums.split([v.shape[2] for v in values] + [1], dim=1)
    return *gradients, db.squeeze(1)


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
