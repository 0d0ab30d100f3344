"""The optimizers of manual_backprop/optimizers.py: `torch.optim`'s, and two that torch does not have in this form.

Weight decay is on matrices and kernels, none on biases and scales. The rate is set before every step.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference.norm import norm

State = dict[str, dict[str, Tensor]]  # "velocity" → parameter's name → tensor
Groups = list[dict[str, Any]]


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2."""

    def __init__(self, params: Groups, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": 0.0, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group, p, grad in _gradients(self):
            state = self.state[p]
            exp_avg = state.setdefault("exp_avg", torch.zeros_like(p))
            beta1, beta2 = group["betas"]
            direction = exp_avg.mul(beta1).add(grad.mul(1 - beta1)).sign()
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
            exp_avg.lerp_(grad, 1 - beta2)


class Muon(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest, both at one rate.

    `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` is the same, but always rounds to bfloat16 on the way.
    """

    def __init__(self, params: Groups, momentum: float, betas: tuple[float, float], eps: float) -> None:
        settings = {"lr": 0.0, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group, p, grad in _gradients(self):
            state = self.state[p]
            if not state:
                state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["step"] += 1
            p.mul_(1 - group["lr"] * group["weight_decay"])
            if p.ndim >= 2:
                mean = state["exp_avg"].lerp_(grad, 1 - group["momentum"])
                update = _newton_schulz(grad.lerp(mean, group["momentum"]).reshape(len(p), -1))
                p.add_(update.view_as(p), alpha=-0.2 * group["lr"] * max(update.shape) ** 0.5)
            else:
                (beta1, beta2), step = group["betas"], state["step"].item()
                mean = state["exp_avg"].lerp_(grad, 1 - beta1)
                square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                scale = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
                p.addcdiv_(mean, scale, value=-group["lr"] / (1 - beta1**step))


def _newton_schulz(matrix: Tensor) -> Tensor:
    """Jordan et al. 2024: five steps of the quintic iteration."""
    x = matrix.mT if matrix.size(0) > matrix.size(1) else matrix
    x = x / (norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if matrix.size(0) > matrix.size(1) else x


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], nn.Parameter, Tensor]]:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                yield group, p, p.grad


def groups(module: nn.Module, l2: float) -> Groups:
    vectors = [p for p in module.parameters() if p.ndim == 1]
    weights = [p for p in module.parameters() if p.ndim > 1]
    return [{"params": weights, "weight_decay": l2}, {"params": vectors, "weight_decay": 0.0}]


def sgd(module: nn.Module, *, l2: float = 0.0, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(groups(module, l2), lr=0.0, momentum=momentum)


def nesterov(module: nn.Module, *, l2: float = 0.0, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD(groups(module, l2), lr=0.0, momentum=momentum, nesterov=True)


def adagrad(module: nn.Module, *, l2: float = 0.0, eps: float = 1e-8) -> torch.optim.Adagrad:
    return torch.optim.Adagrad(groups(module, l2), lr=0.0, eps=eps)


def rmsprop(
    module: nn.Module, *, l2: float = 0.0, betas: tuple[float] = (0.99,), eps: float = 1e-8
) -> torch.optim.RMSprop:
    return torch.optim.RMSprop(groups(module, l2), lr=0.0, alpha=betas[0], eps=eps)


def adam(
    module: nn.Module, *, l2: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.Adam:
    return torch.optim.Adam(groups(module, l2), lr=0.0, betas=betas, eps=eps)


def adamw(
    module: nn.Module, *, l2: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups(module, l2), lr=0.0, betas=betas, eps=eps)


def lion(module: nn.Module, *, l2: float = 0.0, betas: tuple[float, float] = (0.9, 0.99)) -> Lion:
    return Lion(groups(module, l2), betas)


def muon(
    module: nn.Module,
    *,
    l2: float = 0.0,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Muon:
    return Muon(groups(module, l2), momentum, betas, eps)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adamw,
    "lion": lion,
    "muon": muon,
}


ADAMS = {"exp_avg": "mean", "exp_avg_sq": "square_mean"}
STATES: dict[type[torch.optim.Optimizer], dict[str, str]] = {
    torch.optim.SGD: {"momentum_buffer": "velocity"},
    torch.optim.Adagrad: {"sum": "square_sum"},
    torch.optim.RMSprop: {"square_avg": "square_mean"},
    torch.optim.Adam: ADAMS,
    torch.optim.AdamW: ADAMS,
    Lion: {"exp_avg": "mean"},
    Muon: ADAMS,
}
"""torch's names of the tensors that an optimizer remembers, and those of manual_backprop/optimizers.py."""


def names_of(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Of STATES, this optimizer's."""
    if isinstance(optimizer, torch.optim.SGD) and not optimizer.defaults["momentum"]:
        return {}
    return STATES[type(optimizer)]


def state_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> State:
    """Clones of the optimizer's tensors; zeros before the first step."""
    return {
        own: {
            name: optimizer.state.get(p, {}).get(key, torch.zeros_like(p)).detach().clone()
            for name, p in module.named_parameters()
        }
        for key, own in names_of(optimizer).items()
    }


def load_state(
    optimizer: torch.optim.Optimizer, module: nn.Module, state: Mapping[str, Mapping[str, Tensor]], steps: int
) -> None:
    """Put clones of `state` (as `state_of` gives it) into the optimizer, which has then taken `steps` steps.

    Raises ValueError where a tensor is missing, unknown, or of another shape than its parameter.
    """
    names = names_of(optimizer)
    if set(state) != set(names.values()):
        found, wanted = (", ".join(sorted(some)) or "empty" for some in (state, names.values()))
        raise ValueError(f"the optimizer's state is {found}, but here it must be {wanted}")
    optimizer.state.clear()
    for name, p in module.named_parameters():
        for key, own in names.items():
            if name not in state[own] or state[own][name].shape != p.shape:
                raise ValueError(f"the optimizer's {own} of {name} is missing or not {tuple(p.shape)}")
            optimizer.state[p][key] = state[own][name].to(p, copy=True)
        if names:
            optimizer.state[p]["step"] = torch.tensor(float(steps))
