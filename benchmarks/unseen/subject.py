"""What a subject of the trial is, and how one is added."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradient_check import Report, check_backward, check_function

Reference = Callable[..., Any] | None
Example = Sequence[Any] | Callable[[], Sequence[Any]]  # the arguments, or what makes them anew for every question


@dataclass(frozen=True)
class Subject:
    """A backward pass, wrong or right, and how it is asked for."""

    name: str
    what: str  # one sentence: what is wrong; of a right one, why it is delicate
    ask: Callable[[bool], Report]  # of whether to give the reference: asked as a user would, with defaults
    reference: bool = False  # whether there is one to give
    true: tuple[str, ...] = ()  # of a wrong one: regular expressions, one of which a true diagnosis matches

    @property
    def wrong(self) -> bool:
        return bool(self.true)


SUBJECTS: list[Subject] = []


def add(
    name: str, what: str, ask: Callable[[bool], Report], *, true: tuple[str, ...] = (), reference: bool = False
) -> None:
    SUBJECTS.append(Subject(name, what, ask, reference, true))


def pair(
    name: str,
    what: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    example: Example,
    *,
    true: tuple[str, ...] = (),
    reference: Reference = None,
    **options: Any,
) -> None:
    """Add a forward and its backward, which `check_backward` is asked about."""

    def ask(given: bool) -> Report:
        return check_backward(forward, backward, _made(example), reference=reference if given else None, **options)

    add(name, what, ask, true=true, reference=reference is not None)


def function(
    name: str,
    what: str,
    function: Callable[..., Any],
    example: Example,
    *,
    true: tuple[str, ...] = (),
    reference: Reference = None,
) -> None:
    """Add what autograd goes through, which `check_function` is asked about."""

    def ask(given: bool) -> Report:
        return check_function(function, _made(example), reference=reference if given else None)

    add(name, what, ask, true=true, reference=reference is not None)


def _made(example: Example) -> Sequence[Any]:
    return example() if callable(example) else example


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rand(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
