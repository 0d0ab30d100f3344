"""Wrong functions of layers and of the tape: each is given the right function, and then what that one is given."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manual_backprop.layers import batch_norm
from manual_backprop.tape import Tape

Right = Callable[..., Any]


def flipped(right: Right, dy: Tensor, cache: Any) -> Tensor:
    return right(dy, cache).flip(-1)


def swapped(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    dx, dgamma, dbeta = right(dy, cache)
    return dx, dbeta, dgamma


def with_n(right: Right, x: Tensor, *arguments: Tensor) -> tuple[Any, ...]:
    """The running variance of n instead of n − 1."""
    y, cache, mean, var = right(x, *arguments)
    n = x[:, 0].numel()
    old = 0.9 * arguments[3]
    return y, cache, mean, old + (var - old) * (n - 1) / n


def twice_as_fast(right: Right, x: Tensor, *arguments: Tensor) -> tuple[Any, ...]:
    return right(x, *arguments, 0.2)


def of_evaluation(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    """BN4 for BN3: the mean and the variance taken for constants."""
    return batch_norm.backward_of_evaluate(dy, cache)


def only_through_the_block(right: Right, tape: Tape, label: str, dy: Tensor, da: Tensor) -> Tensor:
    return right(tape, label, da)


def without_a_way_around(right: Right, tape: Tape, layer: Any, name: str, *arguments: Any, **options: Any) -> Any:
    """σ behind a block reads the block's last norm alone."""
    if name.endswith(".norm2.a"):
        arguments = (tape.outputs[name.removesuffix(".a")],)
    return right(tape, layer, name, *arguments, **options)


def without_activation(right: Right, tape: Tape, layer: Any, name: str, *d_outputs: Tensor, **options: Any) -> Any:
    """What comes back to σ of the first block goes past it."""
    gradients = right(tape, layer, name, *d_outputs, **options)
    return d_outputs[0] if name == "stage2.block1.norm1.a" else gradients


def without_the_sum_of_softmax(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, P, dropped, mask, keep, s = cache
    dS = P * (dy @ v.mT if mask is None else dy @ v.mT * mask / keep)
    return s * dS @ k, s * dS.mT @ q, dropped.mT @ dy


def keys_without_the_scale(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    dq, dk, dv = right(dy, cache)
    return dq, dk / cache[-1], dv


def values_through_what_was_not_dropped(right: Right, dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, P, _, *rest = cache
    return right(dy, (q, k, v, P, P, *rest))


def seeing_ahead(right: Right, q: Tensor, k: Tensor, v: Tensor, *noise: Any) -> Any:
    """Unmasked attention."""
    _, (*_, s) = right(q, k, v, *noise)
    P = (s * q @ k.mT).softmax(-1)
    mask, keep = noise or (torch.ones_like(P), 1.0)
    dropped = P * mask / keep
    return dropped @ v, (q, k, v, P, dropped, mask, keep, s)


def forgetting(
    right: Right, dy: Tensor, cache: Any, *, gradient: int, use: Callable[[Any], bool] = lambda cache: True
) -> Any:
    """The weight's gradient is dropped in those calls that `use` says, by their cache."""
    gradients = right(dy, cache)
    several = gradients if isinstance(gradients, tuple) else (gradients,)
    if use(cache):
        several = tuple(torch.zeros_like(g) if i == gradient else g for i, g in enumerate(several))
    return several if isinstance(gradients, tuple) else several[0]


def stopped_in_time(right: Right, dh: Tensor, cache: Any) -> tuple[Tensor, ...]:
    """Backpropagation through no time."""
    dx, dh, *gradients = right(dh, cache)
    return dx, torch.zeros_like(dh), *gradients
