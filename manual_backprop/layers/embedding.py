"""Embedding: z = E[ids], for every id its row of E; where it is the padding id, if there is one, z = 0.

    ids (…) of int64 from 0 to V − 1, E (V, C), z (…, C)

    EM1  dE[v] = Σ dz over all places whose id is v             0 for the padding id

It is the affine map of one-hot rows, without the zeros: an id that comes twice adds twice.
Raises ValueError if E is no matrix; IndexError for an id outside of it. Source: the chain rule.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

EQUATIONS = ("EM1",)
not_differentiable = ("ids",)

Cache = tuple[Tensor, Tensor, int | None]


def forward(ids: Tensor, E: Tensor, padding: int | None = None) -> tuple[Tensor, Cache]:
    if E.dim() != 2 or not (padding is None or 0 <= padding < len(E)):
        raise ValueError(f"E is {tuple(E.shape)}, the padding id {padding}: give (V, C), and an id from 0 to V − 1")
    try:
        z = E.index_select(0, ids.flatten()).view(*ids.shape, E.shape[1])  # where E[ids] also took −1
    except IndexError:
        found = f"{ids.min()} to {ids.max()}"
        raise IndexError(f"ids are from {found}: give ids from 0 to {len(E) - 1}, the rows of E") from None
    if padding is not None:
        z = z.masked_fill((ids == padding).unsqueeze(-1), 0.0)
    return z, (ids, E, padding)


def backward(dz: Tensor, cache: Cache) -> Tensor:
    ids, E, padding = cache
    dE = torch.zeros_like(E).index_add_(0, ids.flatten(), dz.reshape(-1, E.shape[1]))  # EM1
    if padding is not None:
        dE[padding] = 0.0
    return dE


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor | int, ...]]:
    E = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(dtype)
    for shape, *padding in (((7,),), ((2, 4), 0), ((2, 3, 2), 4)):
        yield torch.randint(0, 5, shape, generator=generator), E, *padding
