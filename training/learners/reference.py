"""The autograd implementation as a learner: `nn.Module`, `Tensor.backward()`, `torch.optim`."""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reference import losses, optimizers, regularizers
from training.data import Examples
from training.data.augmentation import Augment
from training.data.noise import Noise
from training.learners.base import Backpropagation, LearnerState, activations

Call = tuple[Tensor, Tensor]  # a module's output, and the tensor that the next module was given in its place


class Twin(Protocol):
    """What a module of reference/ offers beside `nn.Module`'s own methods.

    Its forward takes x; one that drops also takes `noise`, and one that hands something on to the next batch `memory`,
    a dictionary that it reads and writes, as the hand-written model does with its tape.
    """

    def observed(self) -> dict[str, nn.Module]:
        """The module whose output is that of a call of the hand-written model, by the call's name.

        A module whose calls the model numbers, however many there are, is named `cell[]`.
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
        noise: Noise | None = None,
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
            calls = {
                name: _record(name, module, hooks, rounding, there)
                for name, module in self.module.observed().items()  # type: ignore[operator]
            }
            self.optimizer.zero_grad()
            output, memory = self._forward(x)
            if rounding is not None:
                for name in calls:
                    for (_, z), (_, a) in zip(calls[name], calls.get(f"{name}.a", []), strict=False):
                        z.register_hook(partial(_rounded_delta, a, rounding))
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
            {"output": own_d_output} | {name: _gradient(passed_on) for name, (_, passed_on) in observed.items()},
            {name: own.detach() for name, (own, _) in observed.items()},
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

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = self.outputs(x)
        with torch.no_grad():
            return self.loss(output, y, 1), output

    def outputs(self, x: Tensor) -> Tensor:
        self.module.eval()
        with torch.no_grad():
            output = self.module(x)
        self.module.train()
        return output

    def activations(self, x: Tensor) -> Mapping[str, Tensor]:
        self.module.eval()
        with ExitStack() as hooks:
            modules = self.module.observed()  # type: ignore[operator]
            calls = {name: _record(name, module, hooks) for name, module in modules.items()}
            self.module(x)
        self.module.train()
        return activations({name: own.detach() for name, (own, _) in _numbered(calls).items()})

    def forget(self) -> None:
        self.memory = {}

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
        self.memory = {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
            for name, tensor in state["memory"].items()
        }
        self.steps = state["steps"]


def _record(
    name: str,
    module: nn.Module,
    hooks: ExitStack,
    rounding: torch.Generator | None = None,
    at: Mapping[str, Tensor] = MappingProxyType({}),
) -> list[Call]:
    """A list that fills while the hooks are in place: for each call the module's output, and what goes on instead."""
    calls: list[Call] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        own = output
        if rounding is not None:  # an activation is as exact as its z is large, if not more: gelu's tail
            exact_as = inputs[0].detach() if inputs[0].shape == output.shape else output.detach()
            own = _rounded(output, rounding) + (_rounded(exact_as, rounding) - exact_as)
        there = at.get(_call(name, len(calls)), at.get(f"{name}[{len(calls)}]"))
        passed_on = own if there is None else there.to(own.dtype) + (own - output.detach())
        passed_on.retain_grad()
        calls.append((own, passed_on))
        return passed_on

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


def _numbered(calls: dict[str, list[Call]]) -> dict[str, Call]:
    """`layer1` for a module that was called once; `cell[0]`, `cell[1]`, … for one that was called several times.

    One of the name `cell[]` is numbered although it may have been called once: a sequence may be of one step.
    """
    return {
        _call(name, t) if len(own) == 1 or "[]" in name else f"{name}[{t}]": call
        for name, own in calls.items()
        for t, call in enumerate(own)
    }


def _call(name: str, t: int) -> str:
    return name.replace("[]", f"[{t}]")


def _gradient(tensor: Tensor) -> Tensor:
    """The gradient that autograd left there; zero where the cost does not depend on the tensor."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
