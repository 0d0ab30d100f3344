"""Arguments of other sizes, for a forward that may check no bounds: none may be shorter than another promises."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from itertools import count as from_number
from math import prod
from typing import Any

import torch
from torch import Tensor

from gradient_check.oracles import outputs_of
from gradient_check.report import quoted
from gradient_check.truth import doubled, plain

MANY = 4_000  # examples: so long a sum, kept in 16 bits, is off by 10 units of rounding, and by 3 in blocks of eight
COSTLY = 2_000_000  # elements, which are too many to be fed for that
PROBES = 64  # sets of arguments that may be the batch
LONG = 1_000  # an axis of which a reference is not asked for more
Outputs = Callable[[Sequence[Any]], Sequence[Tensor]]
Axis = tuple[int, int]  # which argument, and which of its axes
Fed = Iterator[tuple[str, list[Any]]]  # a case's name and its arguments


class NotTaken(Exception):
    """Why arguments are not fed."""


@dataclass
class Sizes:
    """Arguments of other sizes than the example's; `notes` say which were skipped, and why."""

    arguments: Sequence[Any]
    names: Sequence[str]
    outputs: Sequence[Tensor]  # of the example
    run: Outputs  # forward
    reference: Callable[..., Any] | None
    notes: list[str]

    def __post_init__(self) -> None:
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else () for v in self.arguments]
        self.lengths = {(i, axis): n for i, shape in enumerate(shapes) for axis, n in enumerate(shape)}

    @cached_property
    def rows(self) -> list[Axis]:
        """The first axes of the arguments that are as long as the batch, and of which the reference says the same."""
        firsts = {axis: n for axis, n in self.lengths.items() if axis[1] == 0}
        length = len(self.outputs[0]) if self.outputs[0].dim() else next(iter(firsts.values()), 0)  # a cost has none
        rows = [axis for axis, n in firsts.items() if n == length > 1]
        if not rows or self.reference is None:
            return rows
        for some in islice(self._some_of(rows), PROBES):
            try:
                self._ask_batch(some)
            except NotTaken as error:
                refused = error
            else:
                return some
        self._skip("smaller batches", refused)
        return []

    def batch(self) -> Fed:
        """One example less, one, and none, along the first axis of all arguments that are as long as the batch.

        An argument whose other axis is as long might be matched with one of them: then only the reference can tell.
        """
        length = self._length(self.rows)
        if inner := self._ambiguous():
            also = f"{self._said(inner)} is as long as the batch"
            self._skip("smaller batches", f"{also}; choose sizes that are all different, or give a reference")
            return
        for name, count in (("one example less", length - 1), ("one example", 1), ("no example", 0)):
            if not self.rows:
                return
            if not count and self.reference is None and any(length in shape[1:] for shape in _shapes(self.outputs)):
                self._skip(name, f"another axis of the output is {length} long too, and may be a weight's")
                return
            if not count and len(whole := self._integers(self.rows)) < len(self._integers(self.lengths)) and whole:
                self._skip(name, f"{self._said(whole)} may divide other integers, of which some would belong to none")
                return
            try:
                fed = resized(self.arguments, self.names, self.rows, count)
            except NotTaken as error:
                self._skip(name, error)
                continue
            try:
                self._asked(fed)
                made = self._made(fed)
            except NotTaken as error:  # fewer are not taken either
                self._skip(f"{name} and fewer" if count else name, error)
                return
            if count > 1 and not _followed(made, self.outputs, length, count):
                self._skip("smaller batches", f"{self._said(self.rows)} of {count} gives an output of another shape")
                return
            yield name, fed

    def many(self) -> Fed:
        """MANY examples, all of them again and again, where `batch` may change their number too."""
        length = self._length(self.rows)
        if not 0 < length < MANY or self._ambiguous():
            return
        name = f"{MANY:,} examples"
        shapes = _shapes([v for v in (*self.arguments, *self.outputs) if isinstance(v, Tensor)])
        size = sum(prod(MANY if n == length else n for n in shape) for shape in shapes)
        try:
            if size > COSTLY:
                raise NotTaken(f"there would be {size:,} elements")
            fed = resized(self.arguments, self.names, self.rows, MANY)
            for i, _ in self.rows:
                if fed[i].is_floating_point():  # integers stay in order, as `resized` leaves them
                    fed[i] = self.arguments[i][torch.arange(MANY, device=fed[i].device) % length]
            self._asked(fed)
            if not _followed(self._made(fed), self.outputs, length, MANY):
                raise NotTaken(f"{self._said(self.rows)} of {MANY:,} gives an output of another shape")
        except NotTaken as error:
            self._skip(name, error)
        else:
            yield name, fed

    def ones(self, batch_too: bool) -> Fed:
        """Each axis of size 1, with all that are as long, if the reference takes it; the batch too if `batch_too`."""
        groups = [self.rows] if batch_too else []
        for length in dict.fromkeys(n for n in self.lengths.values() if n > 1):
            groups.append([axis for axis in self._as_long_as(length) if axis not in self.rows])
        groups = [axes for axes in groups if axes]
        if groups and self.reference is None:
            self._skip("axes of size 1 other than the batch", "only a reference shows that forward takes them")
            return
        for axes in groups:
            name = f"size 1: {self._said(axes)}"
            try:
                self._asked(resized(self.arguments, self.names, axes, self._unlike(axes)))
                fed = resized(self.arguments, self.names, axes, 1)
                wanted, shapes = _shapes(self._asked(fed)), _shapes(self._made(fed))
                if wanted[: len(shapes)] != shapes:
                    raise NotTaken(f"the reference's output is of shape {wanted}, forward's of {shapes}")
            except NotTaken as error:
                self._skip(name, error)
                continue
            yield name, fed

    def _ambiguous(self) -> list[Axis]:
        """Axes beside the batch that are as long; none where a reference tells them apart."""
        length = self._length(self.rows) if self.reference is None else 0
        return [axis for axis in self._as_long_as(length) if axis not in self.rows] if length else []

    def _length(self, axes: Sequence[Axis]) -> int:
        return self.lengths[axes[0]] if axes else 0

    def _integers(self, axes: Iterable[Axis]) -> list[Axis]:
        return [axis for axis in axes if not self.arguments[axis[0]].is_floating_point()]

    def _as_long_as(self, length: int) -> list[Axis]:
        return [axis for axis, n in self.lengths.items() if n == length]

    def _unlike(self, axes: Sequence[Axis]) -> int:
        """A prime that no axis is as long as, and longer than these unless they are long.

        A size of 1 would be broadcast, and so would half of 2 or 3; a reference may have too many rows without a word.
        """
        least = max(5, self._length(axes) if self._length(axes) < LONG else 0)
        primes = (n for n in from_number(least) if all(n % divisor for divisor in range(2, n)))
        return next(n for n in primes if n not in self.lengths.values())

    def _some_of(self, rows: Sequence[Axis]) -> Iterator[list[Axis]]:
        """All integers, which may be lengths or targets, with as few others as possible; for a cost, as many."""
        whole = self._integers(rows)
        others = [axis for axis in rows if axis not in whole]
        counts = range(len(others) + 1)
        for count in counts if self.outputs[0].dim() else reversed(counts):
            for some in combinations(others, count):
                if whole or some:
                    yield [*whole, *some]

    def _ask_batch(self, rows: Sequence[Axis]) -> None:
        """Raises NotTaken unless the reference gives one output per row, for other numbers of rows too."""
        length = self._length(rows)
        for count in (self._unlike(rows), length - 1):
            made = self._asked(resized(self.arguments, self.names, rows, count))
            if not _followed(made[: len(self.outputs)], self.outputs, length, count):
                raise NotTaken(f"the reference's output does not have {count} rows where {self._said(rows)} has")

    def _said(self, axes: Sequence[Axis]) -> str:
        return ", ".join(f"axis {axis} of {self.names[i]}" for i, axis in axes)

    def _asked(self, fed: Sequence[Any]) -> Sequence[Tensor]:
        if self.reference is None:
            return ()
        try:
            with torch.no_grad():
                return outputs_of(self.reference(*doubled(plain(fed))))
        except Exception as error:  # it is not made for this size
            raise NotTaken(f"the reference raised {quoted(error)}") from error

    def _made(self, fed: Sequence[Any]) -> Sequence[Tensor]:
        try:
            return self.run(fed)
        except Exception as error:  # it is not made for this size
            raise NotTaken(f"forward raised {quoted(error)}") from error

    def _skip(self, name: str, why: NotTaken | str) -> None:
        self.notes.append(f"skipped {name}: {why}")


def resized(arguments: Sequence[Any], names: Sequence[str], axes: Sequence[Axis], count: int) -> list[Any]:
    """The first `count` places of the axes, all of one length; where that is too short, the last again and again.

    So integers in ascending order, which may be offsets, stay in order. Integers that may be places on the axes, or
    their length, stay inside: those that would lie beyond the new end become the largest of the argument's own that do
    not. Raises NotTaken where there is none, and where a number among the arguments is the length itself.
    """
    fed, length = list(arguments), arguments[axes[0][0]].shape[axes[0][1]]
    ends = [(length, count)]
    for i, axis in axes:
        if count <= length:
            fed[i] = fed[i].narrow(axis, 0, count).contiguous()
        else:
            fed[i] = fed[i].index_select(axis, torch.arange(count, device=fed[i].device).clamp(max=length - 1))
        ends.append((arguments[i].numel(), fed[i].numel()))
    for i, (name, value) in enumerate(zip(names, arguments, strict=True)):
        if isinstance(value, Tensor):
            if not value.is_floating_point() and value.dtype != torch.bool:
                fed[i] = _inside(name, value, fed[i], ends)
        elif _mentions(value, length):
            raise NotTaken(f"{name} = {value!r} may be the length {length} that would change")
    return fed


def _inside(name: str, own: Tensor, fed: Tensor, ends: Sequence[tuple[int, int]]) -> Tensor:
    """`fed` with no place beyond an axis or a tensor that had all of `own` inside: `ends` are its old and new end."""
    largest = int(own.max()) if own.numel() else -1
    limits = [new if largest == old else new - 1 for old, new in ends if 0 <= largest <= old]
    if not limits or not (beyond := fed > min(limits)).any():
        return fed
    inside = own[(own >= 0) & (own <= min(limits))]
    if not inside.numel():
        raise NotTaken(f"{name} may hold places on the axis that would change, all of them beyond its new end")
    return torch.where(beyond, inside.max(), fed)


def _mentions(value: Any, length: int) -> bool:
    if isinstance(value, list | tuple):
        return any(_mentions(item, length) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and value == length


def _followed(made: Sequence[Tensor], before: Sequence[Tensor], length: int, count: int) -> bool:
    """Nothing changed but that what was as long as the batch may be `count` now; the first output, no cost, must be."""
    return all(
        len(new) == len(old) and all(a == b or (a, b) == (count, length) for a, b in zip(new, old, strict=True))
        for new, old in zip(_shapes(made), _shapes(before), strict=True)
    ) and (not made[0].dim() or len(made[0]) == count)


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]
