"""Tests of a backward pass as people write them: each lets some mistakes through."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from gallery.entry import Example, Layer, Naive, Pair

Close = Callable[[Tensor, Tensor], bool]


def differentiable(layer: Layer, arguments: Sequence[Any]) -> list[int]:
    """The positions of the arguments that get a gradient."""
    names = list(signature(layer.forward).parameters)
    return [
        i
        for i, value in enumerate(arguments)
        if isinstance(value, Tensor)
        and (value.is_floating_point() or value.is_complex())
        and names[i] not in layer.not_differentiable
    ]


def by_hand(pair: Pair, layer: Layer, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> tuple[Any, ...]:
    forward, backward = pair
    with torch.no_grad():
        *_, cache = forward(*arguments)
        gradients = backward(*cotangents, cache)
    return gradients if isinstance(gradients, tuple) else (gradients,)


def by_autograd(pair: Pair, layer: Layer, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    leaves = list(arguments)
    positions = differentiable(layer, arguments)
    for i in positions:
        leaves[i] = arguments[i].detach().clone().requires_grad_()
    outputs = pair[0](*leaves)[: layer.outputs]
    wanted = [leaves[i] for i in positions]
    return torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True, materialize_grads=True)


def outputs_of(pair: Pair, layer: Layer, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(pair[0](*arguments)[: layer.outputs])


def random_cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(987654321)  # not a small one, which an example may have drawn from
    return [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in outputs]


def ones_cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.ones_like(v) for v in outputs]


def compare_with_autograd(
    pair: Pair,
    layer: Layer,
    arguments: Sequence[Any],
    *,
    close: Close = torch.allclose,
    cotangents: Callable[[Sequence[Tensor]], list[Tensor]] = random_cotangents,
    only: Sequence[int] | None = None,
) -> bool:
    """Every gradient that came back, or those of `only`, close to autograd's."""
    fed = cotangents(outputs_of(pair, layer, arguments))
    expected, actual = by_autograd(pair, layer, arguments, fed), by_hand(pair, layer, arguments, fed)
    pairs = list(zip(actual, expected, strict=False))
    return all(close(a, e) for a, e in (pairs if only is None else [pairs[i] for i in only]))


def one_difference(pair: Pair, layer: Layer, arguments: Sequence[Any], *, first: bool = False) -> bool:
    """One central difference per tensor, at a random element (or the first), within 1e-4 of the gradient there."""
    fed = random_cotangents(outputs_of(pair, layer, arguments))
    gradients = by_hand(pair, layer, arguments, [d.clone() for d in fed])
    generator = torch.Generator().manual_seed(1)
    h = 1e-5
    for position, gradient in zip(differentiable(layer, arguments), gradients, strict=True):
        tensor = arguments[position]
        k = 0 if first else int(torch.randint(0, tensor.numel(), (), generator=generator))
        costs = []
        for step in (h, -h):
            moved = tensor.clone()
            moved.view(-1)[k] += step
            changed = [*arguments[:position], moved, *arguments[position + 1 :]]
            outputs = outputs_of(pair, layer, changed)
            costs.append(sum((d * v).sum() for d, v in zip(fed, outputs, strict=True)))
        slope = (costs[0] - costs[1]) / (2 * h)
        if not abs(gradient.reshape(-1)[k] - slope) <= 1e-4 * abs(slope) + 1e-7:
            return False
    return True


def descends(pair: Pair, layer: Layer, arguments: Sequence[Any]) -> bool:
    """Twenty small steps along −gradient: the cost ½‖output‖² falls."""
    values = list(arguments)
    costs = []
    for _ in range(20):
        outputs = outputs_of(pair, layer, values)
        costs.append(sum(0.5 * v.square().sum() for v in outputs))
        gradients = by_hand(pair, layer, values, [v.clone() for v in outputs])
        for i, gradient in zip(differentiable(layer, values), gradients, strict=False):
            values[i] = values[i] - 1e-3 * gradient / (1e-12 + gradient.norm())
    return bool(costs[-1] < costs[0])


def norms_agree(a: Tensor, e: Tensor) -> bool:
    return bool((a.norm() - e.norm()).abs() <= 1e-5 * e.norm())


def _with(text: str, **options: Any) -> Naive:
    return Naive(text, lambda *given: compare_with_autograd(*given, **options))


ones = _with("a cotangent of ones, `allclose`", cotangents=ones_cotangents)
random_allclose = _with("a random cotangent, `allclose`, values as they come")
loose = _with(
    "a random cotangent, `allclose(rtol=1e-2, atol=1e-2)`", close=lambda a, e: torch.allclose(a, e, 1e-2, 1e-2)
)
looser = _with(
    "a random cotangent, `allclose(rtol=5e-2, atol=5e-2)`", close=lambda a, e: torch.allclose(a, e, 5e-2, 5e-2)
)
max_difference = _with("the largest |difference| below 1e-5", close=lambda a, e: bool((a - e).abs().max() < 1e-5))
norms = _with("the norms agree", close=norms_agree)
only_dx = _with("dx alone is compared", only=[0])
only_parameters = _with("the parameters' gradients alone are compared", only=[1])
one_sided = _with(
    "`(actual − expected).max() < 1e-5`, a maximum without the absolute value",
    close=lambda a, e: bool((a - e).max() < 1e-5),
    cotangents=ones_cotangents,
)
small_cotangent = _with(
    "a small cotangent, that of a mean", cotangents=lambda v: [d / 1e3 for d in random_cotangents(v)]
)
first_output = _with(
    "a random cotangent for the first output alone",
    cotangents=lambda v: [random_cotangents(v)[0], *map(torch.zeros_like, v[1:])],
)
one_hot = _with(
    "only below the negative log-likelihood, whose cotangent is −1 at the label",
    cotangents=lambda outputs: [-torch.eye(*v.shape, dtype=v.dtype) for v in outputs],
)
first_element = Naive(
    "a finite difference at the first element of each tensor", lambda *given: one_difference(*given, first=True)
)
random_element = Naive("a finite difference at one element of each tensor", one_difference)
cost_falls = Naive("the cost falls", descends)


def given(text: str, example: Example, naive: Naive = random_allclose) -> Naive:
    """The same test on arguments of its own, which hide the mistake."""
    return Naive(
        f"{naive.text}; {text}" if naive is not random_allclose else f"a random cotangent, {text}", naive.test, example
    )


ones_norms = _with("a cotangent of ones, the norms agree", close=norms_agree, cotangents=ones_cotangents)
