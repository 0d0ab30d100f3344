"""Arguments of other sizes, for a forward that may check no bounds: none may be shorter than another promises."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, islice
from itertools import count as from_number
from math import prod
from time import thread_time
from typing import Any

import torch
from torch import Tensor

from gradient_check.lines import GOLDEN
from gradient_check.oracles import contiguous, doubled, outputs_of
from gradient_check.report import Diagnosis, Notes, Row, quoted
from gradient_check.subject import Subject

MANY = 4_000  # examples: a sum so long that is kept in 16 bits is off by far more than one that is not
COSTLY = 4_000_000  # elements, which are too many to be fed for that
PROBES = 64  # sets of arguments that may be the batch
LONG = 1_000  # an axis of which a reference is not asked for more
BEYOND = 1_031  # examples: more than a block of 1,024, and a prime
SOME = 147  # of which forward must not be slow, or 1,031 may take all time and memory
SLOW = 0.01  # seconds
MOST = 300_000  # elements of an argument or an output
Axis = tuple[int, int]  # which argument, and which of its axes
Fed = Iterator[tuple[str, list[Any]]]  # a case's name and its arguments


class NotTaken(Exception):
    """Why arguments are not fed."""


@dataclass
class Sizes:
    """Arguments of other sizes than the example's; `notes` say which were skipped, and why.

    `failures` are rows for sizes that are wrong before any gradient is asked for.
    """

    subject: Subject
    arguments: Sequence[Any]
    outputs: Sequence[Tensor]  # of the example
    reference: Callable[..., Any] | None
    notes: Notes
    enter: Callable[[str], Row | None] = lambda case: None  # goes into a case, or says that a process died there
    isolated: bool = False  # a death is no harm
    failures: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else () for v in self.arguments]
        shapes = [shape[:-1] if i in self.subject.structure.pairs else shape for i, shape in enumerate(shapes)]
        self.lengths = {(i, axis): n for i, shape in enumerate(shapes) for axis, n in enumerate(shape)}
        self.whole = [axis for axis in self.lengths if _is_whole(self.arguments[axis[0]])]

    @cached_property
    def shared(self) -> list[Axis]:
        """The first axes of the arguments that are as long as the batch, and of which the reference says the same.

        An argument whose other axis is as long might be matched with one of them. Without a reference, forward is asked
        whether it is, if torch's own operators make it, which check shapes.
        """
        firsts = {axis: n for axis, n in self.lengths.items() if axis[1] == 0}
        length = len(self.outputs[0]) if self.outputs[0].dim() else next(iter(firsts.values()), 0)  # a cost has none
        shared = [axis for axis, n in firsts.items() if n == length > 1]
        inner = [axis for axis, n in self.lengths.items() if n == length and axis not in shared]
        if not shared or (self.reference is None and not inner):
            return shared
        also = f"{self._said(inner)} is as long as the batch; choose sizes that are all different, or give a reference"
        try:
            if row := self.enter("other batches"):  # only what is not on trial was asked
                raise NotTaken(row.reason)
            if self.reference is None:
                _check_operators(self.subject.forward, self.arguments, also)
            return self._asked_for_shared(shared)
        except NotTaken as error:
            self.notes.add(str(error), "other batches")
            return []

    def batch(self) -> Fed:
        """One example less, one, an odd count, more than a block, and none, in all arguments that share them.

        In 16 bits `many` feeds as many.
        """
        length = self.lengths[self.shared[0]] if self.shared else 0
        counts = {length - 1: "one example less", 1: "one example", 2 * length + 1: f"{2 * length + 1:,} examples"}
        beyond = {} if torch.finfo(self.outputs[0].dtype).bits == 16 else {BEYOND: f"{BEYOND:,} examples"}
        yield from self._of({**counts, **beyond, 0: "an empty batch"})

    def _of(self, counts: Mapping[int, str]) -> Fed:
        length = self.lengths[self.shared[0]] if self.shared else 0
        for count, name in counts.items():
            if not self.shared or MANY <= count <= length:
                continue
            if row := self.enter(name):
                self.failures.append(row)
                continue
            try:
                self._refuse(count, length)
                fed = resized(self.arguments, self.subject.names, self.shared, count)
            except NotTaken as error:
                self.notes.add(str(error), name)
                continue
            try:
                if (made := self._agreed(name, fed)) is None:
                    continue
                if count > 1 and not _followed(made, self.outputs, length, count):
                    raise NotTaken(f"{self._said(self.shared)} of {count} gives an output of another shape")
            except NotTaken as error:  # others are not taken either
                self.notes.add(str(error), f"{name} and other batches" if count else name)
                return
            yield name, fed

    def many(self) -> Fed:
        """MANY examples, where `batch` may change their number too."""
        yield from self._of({MANY: f"{MANY:,} examples"})

    def ones(self, batch_too: bool) -> Fed:
        """Each axis of size 1, with all that are as long, if the reference takes it; the batch too if `batch_too`.

        Without a reference, forward is asked itself, in isolation only.
        """
        groups = [self.shared] if batch_too else []
        for length in dict.fromkeys(n for n in self.lengths.values() if n > 1):
            groups.append([axis for axis, n in self.lengths.items() if n == length and axis not in self.shared])
        groups = [axes for axes in groups if axes]
        if groups and self.reference is None and not self.isolated:
            why = "only a reference shows that forward takes them, or isolation"
            self.notes.add(why, "axes of size 1 other than the batch")
            return
        for axes in groups:
            name = f"{self._said(axes)} of size 1"
            try:
                if row := self.enter(name):
                    if self.reference is None:
                        raise NotTaken(f"{row.reason}, and no reference shows that it must take this size")
                    self.failures.append(row)
                    continue
                length, unlike = self.lengths[axes[0]], _unlike(self.lengths.values(), self.lengths[axes[0]])
                asked = self._asked(resized(self.arguments, self.subject.names, axes, unlike))
                fed = resized(self.arguments, self.subject.names, axes, 1)
                if (made := self._agreed(name, fed)) is None:
                    continue
                if self.reference is None and not (
                    _alike(asked, self.outputs, length, unlike) and _alike(made, self.outputs, length, 1)
                ):
                    raise NotTaken("forward's output is of another shape")
            except NotTaken as error:
                self.notes.add(str(error), name)
                continue
            yield name, fed

    def _refuse(self, count: int, length: int) -> None:
        """Raises NotTaken where so many examples may do harm or take long."""
        if not count and self.reference is None and any(length in shape[1:] for shape in _shapes(self.outputs)):
            raise NotTaken(f"another axis of the output is {length} long too, and may be a weight's")
        whole = [axis for axis in self.shared if axis in self.whole]
        if not count and whole and len(whole) < len(self.whole):
            raise NotTaken(f"{self._said(whole)} may divide other integers, of which some would belong to none")
        if count > length:
            grown = [self.arguments[i].numel() * count // length for i, _ in self.shared]
            grown += [prod(count if n == length else n for n in shape) for shape in _shapes(self.outputs)]
            if max(grown) > (most := COSTLY if count == MANY else MOST):
                raise NotTaken(f"a tensor would have {max(grown):,} elements, more than {most:,}")
        some = resized(self.arguments, self.subject.names, self.shared, SOME) if count == BEYOND else []
        if some and all(_seconds(self._made, some) > SLOW for _ in range(3)):
            raise NotTaken(f"forward takes more than {1000 * SLOW:.0f} ms for {SOME} already")

    def _asked_for_shared(self, firsts: Sequence[Axis]) -> list[Axis]:
        """Those of the axes with which the output's rows change, in other numbers too. Raises NotTaken if none do."""
        length, refused = self.lengths[firsts[0]], NotTaken("")
        for some in islice(_some_of(firsts, self.whole, not self.outputs[0].dim()), PROBES):
            try:
                for count in (_unlike(self.lengths.values(), length), length - 1):
                    made = self._asked(resized(self.arguments, self.subject.names, some, count))
                    if not _followed(made[: len(self.outputs)], self.outputs, length, count):
                        raise NotTaken(f"the output does not have {count} rows where {self._said(some)} has")
                return some
            except NotTaken as error:
                refused = error
        raise refused

    def _said(self, axes: Iterable[Axis]) -> str:
        return ", ".join(f"axis {axis} of {self.subject.names[i]}" for i, axis in axes)

    def _asked(self, fed: Sequence[Any]) -> Sequence[Tensor]:
        """What the reference gives; without one, forward."""
        if self.reference is None:
            return self._made(fed)
        try:
            with torch.no_grad():
                return outputs_of(self.reference(*doubled(contiguous(fed))))
        except Exception as error:  # it is not made for this size
            raise NotTaken(f"the reference raised {quoted(error)}") from error

    def _made(self, fed: Sequence[Any]) -> Sequence[Tensor]:
        try:
            return self.subject.run(fed)[0]
        except Exception as error:  # it is not made for this size
            raise NotTaken(f"forward raised {quoted(error)}") from error

    def _agreed(self, name: str, fed: Sequence[Any]) -> Sequence[Tensor] | None:
        """What forward gives; None where it lost an axis that the reference has kept, which is a failure.

        Raises NotTaken where the reference lost one.
        """
        wanted = [] if self.reference is None else _shapes(self._asked(fed))  # first: it does no harm
        made = self._made(fed)
        shapes = _shapes(made)
        if self.reference is None or wanted[: len(shapes)] == shapes:
            return made
        text = f"forward gives {', '.join(map(str, shapes))}, its reference {', '.join(map(str, wanted))}"
        if [len(shape) for shape in wanted[: len(shapes)]] != [output.dim() for output in self.outputs]:
            raise NotTaken(text)
        found = Diagnosis("shape", text)
        self.failures.append(Row("output", "output", shapes[0], False, text, case=name, diagnosis=found))
        return None


def _seconds(run: Callable[[Sequence[Any]], Any], fed: Sequence[Any]) -> float:
    start = thread_time()
    run(fed)
    return thread_time() - start


def resized(arguments: Sequence[Any], names: Sequence[str], axes: Sequence[Axis], count: int) -> list[Any]:
    """The first `count` places of the axes, all of one length; beyond their end they begin again, shrunk a little.

    The last integer comes again and again, so that those in ascending order, which may be offsets, stay in order. Those
    that may be places on the axes, or their length, stay inside: those beyond the new end become the largest of the
    argument's own that are not. Raises NotTaken where there is none, and where a number among the arguments is the
    length itself.
    """
    fed, length = list(arguments), arguments[axes[0][0]].shape[axes[0][1]]
    ends = [(length, count)]
    for i, axis in axes:
        if count <= length:
            fed[i] = fed[i].narrow(axis, 0, count).contiguous()
        else:
            fed[i] = _grown(fed[i], axis, count)
        ends.append((arguments[i].numel(), fed[i].numel()))
    for i, (name, value) in enumerate(zip(names, arguments, strict=True)):
        if isinstance(value, Tensor):
            if _is_whole(value) and value.dtype != torch.bool:
                fed[i] = _inside(name, value, fed[i], ends)
        elif _mentions(value, length):
            raise NotTaken(f"{name} = {value!r} may be the length {length} that would change")
    return fed


def _grown(tensor: Tensor, axis: int, count: int) -> Tensor:
    """Each repeated place is multiplied by a number of its own, below 1 and the same in all arguments.

    So no two are the same, and signs, order, symmetry and an interval such as [0, 1] are kept. Whole numbers, as in a
    mask, are repeated as they are.
    """
    places, length = torch.arange(count, device=tensor.device), tensor.shape[axis]
    if _is_whole(tensor):
        return tensor.index_select(axis, places.clamp(max=length - 1))
    again = tensor.index_select(axis, places % length)
    shrunk = torch.where(places < length, 1.0, 1 - (places.float() * GOLDEN).frac() / 5).to(tensor.dtype)
    shrunk = shrunk.view([-1 if d == axis else 1 for d in range(tensor.dim())])
    return torch.where(again.isreal() & (again.real == again.real.round()), again, again * shrunk)


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


def _is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _mentions(value: Any, length: int) -> bool:
    if isinstance(value, list | tuple):
        return any(_mentions(item, length) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and value == length


def _followed(made: Sequence[Tensor], before: Sequence[Tensor], length: int, count: int) -> bool:
    """Nothing changed but what was as long as the batch, which may be `count`; the first output, no cost, must be."""
    return _alike(made, before, length, count) and (not made[0].dim() or len(made[0]) == count)


def _alike(made: Sequence[Tensor], before: Sequence[Tensor], length: int, count: int) -> bool:
    return all(
        len(new) == len(old) and all(a == b or (a, b) == (count, length) for a, b in zip(new, old, strict=True))
        for new, old in zip(_shapes(made), _shapes(before), strict=True)
    )


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _unlike(lengths: Iterable[int], length: int) -> int:
    """A prime that no axis is as long as, and longer than this one unless that is long.

    A size of 1 would be broadcast, and so would half of 2 or 3; a reference may have too many rows without a word.
    """
    taken = set(lengths)
    primes = (n for n in from_number(max(5, length if length < LONG else 0)) if all(n % k for k in range(2, n)))
    return next(n for n in primes if n not in taken)


def _some_of(firsts: Sequence[Axis], whole: Sequence[Axis], cost: bool) -> Iterator[list[Axis]]:
    """All integers, which may be lengths or targets, with as few others as possible; for a cost, as many."""
    integers = [axis for axis in firsts if axis in whole]
    others = [axis for axis in firsts if axis not in whole]
    counts = range(len(others) + 1)
    for count in reversed(counts) if cost else counts:
        yield from ([*integers, *some] for some in combinations(others, count) if integers or some)


def _check_operators(forward: Callable[..., Any], arguments: Sequence[Any], why: str) -> None:
    """Raises NotTaken, which says why first, unless torch's own operators alone make the outputs: they check shapes.

    Autograd's graph, which has no other steps then, must lead to every argument of floating point.
    """
    leaves = contiguous(arguments)
    wanted = [v.requires_grad_() for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]
    try:
        with torch.enable_grad():
            waiting: list[Any] = [output.grad_fn for output in outputs_of(forward(*leaves))]
    except Exception as error:
        raise NotTaken(f"{why} (autograd through forward raised {quoted(error)})") from error
    known, foreign = set(), NotTaken(f"{why} (forward is not made of torch's operators alone, which check shapes)")
    while waiting:
        kind = type(node := waiting.pop())
        if node is None or kind.__module__ != "builtins" or kind.__name__ == "CppFunction":
            raise foreign
        if node not in known:
            known.add(node)
            waiting += [before for before, _ in getattr(node, "next_functions", ()) if before is not None]
    reached = {id(leaf) for node in known if (leaf := getattr(node, "variable", None)) is not None}
    if not reached.issuperset(map(id, wanted)):
        raise foreign
