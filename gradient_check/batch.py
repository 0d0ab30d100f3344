"""Which arguments hold one row per example: those that must grow together for forward to take one example more.

Sizes alone do not tell: a weight may have as many rows as there are examples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor

PROBES = 64  # calls of forward
Outputs = Callable[[Sequence[Any]], Sequence[Tensor]]


def with_examples(count: int, arguments: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """The first `count` rows of the arguments at `rows`."""
    return [v[:count] if i in rows else v for i, v in enumerate(arguments)]


def batch_arguments(run: Outputs, arguments: Sequence[Any], outputs: Sequence[Tensor]) -> tuple[int, ...]:
    """The positions of the arguments with one row per example; none where forward knows no batch.

    The fewest that forward takes with one row more so that its output has one more too. An output without dimensions, a
    cost, does not show what grew: there it is as many as forward takes, since a target left behind would be broadcast.
    """
    scalar = not outputs[0].dim()
    leaders = [v for v in (arguments if scalar else outputs) if isinstance(v, Tensor) and v.dim()]
    size = len(leaders[0]) if leaders else 0
    rows = [i for i, v in enumerate(arguments) if isinstance(v, Tensor) and v.dim() and len(v) == size]
    if size < 2:
        return ()
    counts = range(len(rows), 0, -1) if scalar else range(1, len(rows) + 1)
    for grown in islice((some for count in counts for some in combinations(rows, count)), PROBES):
        longer = [torch.cat([v, v[:1]]) if i in grown else v for i, v in enumerate(arguments)]
        try:
            made = run(longer)
        except Exception:  # forward does not take it, and that is its right
            continue
        if all(map(partial(_grown, size), made, outputs)) and (scalar or len(made[0]) > size):
            return grown
    return ()


def _grown(size: int, after: Tensor, before: Tensor) -> bool:
    """Nothing changed but that what was as large as the batch may be one larger."""
    return after.dim() == before.dim() and all(
        a == b or (a, b) == (size + 1, size) for a, b in zip(after.shape, before.shape, strict=True)
    )
