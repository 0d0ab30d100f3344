"""The autograd implementation as a learner: `nn.Module`, `Tensor.backward()`, `torch.optim`."""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from reference import losses, optimizers, regularizers
from training.data import Examples
from training.data.augmentation import Augment
from training.data.noise import StepNoise
from training.families.model import Buffers
from training.learners.base import NOTHING, Backpropagation, Evaluated, LearnerState, activations, all_finite, own

Place = nn.Module | tuple[nn.Module, int]  # a module, or one of the tensors in its output, by number


class Seen(NamedTuple):
    """What a module computed, and what the next module was given: the same, unless a pass is repeated `at` another."""

    output: Tensor
    passed_on: Tensor


class Twin(Protocol):
    """What a module of reference/ offers beside `nn.Module`'s own methods.

    Its forward takes x; one that drops also takes `noise`, and one that hands something on to the next batch `memory`,
    a dictionary that it reads and writes, as the hand-written model does with its tape.
    """

    def observed(self) -> Mapping[str, Place]:
        """Where each output of the hand-written model's calls is computed, by the output's name.

        `cell[]` is a module that is called several times: its calls are `cell[0]`, `cell[1]`, …. Of a module with
        several outputs `(lstm, 1)` is the second.
        """
        ...


class ReferenceLearner:
    """A module of reference/, made to work like any PyTorch training script would."""

    def __init__(
        self,
        module: nn.Module,
        loss: losses.Loss,
        train: Examples,
        *,
        dtype: torch.dtype,
        optimizer: str = "sgd",
        l1: float = 0.0,
        clip_norm: float = 0.0,
        clip_value: float = 0.0,
        max_norm: float = 0.0,
        noise: StepNoise | None = None,
        augment: Augment | None = None,
        **settings: Any,
    ) -> None:
        self.train, self.dtype, self.device = train, dtype, train.device
        self.noise, self.augment = noise, augment
        self.module = module.to(self.device, dtype)
        self.takes = inspect.signature(module.forward).parameters.keys()
        self.memory: Mapping[str, Tensor] = {}
        self.loss = loss
        self.optimizer = optimizers.OPTIMIZERS[optimizer](self.module, **settings)
        self.l1, self.clip_norm, self.clip_value, self.max_norm = l1, clip_norm, clip_value, max_norm
        self.metrics: dict[str, float] = {}
        self.proof = None
        self.steps = 0

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters()}

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        return dict(self.module.named_buffers())

    def advance(self, batches: Tensor, learning_rates: Tensor) -> Tensor:
        losses = []
        for indices, lr in zip(batches.to(self.device), learning_rates, strict=True):
            x, y = self.batch(indices)
            self.optimizer.zero_grad()
            output, memory = self._forward(x)
            C = self.loss(output, y, len(y))
            C.backward()
            self._step(lr, memory)
            losses.append(C.detach())
        return torch.stack(losses)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.train.batch(indices, self.dtype)
        return self.augment(self.steps, x) if self.augment else x, y

    def backpropagate(
        self,
        x: Tensor,
        y: Tensor,
        d_output: Tensor | None = None,
        rounding: torch.Generator | None = None,
        at: Backpropagation | None = None,
    ) -> Backpropagation:
        """As for every learner; `apply` can take the step afterwards. Hooks keep every output with its gradient.

        With `d_output` that is propagated back in the place of this learner's own ∂C/∂output, which is still reported.
        With `rounding` every output and what is propagated back are off by one unit of rounding, up or down, and so
        is every σ′, in units of 1: it is a difference of such numbers (1 − a², a − a²). With `at`, every module's own
        output is reported, but the next module is given that pass's output in its place.
        """
        before = {name: tensor.clone() for name, tensor in self.module.named_buffers()}
        there = at.outputs if at else {}
        with ExitStack() as hooks:
            calls = {name: _record(name, module, hooks, rounding, there) for name, module in self._observed().items()}
            self.optimizer.zero_grad()
            output, memory = self._forward(x)
            if rounding is not None:
                for name in calls:
                    for z, a in zip(calls[name], calls.get(f"{name}.a", []), strict=False):
                        z.passed_on.register_hook(partial(_rounded_delta, a.passed_on, rounding))
            leaf = output.detach().requires_grad_()  # the chain is cut here, into the cost's part and the module's
            C = self.loss(leaf, y, len(y))
            C.backward()
            own_d_output = _gradient(leaf)
            output.backward(_rounded(own_d_output if d_output is None else d_output, rounding))
        observed = _numbered(calls)
        buffers = {name: tensor.clone() for name, tensor in self.module.named_buffers()}
        for name, tensor in self.module.named_buffers():
            tensor.copy_(before[name])
        return Backpropagation(
            C.detach(),
            {name: _gradient(p) for name, p in self.module.named_parameters()},
            {"output": own_d_output} | {name: _gradient(seen.passed_on) for name, seen in observed.items()},
            {name: seen.output.detach() for name, seen in observed.items()},
            buffers,
            memory,
        )

    def _forward(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The output, and what this batch hands on to the next."""
        given: dict[str, Any] = {}
        if self.noise and "noise" in self.takes:
            given["noise"] = self.noise(self.steps, self.device, self.dtype)
        if "memory" in self.takes:
            given["memory"] = dict(self.memory)
        output = self.module(x, **given)
        return output, {name: tensor.detach() for name, tensor in given.get("memory", {}).items()}

    def apply(self, result: Backpropagation, lr: Tensor) -> None:
        """Take the step that `result`, from `backpropagate`, calls for."""
        for name, tensor in self.module.named_buffers():
            tensor.copy_(result.buffers[name])
        for name, p in self.module.named_parameters():
            p.grad = result.gradients[name]
        self._step(lr, result.memory)

    def _step(self, lr: Tensor, memory: Mapping[str, Tensor]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr.item()
        regularizers.prepare_gradients(self.module, self.l1, self.clip_norm, self.clip_value)
        self.optimizer.step()
        if self.max_norm:
            regularizers.max_norm(self.module, self.max_norm)
        if self.train.carries:
            self.memory = memory
        self.steps += 1

    def evaluate(self, x: Tensor, y: Tensor, memory: Buffers = NOTHING) -> Evaluated:
        output, new_memory = self.forward(x, memory)
        return Evaluated(self.loss(output, y, 1), output, new_memory)

    def forward(self, x: Tensor, memory: Buffers) -> tuple[Tensor, Buffers]:
        new_memory = dict(memory)
        self.module.eval()
        with torch.no_grad():
            output = self.module(x, **({"memory": new_memory} if "memory" in self.takes else {}))
        self.module.train()
        return output, new_memory

    def outputs(self, x: Tensor) -> Tensor:
        return self.forward(x, NOTHING)[0]

    def activations(self, x: Tensor) -> Mapping[str, Tensor]:
        self.module.eval()
        with ExitStack() as hooks:
            calls = {name: _record(name, module, hooks) for name, module in self._observed().items()}
            self.module(x)
        self.module.train()
        return activations({name: seen.output.detach() for name, seen in _numbered(calls).items()})

    def _observed(self) -> Mapping[str, Place]:
        return cast(Twin, self.module).observed()

    def forget(self) -> None:
        self.memory = {}

    def is_finite(self) -> bool:
        remembered = [tensor for state in self.optimizer.state.values() for tensor in state.values()]
        return all_finite([*self.parameters.values(), *self.buffers.values(), *self.memory.values(), *remembered])

    def state_dict(self) -> LearnerState:
        return {
            "model": {name: tensor.clone() for name, tensor in self.module.state_dict().items()},
            "optimizer": optimizers.state_of(self.optimizer, self.module),
            "memory": {name: tensor.clone() for name, tensor in self.memory.items()},
            "steps": self.steps,
        }

    def load_state_dict(self, state: LearnerState) -> None:
        try:
            self.module.load_state_dict(state["model"])
        except RuntimeError as error:  # torch's way to say that names or shapes differ
            raise ValueError(" ".join(str(error).split())) from error
        optimizers.load_state(self.optimizer, self.module, state["optimizer"], state["steps"])
        self.memory = own(state["memory"], self.device, self.dtype)
        self.steps = state["steps"]


def _record(
    name: str,
    place: Place,
    hooks: ExitStack,
    rounding: torch.Generator | None = None,
    at: Mapping[str, Tensor] = MappingProxyType({}),
) -> list[Seen]:
    """A list that fills while the hooks are there, with what was seen of each call."""
    calls: list[Seen] = []
    module, number = place if isinstance(place, tuple) else (place, 0)

    def hook(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        tensors, structure = tree_flatten(outputs)
        output = tensors[number]
        own = output
        if rounding is not None:  # an activation is as exact as its z is large, if not more: gelu's tail
            exact_as = inputs[0].detach() if inputs[0].shape == output.shape else output.detach()
            own = _rounded(output, rounding) + (_rounded(exact_as, rounding) - exact_as)
        there = at.get(_call(name, len(calls)))
        passed_on = own if there is None else there.to(own.dtype) + (own - output.detach())
        passed_on.retain_grad()
        calls.append(Seen(own, passed_on))
        tensors[number] = passed_on
        return tree_unflatten(tensors, structure)

    hooks.callback(module.register_forward_hook(hook).remove)
    return calls


def _rounded(tensor: Tensor, rounding: torch.Generator | None) -> Tensor:
    """The tensor with every element off by one unit of rounding, up or down at random; itself without a generator."""
    if rounding is None:
        return tensor
    signs = 2 * torch.randint(0, 2, tensor.shape, generator=rounding) - 1
    return tensor * (1 + torch.finfo(tensor.dtype).eps * signs.to(tensor))


def _rounded_delta(a: Tensor, rounding: torch.Generator, delta: Tensor) -> Tensor:
    """δ = ∂C/∂a ⊙ σ′ with every σ′ off by one unit of rounding of 1."""
    assert a.grad is not None
    return delta + (_rounded(a.grad, rounding) - a.grad)


def _numbered(calls: Mapping[str, list[Seen]]) -> dict[str, Seen]:
    """Each call by its own name."""
    return {_call(name, t): seen for name, own in calls.items() for t, seen in enumerate(own)}


def _call(name: str, t: int) -> str:
    """`cell[3]` for the fourth call of `cell[]`."""
    return name.replace("[]", f"[{t}]")


def _gradient(tensor: Tensor) -> Tensor:
    """The gradient that autograd left there; zero where the cost does not depend on the tensor."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
