"""Named tensors that share one flat vector θ.

A network's parameters are one point θ in a space of many dimensions (13,002 for 784-16-16-10), and a gradient is a
direction in that space. `Parameters` keeps both views of it: `theta` is the vector, `parameters["layer1.weight"]` the
matrix that is a part of it; writing to one writes to the other.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from math import prod
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Receiver(Protocol):
    """Where a backward pass puts each gradient as soon as it is known: a dict, `Parameters`, or what sends it on."""

    def __setitem__(self, name: str, value: Tensor, /) -> None: ...


class Parameters(Mapping[str, Tensor]):
    """A mapping from name to tensor; all tensors are views of the one vector `theta`, in the order of `shapes`.

    `shapes` maps names to shapes. A fresh instance is all zeros, of torch's default dtype on its default device.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.shapes = dict(shapes)
        sizes = [prod(shape) for shape in self.shapes.values()]
        starts = [0, *accumulate(sizes)]
        self.theta = torch.zeros(starts[-1], dtype=dtype, device=device)
        self._slices = {name: slice(a, a + n) for name, a, n in zip(self.shapes, starts, sizes, strict=False)}
        self._views = {name: self.theta[self._slices[name]].view(shape) for name, shape in self.shapes.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        """Copy `value` into the vector: how a backward pass hands over a gradient. No broadcasting, no casting.

        Raises KeyError for an unknown name and ValueError for another shape or dtype.
        """
        view = self._views[name]
        if value.shape != view.shape or value.dtype != view.dtype:
            cast = ": leave torch.autocast for it" if torch.is_autocast_enabled(value.device.type) else ""
            raise ValueError(
                f"{name} is {tuple(view.shape)} {view.dtype}, so {tuple(value.shape)} {value.dtype} cannot be put there"
                + cast
            )
        view.copy_(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def zeros_like(self) -> "Parameters":
        """A second vector with the same names and shapes, all zeros: a place for the gradient or a velocity."""
        return Parameters(self.shapes, dtype=self.theta.dtype, device=self.theta.device)

    def vector(self, value: Callable[[str], float]) -> Tensor:
        """A vector as long as θ that holds `value(name)` at every element of the tensor `name`.

        For what differs from parameter to parameter: `vector(lambda name: l2 if name.endswith(".weight") else 0.0)`.
        """
        result = torch.empty_like(self.theta)
        for name, where in self._slices.items():
            result[where] = value(name)
        return result

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """The named pieces of any vector as long as θ, as views."""
        if vector.shape != self.theta.shape:
            raise ValueError(f"θ has {self.theta.numel()} elements, a tensor of shape {tuple(vector.shape)} has not")
        return {name: vector[where].view(self.shapes[name]) for name, where in self._slices.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Clones by name, in the form of `nn.Module.state_dict()`; a view would save the whole vector every time."""
        return {name: view.clone() for name, view in self.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy every tensor of `state`, strictly.

        Raises ValueError where a name is missing or unknown or a shape differs; nothing is written then. Values are
        converted to this vector's dtype.
        """
        if missing := self.keys() - state.keys():
            raise ValueError(f"{sorted(missing)[0]} is missing; the parameters are {', '.join(self)}")
        if unknown := state.keys() - self.keys():
            raise ValueError(f"{sorted(unknown)[0]} is not a parameter here; the parameters are {', '.join(self)}")
        for name, view in self.items():
            if state[name].shape != view.shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)}, this network's is {tuple(view.shape)}")
        for name, view in self.items():
            view.copy_(state[name])
