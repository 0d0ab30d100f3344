"""What every family is made of: `RightLayer`, the random `Draw`, and the list of families."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class RightLayer(NamedTuple):
    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    example: tuple[Any, ...]
    not_differentiable: tuple[str, ...] = ()
    outputs: int = 1


class Draw:
    """Sizes, settings and values at random; the values are drawn at float64, so every dtype gets the same layer."""

    def __init__(self, seed: int, dtype: torch.dtype):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def choice(self, options: Sequence[Any]) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def shape(self, dims: int, low: int = 1, high: int = 5) -> tuple[int, ...]:
        return tuple(self.integer(low, high) for _ in range(dims))

    def ids(self, high: int, *shape: int) -> Tensor:
        """Whole numbers below `high`; with few to choose from, some are repeated."""
        return torch.randint(0, high, shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        values = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * values).to(self.dtype)

    def positive(self, *shape: int) -> Tensor:
        return self.uniform(*shape, low=0.3, high=3)

    def off(self, kinks: Sequence[float], *shape: int) -> Tensor:
        """Normal values, none within 0.05 of a kink; the last is 0.25, so that not all lie where the slope is 0."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        for kink in kinks:
            values = torch.where((values - kink).abs() < 0.05, values + 0.1, values)
        values.view(-1)[-1] = 0.25
        return values.to(self.dtype)

    def keep(self, *shape: int) -> Tensor:
        """True with probability 0.7; the first is False, the last True."""
        kept = torch.rand(shape, generator=self.generator) < 0.7
        kept.view(-1)[0] = False
        kept.view(-1)[-1] = True
        return kept


FAMILIES: list[Callable[[Draw], RightLayer]] = []


def family(make: Callable[[Draw], RightLayer]) -> Callable[[Draw], RightLayer]:
    FAMILIES.append(make)
    return make
