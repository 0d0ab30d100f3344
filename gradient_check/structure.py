"""How the arguments that a user gives become leaves in a flat list, which the check works with, and are made again.

Tensors may lie in lists, tuples, dictionaries and whatever else is a pytree for torch, and may be complex. A leaf is
named by its place, `xs[0]`, `batch['mask']`, `state.h`. A complex tensor is fed as real and imaginary part along a new
last axis, so that linear is linear over the reals, ⟨·,·⟩ is Re⟨·,·⟩, and a gradient is ∂C/∂Re + i ∂C/∂Im, as for torch.

torch's pytrees are private (`_pytree`), but what a user or a library has registered as one is known nowhere else.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import KeyPath, TreeSpec, keystr, tree_flatten_with_path, tree_leaves, tree_unflatten

from gradient_check.compare import as_tensor
from gradient_check.report import Row


class Malformed(TypeError):
    """What backward returned is not a gradient for each argument; `kind` is that of the diagnosis."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class Form:
    """How an argument is made of leaves."""

    name: str
    keyword: bool
    spec: TreeSpec
    paths: Mapping[KeyPath, int]  # to the leaves, by their positions in the flat list

    def listed(self, paths: Iterable[KeyPath], prefix: str = "") -> str:
        return ", ".join(f"{prefix}{self.name}{keystr(path)}" for path in paths)


@dataclass(frozen=True)
class Structure:
    """The forms of all arguments, in the order of the leaves: positional ones, keywords, a module's parameters."""

    forms: tuple[Form, ...]
    names: tuple[str, ...]  # of the leaves
    arrays: frozenset[int]  # leaves that are NumPy arrays for the user
    pairs: frozenset[int]  # leaves that are complex for the user
    notes: tuple[str, ...]  # on what was not taken apart

    def arguments(self, leaves: Sequence[Any], arrays: bool = False) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments as the user's functions take them; with `arrays`, in NumPy if given so."""
        own = self.given(leaves)
        own = [v.numpy() if arrays and i in self.arrays else v for i, v in enumerate(own)]
        made = [(form, tree_unflatten([own[i] for i in form.paths.values()], form.spec)) for form in self.forms]
        return [v for form, v in made if not form.keyword], {form.name: v for form, v in made if form.keyword}

    def given(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves, complex where they are that for the user."""
        return [as_complex(v) if i in self.pairs else v for i, v in enumerate(leaves)]

    def of_leaves(self, function: Callable[..., Any], paired: bool = False) -> Callable[..., tuple[Any, ...]]:
        """The same function from leaves to the leaves of what it returns, complex ones as pairs if `paired`."""

        def flat(*leaves: Any) -> tuple[Any, ...]:
            positional, keywords = self.arguments(leaves)
            outputs = outputs_in(function(*positional, **keywords))
            return as_pairs(outputs) if paired else outputs

        return flat

    def gradients(self, returned: Any, differentiable: Sequence[int], leaves: Sequence[Any]) -> list[Tensor | None]:
        """What backward returned for each differentiable leaf, tensors not copied; None where it is missing.

        There is one for every argument with a differentiable leaf, of the same structure, with None (or nothing, in a
        dictionary) for other leaves. Where there is one such argument, it may stand alone. Raises Malformed.
        """
        due = [form for form in self.forms if not set(differentiable).isdisjoint(form.paths.values())]
        values = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
        if len(due) == 1 and _by_path(returned).keys() <= due[0].paths.keys():
            values = (returned,)
        if len(values) != len(due):
            raise self._miscounted(len(values), due, differentiable, leaves)
        found: dict[int, Any] = {}
        for form, value in zip(due, values, strict=True):
            given = _by_path(value)
            if not given.keys() <= form.paths.keys():
                what = f"backward returned {form.listed(given, 'd')} for {form.listed(form.paths)}"
                raise Malformed("shape", f"{what}: return a gradient of the same structure")
            found |= {
                form.paths[path]: torch.tensor(g, device="cpu") if _is_array(g) else g for path, g in given.items()
            }
        for i, gradient in found.items():
            self._expect_gradient(i, gradient, leaves[i] if i in differentiable else None)
        return [found.get(i) for i in differentiable]

    def _miscounted(
        self, count: int, due: Sequence[Form], differentiable: Sequence[int], leaves: Sequence[Any]
    ) -> Malformed:
        fixed = [
            f"{name} ({'declared' if value.is_floating_point() else value.dtype})"
            for i, (name, value) in enumerate(zip(self.names, leaves, strict=True))
            if i not in differentiable and isinstance(value, Tensor)
        ]
        rest = f"; none is due for {', '.join(fixed)}" if fixed and count > len(due) else ""
        names = ", ".join(f"d{form.name}" for form in due)
        said = f"backward returned {count} gradients for the {len(due)} arguments {names}{rest}"
        return Malformed("missing" if count < len(due) else "shape", said)

    def _expect_gradient(self, i: int, given: Any, leaf: Tensor | None) -> None:
        kind, sentence = "shape", ""
        if leaf is None:
            sentence = "for which none is due: return None"
        elif not isinstance(given, Tensor):
            sentence = "where a gradient, a tensor, was expected"
        elif i in self.pairs or given.is_complex():
            own = leaf.dtype.to_complex() if i in self.pairs else leaf.dtype
            kind, sentence = "dtype", "" if given.dtype == own else f"which is {own}"
        if sentence:
            what = given.dtype if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise Malformed(kind, f"backward returned {what} for {self.names[i]}, {sentence}")


def taken(
    function: Callable[..., Any],
    example: Sequence[Any],
    keywords: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[list[Any], Structure]:
    """Copies of the leaves of all arguments, arrays as tensors and complex numbers as pairs, and how they are made of
    them. What has no tensor inside stays whole."""
    if isinstance(example, Tensor) or not isinstance(example, Sequence):
        raise ValueError(f"the example is a {type(example).__name__}: give a list of forward's arguments")
    if keywords is not None and not isinstance(keywords, Mapping):
        raise ValueError(f"kwargs is a {type(keywords).__name__}: give a dictionary by name")
    given = [(name, v, False) for name, v in zip(_argument_names(function, len(example)), example, strict=True)]
    given += [(name, value, True) for name, value in (keywords or {}).items()]
    inputs = {name for name, *_ in given}
    given += [(f"self.{key}" if key in inputs else key, value, False) for key, value in (parameters or {}).items()]
    leaves: list[Any] = []
    names, notes, forms = [], [], []
    arrays, pairs = set(), set()
    for argument, whole, keyword in given:
        found, spec = tree_flatten_with_path(whole, is_leaf=lambda v: not any(map(_is_tensor, tree_leaves(v))))
        forms.append(Form(argument, keyword, spec, {path: i for i, (path, _) in enumerate(found, len(leaves))}))
        for path, value in found:
            names.append(name := f"{argument}{keystr(path)}")
            if _is_tensor(value):
                if _is_array(value):
                    arrays.add(len(leaves))
                    kept = value.dtype.kind == "c"  # as_tensor refuses them, as it does what torch does not have
                    value = torch.as_tensor(value, device="cpu") if kept else as_tensor(value, f"the argument {name}")
                if value.is_complex():
                    pairs.add(len(leaves))
                value = as_pair(value).detach().clone()
            elif _holds_tensors(value):
                what = f"the argument {name} ({type(value).__name__})"
                notes.append(f"{what} holds tensors that were not differentiated: give them as arguments")
            leaves.append(value)
    return leaves, Structure(tuple(forms), tuple(names), frozenset(arrays), frozenset(pairs), tuple(notes))


def covers(name: str, leaf: str) -> bool:
    """Whether the leaf of this name is the one that is meant, or a part of it."""
    return leaf == name or leaf.startswith((f"{name}[", f"{name}."))


def outputs_in(result: Any) -> tuple[Any, ...]:
    """The leaves of what a function returned, which may leave some out with None."""
    if isinstance(result, Mapping | tuple | list):  # also of a class that torch has no pytree for
        parts = result.values() if isinstance(result, Mapping) else result
        return tuple(leaf for part in parts if part is not None for leaf in outputs_in(part))
    return tuple(tree_leaves(result))


def as_pair(value: Any) -> Any:
    """A complex tensor as real and imaginary part along a new last axis; anything else as it is."""
    if not (isinstance(value, Tensor) and value.is_complex()):
        return value
    return torch.view_as_real(value.resolve_conj().resolve_neg())


def as_pairs(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(map(as_pair, values))


def as_complex(pair: Tensor) -> Tensor:
    """The complex tensor of such a pair: a view of it, or of the same strides where its layout allows none."""
    try:
        return torch.view_as_complex(pair)
    except RuntimeError:
        return torch.complex(*pair.unbind(-1))


def in_complex(row: Row) -> Row:
    """The verdict on a pair, with the shape and the place of the complex tensor."""
    reason = row.reason
    if row.index:
        *where, part = row.index
        place = f"at {where} ({'imaginary' if part else 'real'} part)"
        reason = reason.replace(f"at {list(row.index)}", place, 1)
    return replace(row, shape=row.shape[:-1], index=row.index[:-1], reason=reason)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or _is_array(value)


def _is_array(value: Any) -> bool:
    """Whether it is an array; np.float64(2) is a number like 2.0."""
    return hasattr(value, "__array__") and not isinstance(value, Tensor | Number)


def _holds_tensors(value: Any) -> bool:
    """Whether an object that is no pytree has attributes with tensors of floating point."""
    held = tree_leaves(getattr(value, "__dict__", {}))
    return any(isinstance(v, Tensor) and as_pair(v).is_floating_point() for v in held)


def _by_path(tree: Any) -> dict[KeyPath, Any]:
    return {path: value for path, value in tree_flatten_with_path(tree)[0] if value is not None}


def _argument_names(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    """The names of the first `count` parameters; x0, x1, … where the function does not tell."""
    function = function.forward if isinstance(function, nn.Module) else function
    owner = getattr(function, "__self__", None)
    try:
        if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
            parameters = list(inspect.signature(owner.forward).parameters.values())
            if owner.setup_context is torch.autograd.function._SingleLevelFunction.setup_context:
                parameters = parameters[1:]  # ctx
        else:
            parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # builtins have no signature
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(named[i] if i < len(named) else f"x{i}" for i in range(count))
