"""Where a gradient contradicts an exact oracle: is forward smooth there?

That is measured on forward's own slopes to the two sides, and on nothing else. Where it is smooth the oracle is final.
Where it has a kink any value between the two slopes is right, but not all elements may claim theirs at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from gradient_check.claims import Claims, Direction
from gradient_check.differences import one_sided
from gradient_check.exact import Exact, Truth
from gradient_check.oracles import contiguous, doubled, outputs_of, random_direction
from gradient_check.run import Run
from gradient_check.slopes import summands, summands_along
from gradient_check.tolerances import FLOOR

LOOKED_AT = 64  # elements; of more a random sample
SMOOTH_ONES = 8  # elements where forward is smooth and the oracle stands; no more are looked for
BESIDE = 1e-7  # of max(1, |v|): so near, a smooth gradient is the same within ROUGHLY of its root mean square
ROUGHLY = 1e-4
DRAWS = 4  # of points beside
SINGLE = 1e-5  # what float32 inside an oracle may be off by
SURER = 10  # times, that differences must be to make a verdict inconclusive


def settled(claims: Claims, actual: Tensor, exact: Exact, truth: Truth, run: Run) -> Claims:
    """The claims, with the measured slopes at those elements of `actual` that contradict them and lie at a kink.

    Where the oracle alone has a kink, and beside it says what `actual` is, it is the oracle that is wrong: forward is
    smooth there but made of pieces that are not, as max(x, 0) + log(1 + exp(−|x|)) is at 0.
    """
    given = actual.detach().cpu()
    jumps = truth.jumps(claims.name)
    if jumps is None or not jumps.any():
        looked_at = disputed = claims.disputed(given)
    else:
        disputed = exact.of_gradient(claims.name, run, truth, ~jumps).disputed(given)
        looked_at = disputed | jumps
    count = int(looked_at.sum())
    if not count or not given.isfinite().all():
        return claims
    indices = looked_at.nonzero()
    if count > LOOKED_AT:
        indices = indices[torch.randperm(count, generator=torch.Generator().manual_seed(0), device="cpu")[:LOOKED_AT]]
    low, high, kinks = claims.value.clone(), claims.value.clone(), torch.zeros_like(looked_at)
    calm = torch.zeros_like(looked_at)  # jumps that differences do not see
    beside = cache(lambda: [exact.beside(run, BESIDE, draw)[claims.name] for draw in range(DRAWS)])
    surer = final = 0
    sides = _sides(claims.name, given, run, exact, indices)
    for where, (left, right, slack) in zip(map(tuple, indices.tolist()), sides, strict=True):
        if not (isfinite(left) and isfinite(right)):
            continue  # the border of where forward is defined, or steeper than steps can tell: the oracle knows
        bounds = min(left, right) - slack, max(left, right) + slack
        value, got = claims.value[where].item(), given[where].item()
        off, rms = abs(got - value), max(claims.rms, abs(value), abs(got))
        if abs(right - left) > 2 * slack:
            low[where], high[where], kinks[where] = *bounds, True
        elif not disputed[where]:
            calm[where] = bounds[0] <= value <= bounds[1]
        elif bounds[0] <= got <= bounds[1] and not bounds[0] <= value <= bounds[1]:
            if off > ROUGHLY * rms and all(abs(at[where].item() - got) <= ROUGHLY * rms for at in beside()):
                low[where], high[where], kinks[where] = *bounds, True
            elif SURER * slack < off < SINGLE * rms:
                surer += 1
        elif (final := final + 1) == SMOOTH_ONES:
            return claims
    if count > LOOKED_AT and int(kinks.sum()) == LOOKED_AT:  # a random sample without exception speaks for the rest
        kinks |= looked_at
        low = torch.where(looked_at, torch.minimum(low, given), low)
        high = torch.where(looked_at, torch.maximum(high, given), high)
    if surer == int((disputed & ~kinks).sum()) > 0:
        said = f"the oracles disagree: central differences are {SURER} times surer, and side with backward"
        claims = replace(claims, inconclusive=f"{said} in all {surer} elements where the {claims.oracle} differs")
    if not kinks.any() and not calm.any():
        return claims
    claims = replace(exact.of_gradient(claims.name, run, truth, ~(kinks | calm)), inconclusive=claims.inconclusive)
    return replace(claims, low=low, high=high, kinks=kinks) if kinks.any() else claims


def _sides(name: str, given: Tensor, run: Run, exact: Exact, indices: Tensor) -> Iterator[tuple[float, float, float]]:
    """The slopes to the left and to the right at each index, and what rounding may make of them."""
    terms, point = summands_along(exact.forward, [run.position(name)], run)
    dtype = run.argument(name).dtype
    units = FLOOR[dtype] * torch.finfo(dtype).eps
    places = [tuple(index) for index in indices.tolist()]
    for left, right, uncertain in one_sided(terms, point, places, [given[place].item() for place in places]):
        yield left, right, 2 * uncertain + units * max(abs(left), abs(right))


def together(forward: Callable[..., Any], run: Run, generator: torch.Generator) -> Iterator[Direction]:
    """At a tie, where equal values move together: where forward is smooth then, gradients must add up to its slope.

    An element alone may claim the whole cotangent of a maximum, and so may its equal; both at once may not. Zeros move
    apart from the rest, because other kinks lie there. Raises whatever the forward pass raises.
    """
    positions = run.subject.differentiable
    fixed, cotangents = doubled(contiguous(run.arguments)), doubled(contiguous(run.cotangents))
    points: Sequence[Tensor] = [fixed[i] for i in positions]
    values, which = torch.cat([v.flatten() for v in points]).unique(return_inverse=True)
    move = random_direction(values, generator)[which]
    groups = torch.stack([move * (values[which] != 0), move * (values[which] == 0)])

    def terms(t: Tensor) -> Tensor:
        fed = list(fixed)
        for i, v, moved in zip(positions, points, (t @ groups).split([v.numel() for v in points]), strict=True):
            fed[i] = v + moved.view(v.shape)
        with torch.no_grad():
            return summands(cotangents, outputs_of(forward(*fed)))

    norms = [g.detach().double().norm().item() for g in run.gradients.values() if g is not None]
    size = groups.norm().item() * sum(norm * norm for norm in norms) ** 0.5
    dtype = run.argument(next(iter(run.gradients))).dtype
    at_rest = torch.zeros(2, dtype=torch.float64, device=values.device)
    for group, (left, right, uncertain) in zip(groups, one_sided(terms, at_rest, [(0,), (1,)]), strict=True):
        slack = 4 * uncertain + FLOOR[dtype] * torch.finfo(dtype).eps * size
        if isfinite(left) and isfinite(right) and abs(right - left) <= slack:
            parts = [
                part.view(v.shape) for part, v in zip(group.split([v.numel() for v in points]), points, strict=True)
            ]
            said = "equal values together claim {actual:.6g} where the slope is {value:.6g}: a tie was not shared out"
            yield Direction(
                "ties", "differences", parts, left, slack, size, "what central differences leave open", said, "kink"
            )
