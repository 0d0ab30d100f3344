"""What one pass over a model leaves behind: all that is neither θ nor x.

Forward records every call of a layer under the call's name, and backward, which is written by hand, takes each cache
out again as it comes to it. So memory falls on the way down as it rose on the way up, and a second backward needs a
second forward. δ of a call is the gradient of the cost with respect to its output.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]
Noise = Callable[[str, Shape, float], Tensor]  # (call, shape, keep) → a mask of ones, with probability keep, and zeros


def no_noise(call: str, shape: Shape, keep: float) -> Tensor:
    raise ValueError(f"{call} needs noise of the shape {shape}: give the tape `noise`, or training=False")


@dataclass(frozen=True)
class Call:
    """One call of a layer, as a tape that observes remembers it."""

    kind: str  # the layer's name
    given: list[tuple[Tensor, str, str]]  # differentiable arguments: each with its gradient's label and its own name


@dataclass(slots=True)
class Tape:
    """One forward and backward pass. Forward reads `buffers` and `memory` and writes `new_buffers` and `new_memory`.

    `buffers` are a model's running statistics, `memory` is what a batch hands on to the next (a carried state, keys and
    values): neither is a parameter, and whoever made the tape decides whether the new ones take the place of the old.
    """

    training: bool = False  # dropout drops, batch norm takes the batch's own statistics
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Noise = no_noise
    records: bool = True  # False where no backward follows: no caches
    observes: bool = False  # keep every output and every δ
    need_dx: bool = False  # ∂C/∂x is asked for
    new_buffers: dict[str, Tensor] = field(default_factory=dict)
    new_memory: dict[str, Tensor] = field(default_factory=dict)
    caches: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)  # this and the following only if the tape observes
    outputs: dict[str, Tensor] = field(default_factory=dict)
    deltas: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # of the deltas
    _origins: dict[int, tuple[Tensor, str]] = field(default_factory=dict)  # memory → what lies there, its label

    def forward(self, layer: Any, name: str, *arguments: Any, **options: Any) -> Any:
        """The outputs of `layer.forward`, and what else it returns behind the cache, which stays here."""
        result = layer.forward(*arguments, **options)
        names = _names(layer, name)
        outputs, more = result[: len(names)], result[len(names) + 1 :]
        if self.records:
            self._remember(name, result[len(names)])
        if self.observes:
            self.calls[name] = Call(kind(layer), _given(layer, arguments, options))
            self.outputs.update(zip(names, outputs, strict=True))
        return outputs[0] if len(names) == 1 and not more else (*outputs, *more)

    def backward(self, layer: Any, name: str, *d_outputs: Tensor, **options: Any) -> Any:
        """The gradients that `layer.backward` returns; the call's cache leaves the tape."""
        if not self.observes:
            return layer.backward(*d_outputs, self.take(name), **options)
        for output, delta in zip(_names(layer, name), d_outputs, strict=True):
            self.see(output, delta)
        gradients = layer.backward(*d_outputs, self.take(name), **options)
        for gradient, label in zip(_tuple(gradients), layer.EQUATIONS, strict=False):
            self.name(label, gradient)
        return gradients

    def keep(self, kind: str, name: str, output: Tensor, cache: Any = None, **equations: Tensor) -> None:
        """What `forward` does, for a model that spells a layer out itself: `BP3=b` says which equation ∂C/∂b has."""
        if self.records and cache is not None:
            self._remember(name, cache)
        if self.observes:
            self.calls[name] = Call(kind, [(parameter, label, "") for label, parameter in equations.items()])
            self.outputs[name] = output

    def take(self, name: str) -> Any:
        """The cache of a call, once. Raises ValueError if there is none."""
        if name not in self.caches:
            raise ValueError(f"the tape has no cache of {name}: a backward pass needs a forward pass that records")
        return self.caches.pop(name)

    def see(self, name: str, delta: Tensor, label: str = "") -> None:
        """What `backward` does with the δ of an output, for a model that makes it itself.

        Without a label it is that of what made the δ: a backward, a sum, for the first δ the cost.
        """
        if self.observes:
            known = self._origins.get(delta.data_ptr()) or self._origins.get(delta.untyped_storage().data_ptr())
            self.labels[name] = label or (known[1] if known else "" if self.deltas else "∂C/∂output")
            self.deltas[name] = delta
            self.name(self.labels[name], delta)

    def add(self, label: str, *gradients: Tensor) -> Tensor:
        """The sum of what comes back on several ways, which has a label of its own."""
        total = sum(gradients[1:], start=gradients[0])
        self.name(label, total)
        return total

    def name(self, label: str, gradient: Tensor | None) -> None:
        """The equation by which this gradient was made: from here on its memory holds what the label says.

        Two gradients may lie in one memory, as parts of one product: then each is known by where it begins. While the
        tape has the tensor, the memory cannot be used again for another.
        """
        if self.observes and gradient is not None:
            self._origins[gradient.data_ptr()] = gradient, label
            self._origins.setdefault(gradient.untyped_storage().data_ptr(), (gradient, label))

    def equations(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
        """For each parameter that a call was given: the label of its gradient, and its name in the equations.

        A parameter that went into calls of two kinds has the labels of both: "LI2 + EM1".
        """
        names = {id(tensor): name for name, tensor in parameters.items()}
        labels: dict[str, dict[str, None]] = {}
        symbols: dict[str, str] = {}
        for call in self.calls.values():
            for argument, label, symbol in call.given:
                if name := names.get(id(argument)):
                    labels.setdefault(name, {})[label] = None
                    symbols.setdefault(name, symbol)
        return {name: (" + ".join(found), symbols[name]) for name, found in labels.items()}

    def _remember(self, name: str, cache: Any) -> None:
        if name in self.caches:
            raise ValueError(f"the tape holds a cache of {name} already: give each call a name of its own")
        self.caches[name] = cache


def kind(layer: Any) -> str:
    """conv2d for the module manual_backprop.layers.conv2d."""
    return getattr(layer, "name", None) or layer.__name__.rpartition(".")[2]


def _names(layer: Any, name: str) -> list[str]:
    """Of a call's outputs: its own, or with several OUTPUTS `lstm.y`, `lstm.h`, …"""
    outputs = getattr(layer, "OUTPUTS", ())
    return [f"{name}.{output}" for output in outputs] or [name]


def _given(layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> list[tuple[Tensor, str, str]]:
    values = dict(zip(_parameters(layer.forward), arguments, strict=False)) | options
    names = [name for name in _parameters(layer.forward) if name not in getattr(layer, "not_differentiable", ())]
    equations = zip(names, layer.EQUATIONS, strict=False)
    return [(values[name], label, name) for name, label in equations if isinstance(values.get(name), Tensor)]


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(signature(function).parameters)


def _tuple(gradients: Any) -> tuple[Any, ...]:
    return gradients if isinstance(gradients, tuple) else (gradients,)
