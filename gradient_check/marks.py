"""The decorator that marks what `python -m gradient_check FILE.py` checks. A file that uses it need not load torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

ATTRIBUTE = "_gradient_check"


@dataclass(frozen=True)
class Mark:
    """What `checked` was given."""

    example: Any
    forward: Callable[..., Any] | None
    init: Sequence[Any]
    options: Mapping[str, Any]


def checked(
    *, example: Any, forward: Callable[..., Any] | None = None, init: Sequence[Any] = (), **options: Any
) -> Callable[[T], T]:
    """Mark a function, an `autograd.Function`, an `nn.Module` (class or instance) for `python -m gradient_check`.

        @checked(example=lambda: [torch.randn(5, 7)], reference=torch.nn.functional.silu)
        class Swish(torch.autograd.Function): ...

    What is marked stays as it is, and nothing runs before the check. `example` is a list of arguments, or a function
    that returns one; the function may take a `torch.Generator`. `init` holds the arguments that an `nn.Module` class
    is made with. `options` are those of `check_function`. With `forward=` a backward function is marked, which
    `check_backward` checks together with that forward, and `options` are those of `check_backward`.
    """

    def mark(value: T) -> T:
        setattr(value, ATTRIBUTE, Mark(example, forward, init, options))
        return value

    return mark


def mark_of(value: Any) -> Mark | None:
    """The mark that the value itself has: a subclass does not inherit one."""
    own = getattr(value, "__dict__", {})
    mark = own.get(ATTRIBUTE) if isinstance(own, Mapping) else None
    return mark if isinstance(mark, Mark) else None
