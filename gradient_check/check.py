"""One call that checks a hand-written pair of functions: `check_backward`."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from gradient_check.compare import Report, Row, compare_gradients
from gradient_check.oracles import Backward, Forward, autograd_gradients, directional_derivative

DOT_PRODUCT_TOLERANCE = 1e-12
STREAM = 0x0DD5EED  # keeps the cotangent from being the very numbers that an example drew from the same small seed


def check_backward(
    forward: Forward,
    backward: Backward,
    example: Sequence[Any],
    *,
    not_differentiable: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """Check `output, cache, … = forward(*example)` with `backward(d_output, cache)`, in float64, on a random cotangent.

    `backward` returns one gradient per floating-point argument of forward, in forward's order, except those named in
    `not_differentiable` (targets, masks, noise, statistics). Both run under `torch.inference_mode()`, so neither can
    lean on autograd. The rows:

    - the gradient of each argument against autograd through the same forward;
    - `⟨d_output, J u⟩ = ⟨Jᵀ d_output, u⟩` with J u in forward mode and random directions u, no element near zero;
    - `pure`: neither function wrote to an argument or to the cotangent, and a second call with the same cache gave the
      same gradients.

    Raises ValueError for an argument that is not float64, or when there is nothing to differentiate.
    """
    names = list(signature(forward).parameters)[: len(example)]
    differentiable = [
        i
        for i, value in enumerate(example)
        if isinstance(value, Tensor) and value.is_floating_point() and names[i] not in not_differentiable
    ]
    if not differentiable:
        raise ValueError("none of the arguments is differentiable: there is nothing to check")
    for i in differentiable:
        if example[i].dtype != torch.float64:
            raise ValueError(f"the argument {names[i]} is {example[i].dtype}: check at float64")
    generator = torch.Generator().manual_seed(STREAM ^ seed)
    before = [value.clone() if isinstance(value, Tensor) else value for value in example]

    with torch.inference_mode():
        output, cache = forward(*example)[:2]
        d_output = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device)
    d_output = d_output.clone()  # made outside of inference mode, autograd may see it
    with torch.inference_mode():
        kept = d_output.clone()
        first = _clones(backward(d_output, cache))
        second = _clones(backward(d_output, cache))

    expected = autograd_gradients(forward, example, differentiable, d_output)
    wanted = {f"d{names[i]}": gradient for i, gradient in zip(differentiable, expected, strict=True)}
    if len(first) != len(wanted):
        reason = f"backward returned {len(first)} gradients for the {len(wanted)} arguments {', '.join(wanted)}"
        return Report((Row("gradients", "gradients", (), False, reason),))
    rows = list(compare_gradients(dict(zip(wanted, first, strict=True)), wanted).rows)
    if all(row.passed for row in rows):
        rows.append(_dot_product(forward, example, differentiable, d_output, first, generator))
    untouched = torch.equal(kept, d_output) and all(
        torch.equal(a, b) for a, b in zip(before, example, strict=True) if isinstance(a, Tensor)
    )
    repeated = all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None)
    reason = ""
    if not untouched:
        reason = "an argument or the cotangent was written to"
    elif not repeated:
        reason = "a second call with the same cache gave other gradients"
    rows.append(Row("pure", "pure", (), untouched and repeated, reason, 0.0, 0.0))
    return Report(tuple(rows))


def _dot_product(
    forward: Forward,
    example: Sequence[Any],
    differentiable: Sequence[int],
    d_output: Tensor,
    gradients: Sequence[Tensor],
    generator: torch.Generator,
) -> Row:
    directions = []
    for i in differentiable:
        u = torch.rand(example[i].shape, generator=generator, dtype=torch.float64) + 0.5
        sign = 2.0 * torch.randint(0, 2, example[i].shape, generator=generator) - 1
        directions.append((u * sign).to(example[i].device))
    forward_terms = d_output * directional_derivative(forward, example, differentiable, directions)
    backward_terms = torch.cat([(g.detach().clone() * u).flatten() for g, u in zip(gradients, directions, strict=True)])
    error = (forward_terms.sum() - backward_terms.sum()).abs().item()
    size = forward_terms.norm().item() + backward_terms.norm().item()
    relative = error / size if size else 0.0
    passed = relative <= DOT_PRODUCT_TOLERANCE
    reason = "" if passed else f"⟨d_output, J u⟩ and ⟨Jᵀ d_output, u⟩ differ by {error:.3g}"
    return Row("dot product", "dot product", (), passed, reason, relative, relative, DOT_PRODUCT_TOLERANCE)


def _clones(gradients: Any) -> tuple[Any, ...]:
    """What backward returned, as a tuple, safe from later writes; None, a missing gradient, stays None."""
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return tuple(None if gradient is None else gradient.clone() for gradient in gradients)
