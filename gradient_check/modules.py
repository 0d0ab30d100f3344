"""A module on trial: it runs as it is, with its own parameters, and is afterwards what it was before."""

import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gradient_check.structure import as_pair, as_pairs, outputs_in, taken
from gradient_check.subject import Arguments, Gradients, Pullback, Seen, Subject, by_backward, quiet


@dataclass(frozen=True)
class _Kept:
    """A parameter or buffer as the user left it: the tensor that holds the numbers, a copy of them, and the rest."""

    tensor: Tensor
    data: Tensor
    copy: Tensor
    requires_grad: bool
    grad: Tensor | None
    hooks: dict[int, Any]  # called after .grad has grown: an optimizer's step, as a rule

    @classmethod
    def of(cls, tensor: Tensor) -> "_Kept":
        data, grad = tensor.data, tensor.grad if tensor.is_leaf else None
        return cls(tensor, data, data.clone(), tensor.requires_grad, grad, dict(_hooks_of(tensor)))

    def restore(self) -> None:
        self.tensor.data = self.data
        self.data.copy_(self.copy)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)
            self.tensor.grad = self.grad
        _hooks_of(self.tensor).update(self.hooks)


class OwnParameters:
    """Lends a module, inside a `with` block, to a check of its inputs and parameters.

    Values are copied into the parameters in place, so that a backward finds in `self.weight` what forward had there,
    and gradients are what `.backward()` leaves in `.grad`, where a backward that calls `.backward()` inside puts them
    too. Only for another dtype, or where two share it, do parameters get other storage. Every forward pass starts with
    the buffers of the example. At the end parameters, `requires_grad`, `.grad`, buffers, attributes and hooks are what
    they were, bit for bit, also where an exception ends the block.
    """

    def __init__(
        self, module: nn.Module, example: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> None:
        self.module = module
        self.named = dict(module.named_parameters())
        self.leaves, self.structure = taken(module, example, keywords, self.named)
        self.inputs = len(self.leaves) - len(self.named)  # that many leaves come before the parameters
        self.called = replace(self.structure, forms=self.structure.forms[: -len(self.named) or None])  # with inputs
        self.frozen = frozenset(
            i for i, parameter in enumerate(self.named.values(), self.inputs) if not parameter.requires_grad
        )
        self.parameters = [_Kept.of(parameter) for parameter in self.named.values()]
        self._buffers = [_Kept.of(buffer) for buffer in module.buffers()]
        self._places = [(m, key, b) for m in module.modules() for key, b in m._buffers.items() if b is not None]
        self._attributes = [(m, _copied(vars(m))) for m in module.modules()]
        at = [kept.data.untyped_storage().data_ptr() for kept in self.parameters]
        self._storage = [  # by dtype; the parameter's own, unless two parameters lie in it, of which one is moved
            {kept.data.dtype: kept.data} if at.count(place) == 1 else {}
            for kept, place in zip(self.parameters, at, strict=True)
        ]
        self._present: object = None  # the forward pass whose values the parameters hold

    def __enter__(self) -> "OwnParameters":
        for kept in self.parameters:
            kept.tensor.grad = None
            _hooks_of(kept.tensor).clear()
        return self

    def __exit__(self, *_: object) -> None:
        for kept in (*self.parameters, *self._buffers):
            kept.restore()
        for module, attributes in self._attributes:
            _put_back(vars(module), attributes)

    def subject(self, differentiable: tuple[int, ...]) -> Subject:
        """The module as a function of its inputs and its parameters."""
        return self._subject(differentiable, Seen(notes=[*self.structure.notes]), self.frozen)

    def _subject(self, differentiable: tuple[int, ...], seen: Seen, frozen: Set[int]) -> Subject:
        run_module = self.called.of_leaves(self.module)

        def run(arguments: Arguments) -> tuple[tuple[Tensor, ...], Pullback]:
            this = self._put(arguments, frozen)
            leaves = [*arguments[: self.inputs], *(parameter.tensor for parameter in self.parameters)]
            for i in differentiable:
                leaves[i] = leaves[i].detach().requires_grad_() if i < self.inputs else leaves[i]
            wanted = {i: leaves[i] for i in differentiable}
            with torch.enable_grad():
                made = seen.with_graph(run_module(*leaves[: self.inputs]), wanted)
            self._hand_back(arguments)

            def pullback(cotangents: Sequence[Tensor | None]) -> Gradients:
                if self._present is not this:
                    self._put(arguments, frozen, this)
                gradients = by_backward(made, cotangents, list(wanted.values()))
                self._hand_back(arguments)
                return as_pairs(gradients)

            return as_pairs(output.detach() for output in made), pullback

        def outputs(*arguments: Any) -> tuple[Tensor, ...]:
            if any(isinstance(v, Tensor) and (v.requires_grad or _is_dual(v)) for v in arguments):
                with quiet():
                    return during(arguments, lambda made: made)
            self._put(arguments, frozen)
            with torch.no_grad(), quiet():
                return as_pairs(seen.outputs(run_module(*arguments[: self.inputs])))

        def during(arguments: Arguments, then: Callable[[tuple[Tensor, ...]], Any]) -> Any:
            return self._functional(arguments, lambda result: then(seen.outputs(result)))

        def only(positions: tuple[int, ...]) -> Subject:
            return self._subject(positions, seen, set(range(len(self.leaves))).difference(positions))

        said = "the function's backward"
        return Subject(self.structure, differentiable, run, outputs, said, only, seen.notes, seen.inside, during)

    def _put(self, arguments: Arguments, frozen: Set[int], this: object = None) -> object:
        """Copy the arguments into the parameters; the forward pass that they are now for.

        The version counters of autograd stay, because the graph of an earlier pass gets its values back before it is
        gone through. Raises ValueError for an argument of another shape than its parameter's.
        """
        values = self.structure.given(arguments)[self.inputs :]  # complex where the parameters are
        parameters = zip(self.parameters, self._storage, values, strict=True)
        for i, (kept, storage, value) in enumerate(parameters, self.inputs):
            if value.shape != kept.data.shape:
                raise ValueError(
                    f"{self.structure.names[i]} has the shape {tuple(kept.data.shape)}, not {tuple(value.shape)}"
                )
            if value.dtype not in storage:
                storage[value.dtype] = torch.empty_like(kept.data, dtype=value.dtype)
            kept.tensor.data = storage[value.dtype].copy_(value)
            kept.tensor.grad = None
            kept.tensor.requires_grad_(i not in frozen)
        for (module, key, _), buffer in zip(self._places, self._anew(arguments), strict=True):
            setattr(module, key, buffer)
        self._present = this or object()
        return self._present

    def _hand_back(self, arguments: Arguments) -> None:
        """Let the arguments show what forward or backward wrote into the parameters."""
        for kept, value in zip(self.parameters, arguments[self.inputs :], strict=True):
            if not torch.equal(now := as_pair(kept.tensor.data), value):
                value.copy_(now)

    def _anew(self, arguments: Arguments) -> list[Tensor]:
        """Copies of the example's buffers, in the dtype of the first parameter; one for a buffer of two names."""
        dtype = next((value.dtype for value in arguments[self.inputs :]), None)
        made = {
            id(kept.tensor): kept.copy.to(dtype, copy=True)
            if dtype and kept.copy.is_floating_point()
            else kept.copy.clone()
            for kept in self._buffers
        }
        return [made[id(buffer)] for _, _, buffer in self._places]

    def _functional(self, arguments: Arguments, then: Callable[[Any], Any]) -> Any:
        """`then` of the output, with other tensors in the place of the parameters, which `self.weight` is meanwhile.

        For forward mode, whose tangents a parameter cannot hold, and for second derivatives.
        """
        self._put([_primal(v) for v in arguments], self.frozen)  # and fresh buffers
        positional, keywords = self.called.arguments(arguments[: self.inputs])
        values = zip(self.named, self.structure.given(arguments)[self.inputs :], strict=True)
        own = {f"module.{name}": value for name, value in values}
        return torch.func.functional_call(_Then(self.module, then), own, tuple(positional), keywords)


class _Then(nn.Module):
    """A module and what is made of its output."""

    def __init__(self, module: nn.Module, then: Callable[[Any], Any]) -> None:
        super().__init__()
        self.module, self.then = module, then

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return self.then(outputs_in(self.module(*inputs, **keywords)))


def modules_named_in(function: Any) -> list[nn.Module]:
    """The modules that a function uses without being given them: a method's own, a closure's, and global ones."""
    found = [getattr(function, "__self__", None)]
    if inspect.isfunction(function):
        found += [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]  # an empty one
        found += [function.__globals__.get(name) for name in function.__code__.co_names]
    return list({id(value): value for value in found if isinstance(value, nn.Module)}.values())


def _hooks_of(tensor: Tensor) -> dict[int, Any]:
    hooks = tensor._post_accumulate_grad_hooks
    return {} if hooks is None else hooks


def _primal(value: Any) -> Any:
    return forward_ad.unpack_dual(value).primal.detach() if isinstance(value, Tensor) else value


def _is_dual(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every attribute, with a copy of what is in it where it is a dictionary, as hooks and parameters are."""
    return {k: (v, v.copy() if isinstance(v, dict) else None) for k, v in attributes.items()}


def _put_back(attributes: dict[str, Any], copied: dict[str, tuple[Any, Any]]) -> None:
    attributes.clear()
    for name, (value, contents) in copied.items():
        attributes[name] = value
        if contents is not None:
            value.clear()
            value.update(contents)
