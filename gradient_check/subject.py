"""What is on trial: a forward pass and the backward pass that somebody wrote for it, called in one way."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradient_check.oracles import dense
from gradient_check.structure import Structure, as_complex, as_pair, as_pairs

Arguments = Sequence[Any]
Gradients = tuple[Tensor | None, ...]
Pullback = Callable[[Sequence[Any]], Gradients]  # cotangents (None: absent) → a gradient per differentiable argument


@dataclass(frozen=True)
class Subject:
    """`run(arguments)` gives the outputs and the pullback, the function that takes cotangents to gradients."""

    structure: Structure  # of the arguments; for the check they are its leaves
    differentiable: tuple[int, ...]  # their positions
    run: Callable[[Arguments], tuple[tuple[Tensor, ...], Pullback]]
    forward: Callable[..., Any]  # of tensors: the outputs alone, for the oracles
    written: str  # what the gradients come from, for messages: "backward", "the function's backward"
    only: Callable[[tuple[int, ...]], "Subject"] | None = None  # with fewer arguments differentiable, the others frozen
    notes: Sequence[str] = ()  # for the report; grows with the runs
    inside: Set[int] = frozenset()  # arguments whose gradient a `.backward()` inside makes; grows with the first run
    during: Callable[..., Any] | None = None  # (arguments, then): then(outputs), while a module has these parameters

    @property
    def names(self) -> tuple[str, ...]:
        return self.structure.names

    @property
    def gradient_names(self) -> tuple[str, ...]:
        return tuple(f"d{self.names[i]}" for i in self.differentiable)


class Overwritten(RuntimeError):
    """Of a backward that returned the same memory twice."""


def hand_written(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    structure: Structure,
    differentiable: tuple[int, ...],
    outputs: int,
) -> Subject:
    """A pair in the contract `output, cache, … = forward(…)`, `gradients = backward(d_output, cache)`.

    Both run under `torch.inference_mode()`, so that neither can lean on autograd.
    """

    def returned(leaves: Arguments) -> tuple[Any, ...]:
        positional, keywords = structure.arguments(leaves, arrays=True)
        result = forward(*positional, **keywords)
        if isinstance(result, Mapping):
            return tuple(result.values())
        return tuple(result) if isinstance(result, tuple | list) else (result,)

    def run(arguments: Arguments) -> tuple[tuple[Tensor, ...], Pullback]:
        with torch.inference_mode():
            result = returned(arguments)
        if len(result) <= outputs:
            raise ValueError(
                f"forward returned {len(result)} values: give {'the output' if outputs == 1 else f'{outputs} outputs'} "
                f"and then the cache that backward needs"
            )
        own, cache = _tensors(result[:outputs]), result[outputs]
        made = as_pairs(own)
        earlier: list[tuple[Tensor, Tensor]] = []  # gradients of the last call, and copies of them

        def pullback(cotangents: Sequence[Tensor | None]) -> Gradients:
            given = [torch.zeros_like(o) if c is None else c for o, c in zip(made, cotangents, strict=True)]
            with torch.inference_mode():
                fed = [as_complex(c) if o.is_complex() else c for o, c in zip(own, given, strict=True)]
                result = backward(*[c.numpy() for c in fed] if structure.arrays else fed, cache)
                found = structure.gradients(result, differentiable, arguments)
                gradients = tuple(None if g is None else as_pair(dense(g)).clone() for g in found)
            if not all(torch.equal(as_pair(dense(old)), copy) or old.isnan().any() for old, copy in earlier):
                raise Overwritten("this call wrote over the gradients that an earlier one had returned")
            pairs = zip(found, gradients, strict=True)
            earlier[:] = [(g, c) for g, c in pairs if g is not None and c is not None]
            return gradients

        return made, pullback

    def only_outputs(*arguments: Any) -> tuple[Tensor, ...]:
        return as_pairs(_tensors(returned(arguments)[:outputs]))

    return Subject(structure, differentiable, run, only_outputs, "backward", notes=structure.notes)


def differentiated(
    function: Callable[..., Any],
    structure: Structure,
    differentiable: tuple[int, ...],
    seen: "Seen | None" = None,
) -> Subject:
    """Anything that autograd can go through and whose backward somebody wrote.

    Where `torch.autograd.grad` is refused and `.backward()` is not, as by a reentrant checkpoint, the gradients are
    what `.backward()` leaves in `.grad`, and a note quotes the refusal.
    """
    seen = seen or Seen(notes=[*structure.notes])
    flat = structure.of_leaves(function)
    made_by = getattr(function, "__self__", None)
    custom = isinstance(made_by, type) and issubclass(made_by, torch.autograd.Function)
    forward = structure.of_leaves(partial(_applied, made_by)) if custom else flat

    def run(arguments: Arguments) -> tuple[tuple[Tensor, ...], Pullback]:
        leaves = list(arguments)
        for i in differentiable:
            leaves[i] = leaves[i].detach().requires_grad_()
        wanted = {i: leaves[i] for i in differentiable}
        with torch.enable_grad():
            made = seen.with_graph(flat(*leaves), wanted)

        def pullback(cotangents: Sequence[Tensor | None]) -> Gradients:
            return _by_grad(made, cotangents, list(wanted.values()), seen)

        return as_pairs(output.detach() for output in made), pullback

    def only_outputs(*arguments: Any) -> tuple[Tensor, ...]:
        with quiet():
            return as_pairs(seen.outputs(forward(*arguments)))

    def only(positions: tuple[int, ...]) -> Subject:
        return differentiated(function, structure, positions, seen)

    said = "the function's backward"
    return Subject(structure, differentiable, run, only_outputs, said, only, seen.notes, seen.inside)


def _applied(made_by: Any, *arguments: Any) -> Any:
    """`MyFunction.apply` as it is now, because a diagnosis puts another in its place; the one kept earlier stays."""
    return made_by.apply(*arguments)


def quiet() -> AbstractContextManager[Any]:
    """Without the warnings of a forward that finds no gradient wanted, or fewer."""
    return warnings.catch_warnings(action="ignore")


class NotAlone(ValueError):
    """A gradient that is made by a `.backward()` inside cannot be asked for alone: the graph does not lead to it."""


@dataclass(frozen=True)
class Seen:
    """What the first forward pass showed of a function that autograd goes through."""

    kept: list[int] = field(default_factory=list)  # positions of the outputs that have a gradient
    inside: set[int] = field(default_factory=set)  # arguments that the graph does not lead to
    notes: list[str] = field(default_factory=list)  # for the report

    def outputs(self, result: Sequence[Any]) -> tuple[Tensor, ...]:
        made = _tensors([o for o in result if not isinstance(o, Tensor) or o.is_floating_point() or o.is_complex()])
        return tuple(made[i] for i in self.kept) if self.kept else made

    def with_graph(self, result: Sequence[Any], leaves: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """The outputs. Raises ValueError where no graph leads from them to any of the leaves, given by position."""
        made = self.outputs(result)
        if not any(output.requires_grad for output in made):
            if self.inside.issuperset(leaves):
                raise NotAlone(
                    "a .backward() inside makes it, and torch goes there only for another argument's gradient"
                )
            raise ValueError(
                "no output of the function has a gradient function: it was not made by differentiable operators"
            )
        if not self.kept:
            self.kept.extend(i for i, output in enumerate(made) if output.requires_grad)
            made = tuple(made[i] for i in self.kept)
            reached = _leaves_of(made)
            self.inside.update(i for i, leaf in leaves.items() if id(leaf) not in reached)
        return made


def by_backward(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], leaves: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """What `.backward()` leaves in the `.grad` of the leaves, which are empty before and after."""
    made, fed = _fed(outputs, cotangents)
    for leaf in leaves:
        leaf.grad = None
    if fed:
        torch.autograd.backward(made, fed, retain_graph=True)
    return _emptied(leaves)


def _by_grad(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], leaves: Sequence[Tensor], seen: Seen
) -> Gradients:
    """By `torch.autograd.grad`, which leaves `.grad` of everything else alone, together with what a `.backward()`
    inside has put into `.grad` of the leaves."""
    made, fed = _fed(outputs, cotangents)
    if not fed:
        return (None,) * len(leaves)
    try:
        found: Gradients = torch.autograd.grad(made, leaves, fed, retain_graph=True, allow_unused=True)
    except RuntimeError as refusal:
        try:
            with _untouched(outputs):
                found = by_backward(outputs, cotangents, leaves)
        except Exception as error:
            raise refusal from error
        seen.notes.append(f"gradients are those of .backward(), because torch.autograd.grad was refused: {refusal}")
        return found
    pairs = zip((g if g is None else dense(g) for g in found), _emptied(leaves), strict=True)
    return tuple(b if a is None else a if b is None else a + b for a, b in pairs)


def _fed(outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that have a gradient and are given a cotangent, and these cotangents."""
    fed = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad and c is not None]
    return [o for o, _ in fed], [as_complex(c) if o.is_complex() else c for o, c in fed]


def _emptied(leaves: Sequence[Tensor]) -> Gradients:
    gradients = tuple(None if leaf.grad is None else dense(leaf.grad) for leaf in leaves)
    for leaf in leaves:
        leaf.grad = None
    return gradients


@contextmanager
def _untouched(outputs: Sequence[Tensor]) -> Iterator[None]:
    """Leave the `.grad` of all leaves of the graph as it is."""
    kept = [(leaf, leaf.grad) for leaf in _leaves_of(outputs).values()]
    for leaf, _ in kept:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, gradient in kept:
            leaf.grad = gradient


def _leaves_of(outputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """The leaves that the graph of the outputs leads to, by their id."""
    waiting = [output.grad_fn for output in outputs]
    leaves = {id(output): output for output in outputs if output.is_leaf}
    known: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves[id(leaf)] = leaf
        waiting += [before for before, _ in node.next_functions]
    return leaves


def _tensors(values: Sequence[Any]) -> tuple[Tensor, ...]:
    arrays = [hasattr(v, "__array__") and not isinstance(v, Tensor) for v in values]
    tensors = tuple(torch.as_tensor(v, device="cpu") if a else v for a, v in zip(arrays, values, strict=True))
    for value in tensors:
        if not isinstance(value, Tensor):
            raise ValueError(f"forward returned a {type(value).__name__} where an output, a tensor, was expected")
        if not (value.is_floating_point() or value.is_complex()):
            raise ValueError(f"an output of forward is {value.dtype}: return floating point, which alone is checked")
    if not tensors:
        raise ValueError("forward returned no tensor of floating point: there is nothing to differentiate")
    return tensors
