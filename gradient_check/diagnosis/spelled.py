"""PyTorch's composite functions, spelled as the elementary operators that they stand for, so that their terms show."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Spelled(TorchFunctionMode):
    """Inside of it they run so, and of a custom Function the forward alone, which autograd goes through."""

    def __enter__(self) -> "Spelled":
        self._apply = vars(Function)["apply"]
        Function.apply = classmethod(_forward_alone)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Function.apply = self._apply

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function."""
        spelled = None
        if function in SPELLINGS:
            with suppress(TypeError):  # a signature that is not spelled out here
                spelled = SPELLINGS[function](*args, **(kwargs or {}))
        return function(*args, **(kwargs or {})) if spelled is None else spelled


class _Context:
    """Takes what a forward keeps for its backward, and forgets it."""

    def __init__(self, wanted: int) -> None:
        self.needs_input_grad = (True,) * wanted

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None  # save_for_backward, mark_dirty, …


def _forward_alone(cls: Any, *args: Any) -> Any:
    own_context = cls.setup_context is Function.setup_context
    return cls.forward(_Context(len(args)), *args) if own_context else cls.forward(*args)


def _softmax(input: Tensor, dim: int = -1, dtype: Any = None, **_: Any) -> Tensor:
    p = torch.softmax(input.detach(), dim)
    return p * (1 + _changed(_less_mean(input, p, dim)))  # p dy − p Σ p dy, as two terms


def _log_softmax(input: Tensor, dim: int = -1, dtype: Any = None, **_: Any) -> Tensor:
    p = torch.softmax(input.detach(), dim)
    return p.log() + _changed(_less_mean(input, p, dim))


def _less_mean(x: Tensor, p: Tensor, dim: int) -> Tensor:
    """x − Σ p x; a masked x, −∞, has no weight."""
    x = x.where(x.isfinite(), 0.0)
    return x - (p * x).sum(dim, keepdim=True)


def _changed(x: Tensor) -> Tensor:
    """Zero, with the gradient of x."""
    return x - x.detach()


def _normalized(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    centered = x - x.mean(tuple(dims), keepdim=True)
    return centered * (centered.pow(2).mean(tuple(dims), keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    return _affine(_normalized(input, range(-len(normalized_shape), 0), eps), weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if not training:
        return None
    shape = (1, -1, *[1] * (input.ndim - 2))
    gamma, beta = (None if p is None else p.view(shape) for p in (weight, bias))
    return _affine(_normalized(input, [0, *range(2, input.ndim)], eps), gamma, beta)


SPELLINGS: dict[Any, Callable[..., Tensor | None]] = {  # None: these arguments are not spelled out
    **dict.fromkeys((torch.softmax, Tensor.softmax, F.softmax), _softmax),
    **dict.fromkeys((torch.log_softmax, Tensor.log_softmax, F.log_softmax), _log_softmax),
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
}
