"""One training step of a hand-written model: forward, cost, backward.

This is the plain, eager form. The learner runs it, and the update after it, under `torch.inference_mode()`, where
autograd cannot take part even by accident. θ and the optimizer's state are made outside of it.
"""

from collections.abc import Mapping

from torch import Tensor

from manual_backprop.losses import Loss
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from training.errors import UserError
from training.families.model import Model
from training.learners.base import Backpropagation


def forward_backward(
    model: Model, loss: Loss, params: Mapping[str, Tensor], x: Tensor, y: Tensor, gradients: Parameters, tape: Tape
) -> tuple[Tensor, Tensor]:
    """The cost C of a batch and ∂C/∂output; the whole gradient is handed to `gradients` tensor by tensor. θ stays."""
    output = model.forward(params, x, tape)
    C, cache = loss.forward(output, y)
    d_output = loss.backward(1.0, cache)
    model.backward(params, d_output, gradients, tape)
    return C, d_output


def backpropagate(
    model: Model, loss: Loss, params: Mapping[str, Tensor], x: Tensor, y: Tensor, gradients: Parameters, tape: Tape
) -> Backpropagation:
    """All that a pass computes, on a tape that observes.

    Raises UserError for a call that is named `output`: `deltas` has the gradient of the model's output by this name.
    """
    C, d_output = forward_backward(model, loss, params, x, y, gradients, tape)
    if "output" in tape.outputs:
        raise UserError(
            f"a call of {type(model).__name__} is named output, the name of the model's own output: give it another"
        )
    return Backpropagation(
        loss=C,
        gradients=gradients,
        deltas={"output": d_output, **tape.deltas},
        outputs=tape.outputs,
        buffers={**tape.buffers, **tape.new_buffers},
        memory=tape.new_memory,
        labels=tape.labels,
        equations=tape.equations(params),
    )
