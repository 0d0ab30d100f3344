"""What is fed beside the example itself: the places where a backward that is right once goes wrong."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from gradient_check.sizes import Sizes

CASES = {
    "layouts": "the cotangent, and the inputs, transposed, sliced, expanded (stride 0) and with offset storage",
    "batch": "one example less, one, an odd count, more than a block of 1,024, and none",
    "rows": "4,000 examples, where the example is in 16 bits: a sum that is kept in them shows",
    "axes": "size 1 on every axis in turn, if the reference takes it",
    "values": "zeros, next to zero, ties, ±1e4, all sizes between, in each argument in turn; two equal, and one twice",
    "repeats": "every index several times",
}
Layout = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Case:
    """Arguments and, where they matter, cotangents that are fed instead of the example's."""

    name: str
    group: str
    arguments: list[Any]
    cotangents: list[Tensor] | None = None  # None: drawn at random


def cases(
    groups: Sequence[str],
    arguments: Sequence[Any],
    differentiable: Sequence[int],
    names: Sequence[str],
    cotangents: Sequence[Tensor],
    generator: torch.Generator,
    sizes: Sizes,
) -> Iterator[Case]:
    """All cases of the groups that this example allows."""
    arguments = list(arguments)
    if "layouts" in groups:
        for layout, laid_out in LAYOUTS.items():
            changed = [laid_out(c) for c in cotangents]
            if any(c is not None for c in changed):
                fed = [c if new is None else new for c, new in zip(cotangents, changed, strict=True)]
                yield Case(f"cotangent {layout}", "layouts", arguments, fed)
        for layout in ("transposed", "channels last", "heads first", "sliced", "offset"):
            changed = [LAYOUTS[layout](v) if isinstance(v, Tensor) else None for v in arguments]
            if any(v is not None for v in changed):
                fed = [v if new is None else new for v, new in zip(arguments, changed, strict=True)]
                yield Case(f"inputs {layout}", "layouts", fed)
        for i in differentiable:
            if (new := expanded(arguments[i])) is not None:
                yield Case(f"{names[i]} expanded", "layouts", [*arguments[:i], new, *arguments[i + 1 :]])
    if "batch" in groups:
        for name, fed in sizes.batch():
            yield Case(name, "batch", fed)
    if "rows" in groups and any(torch.finfo(arguments[i].dtype).bits == 16 for i in differentiable):
        for name, fed in sizes.many():
            yield Case(name, "rows", fed)
    if "axes" in groups:
        for name, fed in sizes.ones(batch_too="batch" not in groups):
            yield Case(name, "axes", fed)
    if "values" in groups:
        for i in differentiable:
            for name, special in _special_values(arguments[i], generator):
                yield Case(f"{names[i]} {name}", "values", [*arguments[:i], special, *arguments[i + 1 :]])
        for i, mask in enumerate(arguments):
            if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.numel() and mask.dim():
                first = torch.cat([torch.zeros_like(mask[:1]), mask[1:]])
                for how, other in (("true everywhere", torch.ones_like(mask)), ("false in the first row", first)):
                    yield Case(f"{names[i]} {how}", "values", [*arguments[:i], other, *arguments[i + 1 :]])
        for i, j in pairwise(differentiable):
            if arguments[i].shape == arguments[j].shape:
                for how, other in (("equal to", arguments[i].clone()), ("the same tensor as", arguments[i])):
                    yield Case(f"{names[j]} {how} {names[i]}", "values", [*arguments[:j], other, *arguments[j + 1 :]])
    if "repeats" in groups:
        for i, value in enumerate(arguments):
            if isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32) and value.numel() > 1:
                fed = [*arguments[:i], repeated(value), *arguments[i + 1 :]]
                yield Case(f"{names[i]} repeated", "repeats", fed)


def repeated(integers: Tensor) -> Tensor:
    """Half of them twice. Those in ascending order may be offsets: they stay in order, and so do the first and last."""
    flat = integers.flatten()
    half = (len(flat) + 1) // 2
    if (flat.diff() >= 0).all():
        again = torch.cat([flat[:half].repeat_interleave(2)[: len(flat) - 1], flat[-1:]])
    else:
        again = torch.cat([flat[: len(flat) // 2], flat[:half].flip(0)])
    return again.view(integers.shape)


def exchanged(a: int, b: int, least: int) -> Layout:
    """The same values, with the strides of two dimensions exchanged, where there are so many dimensions at least."""

    def laid_out(tensor: Tensor) -> Tensor | None:
        if tensor.dim() < least or tensor.numel() == 0:
            return None
        return tensor.transpose(a, b).contiguous().transpose(a, b)

    return laid_out


def channels_last(tensor: Tensor) -> Tensor | None:
    """The same values, with dimension 1 next to each other in memory."""
    if tensor.dim() < 3 or tensor.numel() == 0:
        return None
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def sliced(tensor: Tensor) -> Tensor | None:
    """The same values, every second one of a storage twice as long; what lies between is not a number."""
    if tensor.dim() < 1 or tensor.numel() == 0:
        return None
    wide = _filler(tensor, (*tensor.shape[:-1], 2 * tensor.shape[-1]))
    wide[..., ::2] = tensor
    return wide[..., ::2]


def offset(tensor: Tensor) -> Tensor | None:
    """The same values, contiguous, from the fourth place of a storage on."""
    if tensor.numel() == 0:
        return None
    long = _filler(tensor, (tensor.numel() + 3,))
    long[3:] = tensor.flatten()
    return long[3:].view(tensor.shape)


def expanded(tensor: Tensor) -> Tensor | None:
    """The first row (or column) everywhere, with stride 0."""
    dim = next((d for d, size in enumerate(tensor.shape) if size > 1), None)
    if dim is None or tensor.numel() == 0:
        return None
    return tensor.narrow(dim, 0, 1).clone().expand(tensor.shape)


def from_one_number(tensor: Tensor) -> Tensor | None:
    """One number everywhere, with all strides 0: what `output.sum().backward()` hands over, up to a factor."""
    if tensor.numel() < 2:
        return None
    return tensor.flatten()[0].clone().expand(tensor.shape)


LAYOUTS: dict[str, Layout] = {
    "transposed": exchanged(0, -1, 2),
    "channels last": channels_last,
    "heads first": exchanged(1, 2, 4),  # as attention does with heads and time
    "sliced": sliced,
    "offset": offset,
    "expanded": expanded,
    "expanded from one number": from_one_number,
}


def _filler(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor.new_full(shape, torch.nan) if tensor.is_floating_point() else tensor.new_zeros(shape)


def _special_values(tensor: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    if tensor.numel() == 0:
        return
    draw = torch.rand(tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(tensor.device)
    draw = draw / 2 if tensor.numel() == 1 else draw
    small = draw.new_tensor(sqrt(torch.finfo(tensor.dtype).eps))
    small = torch.where(draw < 1 / 3, small, -small).to(tensor.dtype)
    yield "zeros", torch.where(draw < 0.5, torch.zeros_like(tensor), tensor)
    yield "all zero", torch.zeros_like(tensor)
    yield "next to zero", torch.where(draw < 2 / 3, small, tensor)
    if tensor.dim() and tensor.shape[-1] > 1:
        tied = tensor.clone()
        pairs = tensor.shape[-1] // 2
        tied[..., 1 : 2 * pairs : 2] = tensor[..., 0 : 2 * pairs : 2]
        yield "tied", tied
    large = draw.new_tensor(1e4)
    large = torch.where(draw < 0.25, large, -large).to(tensor.dtype)
    yield "±1e4", torch.where(draw < 0.5, large, tensor)
    yield "of all sizes", torch.where(draw < 0.5, tensor.sign() * (10 ** (16 * draw - 4)).to(tensor.dtype), tensor)
