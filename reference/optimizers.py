"""The optimizers of manual_backprop/optimizers.py, by `torch.optim`, and their state under the names used there."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

State = dict[str, dict[str, Tensor]]  # "velocity" → parameter's name → tensor
STATE_NAMES = {"momentum_buffer": "velocity"}


def sgd(module: nn.Module, *, momentum: float = 0.0, l2: float = 0.0) -> torch.optim.SGD:
    """`torch.optim.SGD`; weight decay on weights, none on biases. The rate is set before every step."""
    biases = [p for name, p in module.named_parameters() if name.endswith(".bias")]
    weights = [p for name, p in module.named_parameters() if not name.endswith(".bias")]
    groups = [{"params": weights, "weight_decay": l2}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum)


OPTIMIZERS = {"sgd": sgd}


def state_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> State:
    """Clones of the optimizer's tensors; empty before the first step."""
    state: State = {}
    for name, parameter in module.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            if isinstance(tensor, Tensor):
                state.setdefault(STATE_NAMES[key], {})[name] = tensor.clone()
    return state


def load_state(optimizer: torch.optim.Optimizer, module: nn.Module, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put clones of `state` (as `state_of` gives it) into the optimizer."""
    optimizer.state.clear()
    for name, parameter in module.named_parameters():
        for key, own_name in STATE_NAMES.items():
            if own_name in state:
                optimizer.state[parameter][key] = state[own_name][name].to(parameter).clone()
