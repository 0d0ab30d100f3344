"""What the training loop sees of an implementation, and all it sees."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

from training.families.model import Buffers
from training.learners.proof import Proof


@dataclass(frozen=True)
class Backpropagation:
    """What one forward and backward pass computed at one θ.

    `outputs` and `deltas` hold each layer call's output and its δ by the call's name, the activation of layer1 as
    `layer1.a`; `deltas` has also, as `output`, the gradient of the cost with respect to the model's output. `buffers`
    and `memory` are the model's after the pass. The gradients stand until the learner's next pass.
    """

    loss: Tensor
    gradients: Mapping[str, Tensor]
    deltas: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    buffers: Buffers
    memory: Buffers
    labels: Mapping[str, str] = field(default_factory=dict)  # of the deltas: "BP2"; the hand-written learner's only
    equations: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # of the gradients: ("BP4", "W")


def activations(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those outputs that are activations, by the name of what they are made of: `layer1` for `layer1.a`."""
    return {name.removesuffix(".a"): a for name, a in outputs.items() if name.endswith(".a")}


def without_activations(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs, or the deltas, of all other calls."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".a")}


def own(tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Clones on this device; floating point as `dtype` (a count of batches stays whole)."""
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in tensors.items()
    }


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is infinite or NaN. Then a sum is finite too, and if it is not, it may have overflowed."""
    return all(bool(tensor.sum().isfinite() or tensor.isfinite().all()) for tensor in tensors)


class Evaluated(NamedTuple):
    """What a forward pass gives."""

    loss: Tensor  # the cost summed over the targets
    outputs: Tensor  # a row for each target
    memory: Buffers  # from which the next block of the same sequences goes on


NOTHING: Buffers = MappingProxyType({})  # to go on from


class LearnerState(TypedDict):
    """All that a learner needs to go on: tensors (clones), by name."""

    model: dict[str, Tensor]  # as in nn.Module.state_dict(): parameters and buffers
    optimizer: dict[str, dict[str, Tensor]]  # "velocity" → parameter's name → tensor
    memory: dict[str, Tensor]  # what the last batch handed on to the next
    steps: int  # how many were taken


class Learner(Protocol):
    """One implementation of the network with its cost, its optimizer and its training data."""

    metrics: dict[str, float]
    """Values of its own, by TensorBoard tag, since they were last logged; whoever logs them clears them."""

    @property
    def proof(self) -> Proof | None:
        """What comparing with another implementation has shown since the run began; None where nothing is compared."""
        ...

    @property
    def device(self) -> torch.device:
        """Where parameters and data lie."""
        ...

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        ...

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The live parameters, by name."""
        ...

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """The live buffers, by name: running statistics, as the last step left them."""
        ...

    def advance(self, batches: Tensor, learning_rates: Tensor) -> Tensor:
        """Take k steps: `batches` (k, B) are indices of training examples, `learning_rates` (k,) are on the CPU.

        Returns the k costs, each before its step.
        """
        ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The training examples at these indices as the next step sees them: x (B, …), augmented, and targets y."""
        ...

    def backpropagate(self, x: Tensor, y: Tensor) -> Backpropagation:
        """Forward and backward at the present θ, which does not move; nor do buffers and memory."""
        ...

    def evaluate(self, x: Tensor, y: Tensor, memory: Buffers = NOTHING) -> Evaluated:
        """The model in evaluation mode, which goes on from `memory`; the learner's own stays."""
        ...

    def forward(self, x: Tensor, memory: Buffers) -> tuple[Tensor, Buffers]:
        """The outputs for x, with the model in evaluation mode, which goes on from `memory`; and the new memory."""
        ...

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs for x (B, features), with the model in evaluation mode."""
        ...

    def activations(self, x: Tensor) -> Mapping[str, Tensor]:
        """Every a for x (B, features), by its layer's name, with the model in evaluation mode."""
        ...

    def forget(self) -> None:
        """Drop what the model carries from step to step: the next mini-batch begins its sequences."""
        ...

    def is_finite(self) -> bool:
        """Whether all that the next step starts from is: what `state_dict` has, of which no clones are made."""
        ...

    def state_dict(self) -> LearnerState: ...

    def load_state_dict(self, state: LearnerState) -> None:
        """Take over a learner's state, whichever implementation it comes from; strictly (ValueError otherwise)."""
        ...
