"""The hand-written implementation as a learner."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manual_backprop import clipping, regularizers
from manual_backprop.losses import Loss
from manual_backprop.optimizers import Optimizer
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from training.data import Examples
from training.data.augmentation import Augment
from training.data.noise import StepNoise
from training.families.model import Buffers, Model
from training.learners.base import NOTHING, Backpropagation, Evaluated, LearnerState, activations, all_finite, own
from training.learners.step import backpropagate, forward_backward


class ManualLearner:
    """A model of manual_backprop, its parameters in one vector θ, and the gradient in another of the same layout.

    `l2` is λ of manual_backprop/optimizers.py and `l1` that of regularizers.py, both for matrices and kernels only. A
    step adds the L1 penalty's gradient, clips the sum (clipping.py), lets the optimizer add L2 and move θ, and bounds
    the weights by `max_norm`; 0 leaves a part out. `noise` draws the masks of dropout, `augment` changes the pictures.
    A fresh learner's parameters are all zeros.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        optimizer: Optimizer,
        train: Examples,
        *,
        dtype: torch.dtype,
        l2: float = 0.0,
        l1: float = 0.0,
        clip_norm: float = 0.0,
        clip_value: float = 0.0,
        max_norm: float = 0.0,
        noise: StepNoise | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.train = model, loss, optimizer, train
        self.noise, self.augment = noise, augment
        self.dtype, self.device = dtype, train.device
        self.params = Parameters(model.shapes, dtype=dtype, device=self.device)
        self.views = dict(self.params)  # which a step looks up several times each: a plain dict does that faster
        self.gradients = self.params.zeros_like()
        self.buffers = own(model.buffers(), self.device, self.dtype)
        self.memory: Mapping[str, Tensor] = {}
        self.decay, self.l1_decay = self._on_weights(l2), self._on_weights(l1)
        self.clip_norm, self.clip_value, self.max_norm = clip_norm, clip_value, max_norm
        self.optimizer_state = optimizer.init(self.params.theta)
        self.scratch = torch.empty_like(self.params.theta)  # the optimizer's; no part of the state that is saved
        self.zeros: Mapping[str, Sequence[str]] = getattr(model, "zeros", {})
        self.metrics: dict[str, float] = {}
        self.proof = None
        self.steps, self.t = 0, torch.zeros((), dtype=torch.float64)  # taken; the number of the next, for the optimizer

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self.params

    def advance(self, batches: Tensor, learning_rates: Tensor) -> Tensor:
        losses = []
        with torch.inference_mode():
            for indices, lr in zip(batches.to(self.device), learning_rates, strict=True):
                x, y = self.batch(indices)
                tape = self._tape(observes=False)
                C, _ = forward_backward(self.model, self.loss, self.views, x, y, self.gradients, tape)
                self._apply(tape.new_buffers, tape.new_memory, lr)
                losses.append(C)
        return torch.stack(losses)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.train.batch(indices, self.dtype)
        return self.augment(self.steps, x) if self.augment else x, y

    def backpropagate(self, x: Tensor, y: Tensor) -> Backpropagation:
        tape = self._tape(observes=True)
        with torch.inference_mode():
            return backpropagate(self.model, self.loss, self.params, x, y, self.gradients, tape)

    def _tape(self, observes: bool) -> Tape:
        tape = Tape(training=True, buffers=self.buffers, memory=self.memory, observes=observes)
        if self.noise:
            tape.noise = self.noise(self.steps, self.device, self.dtype)
        return tape

    def apply(self, result: Backpropagation, lr: Tensor) -> None:
        """Take the step that `result`, the newest from `backpropagate`, calls for."""
        with torch.inference_mode():
            self._apply(result.buffers, result.memory, lr)

    def _apply(self, new_buffers: Mapping[str, Tensor], new_memory: Mapping[str, Tensor], lr: Tensor) -> None:
        self.t.fill_(self.steps + 1)
        theta, gradient = self.params.theta, self.gradients.theta
        if self.l1_decay is not None:
            gradient = gradient + regularizers.l1_subgradient(theta, self.l1_decay)
        if self.clip_norm:
            gradient = clipping.by_norm(gradient, self.clip_norm)
        if self.clip_value:
            gradient = clipping.by_value(gradient, self.clip_value)
        state = {**self.optimizer_state, "scratch": self.scratch}
        self.optimizer.update(theta, gradient, state, lr, self.t, self.decay, self.params.split)
        if self.max_norm:
            for W in self.params.values():
                if W.dim() > 1:
                    W.copy_(regularizers.max_norm(W, self.max_norm))
        self.buffers = {**self.buffers, **new_buffers}
        if self.train.carries:
            self.memory = new_memory
        self.steps += 1

    def evaluate(self, x: Tensor, y: Tensor, memory: Buffers = NOTHING) -> Evaluated:
        output, new_memory = self.forward(x, memory)
        with torch.inference_mode():
            return Evaluated(self.loss.forward(output, y, count=1)[0], output, new_memory)

    def forward(self, x: Tensor, memory: Buffers) -> tuple[Tensor, Buffers]:
        tape = Tape(buffers=self.buffers, memory=memory, records=False)
        with torch.inference_mode():
            return self.model.forward(self.params, x, tape), tape.new_memory

    def outputs(self, x: Tensor) -> Tensor:
        return self.forward(x, NOTHING)[0]

    def activations(self, x: Tensor) -> Mapping[str, Tensor]:
        tape = Tape(buffers=self.buffers, records=False, observes=True)
        with torch.inference_mode():
            self.model.forward(self.params, x, tape)
        return activations(tape.outputs)

    def forget(self) -> None:
        self.memory = {}

    def is_finite(self) -> bool:
        vectors = (self.params.theta, *self.optimizer_state.values())
        return all_finite([*vectors, *self.buffers.values(), *self.memory.values()])

    def state_dict(self) -> LearnerState:
        return {
            "model": self.params.state_dict() | {name: tensor.clone() for name, tensor in self.buffers.items()},
            "optimizer": {
                key: {name: piece.clone() for name, piece in self.params.split(vector).items()}
                for key, vector in self.optimizer_state.items()
            },
            "memory": {name: tensor.clone() for name, tensor in self.memory.items()},
            "steps": self.steps,
        }

    def load_state_dict(self, state: LearnerState) -> None:
        model = state["model"]
        self.params.load_state_dict({name: tensor for name, tensor in model.items() if name not in self.buffers})
        if missing := self.buffers.keys() - model.keys():
            raise ValueError(f"the buffer {sorted(missing)[0]} is missing")
        self.buffers = own({name: model[name] for name in self.buffers}, self.device, self.dtype)
        if state["optimizer"].keys() != self.optimizer_state.keys():
            found, wanted = (", ".join(sorted(some)) or "empty" for some in (state["optimizer"], self.optimizer_state))
            raise ValueError(f"the optimizer's state is {found}, but here it must be {wanted}")
        for key, tensors in state["optimizer"].items():
            pieces = self.params.zeros_like()
            pieces.load_state_dict(tensors)
            self.optimizer_state[key] = pieces.theta
        self.memory = own(state["memory"], self.device, self.dtype)
        self.steps = state["steps"]

    def _on_weights(self, decay: float) -> Tensor | None:
        return self.params.vector(lambda name: decay if self.params[name].dim() > 1 else 0.0) if decay else None
