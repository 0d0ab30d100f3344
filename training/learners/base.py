"""What the training loop sees of an implementation, and all it sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypedDict

from torch import Tensor

from training.families.model import Buffers
from training.learners.proof import Proof


@dataclass(frozen=True)
class Backpropagation:
    """What one forward and backward pass computed at one θ.

    `deltas` holds each layer's δ by its name and, as `output`, the gradient of the cost with respect to the model's
    output. `z` and `activations` are named like the deltas. `buffers` are the model's after the pass. The gradients
    stand until the learner's next pass.
    """

    loss: Tensor
    gradients: Mapping[str, Tensor]
    deltas: Mapping[str, Tensor]
    z: Mapping[str, Tensor]
    activations: Mapping[str, Tensor]
    buffers: Buffers


class LearnerState(TypedDict):
    """All that a learner needs to go on: tensors (clones), by name."""

    model: dict[str, Tensor]  # as in nn.Module.state_dict(): parameters and buffers
    optimizer: dict[str, dict[str, Tensor]]  # "velocity" → parameter's name → tensor
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
    def steps(self) -> int:
        """How many steps were taken."""
        ...

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The live parameters, by name."""
        ...

    def advance(self, batches: Tensor, learning_rates: Tensor) -> Tensor:
        """Take k steps: `batches` (k, B) are indices of training examples, `learning_rates` (k,) are on the CPU.

        Returns the k costs, each before its step.
        """
        ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The training examples at these indices as the next step sees them: x (B, features), augmented, and y (B,)."""
        ...

    def backpropagate(self, x: Tensor, y: Tensor) -> Backpropagation:
        """Forward and backward at the present θ, which does not move; nor do the buffers."""
        ...

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The cost summed over these examples, and the outputs, with the model in evaluation mode."""
        ...

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs for x (B, features), with the model in evaluation mode."""
        ...

    def activations(self, x: Tensor) -> Mapping[str, Tensor]:
        """Every a for x (B, features), by its layer's name, with the model in evaluation mode."""
        ...

    def state_dict(self) -> LearnerState: ...

    def load_state_dict(self, state: LearnerState) -> None:
        """Take over a learner's state, whichever implementation it comes from; strictly (ValueError otherwise)."""
        ...
