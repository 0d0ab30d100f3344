"""What a hand-written backward is compared with: autograd, a forward-mode dot product, central differences."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Forward = Callable[..., Any]  # arguments → output, or (output, cache, …)
Backward = Callable[..., Any]  # (d_output, cache) → one gradient per differentiable argument


def output_of(result: Any) -> Tensor:
    """The output of a forward in the contract `output, cache, … = forward(…)`, or of one that returns it alone."""
    return result[0] if isinstance(result, tuple) else result


def autograd_gradients(
    forward: Forward, arguments: Sequence[Any], differentiable: Sequence[int], d_output: Tensor
) -> list[Tensor]:
    """Jᵀ d_output by autograd through the same forward, for each differentiable argument."""
    leaves = list(arguments)
    for i in differentiable:
        leaves[i] = arguments[i].detach().clone().requires_grad_()
    with torch.enable_grad():
        output = output_of(forward(*leaves))
        gradients = torch.autograd.grad(output, [leaves[i] for i in differentiable], d_output, allow_unused=True)
    return [torch.zeros_like(leaves[i]) if g is None else g for i, g in zip(differentiable, gradients, strict=True)]


def directional_derivative(
    forward: Forward, arguments: Sequence[Any], differentiable: Sequence[int], directions: Sequence[Tensor]
) -> Tensor:
    """J u in forward mode: how the output moves when the arguments move along `directions`."""
    with forward_ad.dual_level():
        duals = list(arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first dual loads a part of torch that warns of itself
            for i, u in zip(differentiable, directions, strict=True):
                duals[i] = forward_ad.make_dual(arguments[i].detach().clone(), u)
        tangent = forward_ad.unpack_dual(output_of(forward(*duals))).tangent
    return tangent


def central_differences(function: Callable[[], Tensor], tensor: Tensor, step: float = 1e-5) -> Tensor:
    """(f(v + h) − f(v − h)) / 2h for every element v of `tensor`, which `function` reads and which is restored.

    `function` returns a 0-d tensor. In float64 the error is about h² from the third derivative and 1e-16 |f| / h
    from rounding; h = 1e-5 makes both some 1e-10.
    """
    result = torch.empty_like(tensor)
    flat, out = tensor.view(-1), result.view(-1)
    for i in range(flat.numel()):
        value = flat[i].item()
        flat[i] = value + step
        above = function()
        flat[i] = value - step
        below = function()
        flat[i] = value
        out[i] = (above - below) / (2 * step)
    return result
