"""The twin of manual_backprop/models/mlp.py."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from reference.layers import dropout


class ScaledTanh(nn.Module):
    """LeCun's 1.7159 tanh(2z/3)."""

    def forward(self, z: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(z * 2 / 3)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "scaled_tanh": ScaledTanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": partial(nn.Softplus, threshold=50),  # torch's default, 20, makes it linear too early for float64
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "identity": nn.Identity,
}


Noise = Callable[[str, tuple[int, ...], float], Tensor]  # (call, shape, keep) → mask


class Dropout(nn.Dropout):
    """With the mask of the call of this name, where `noise` draws it; left out, torch draws one."""

    def __init__(self, call: str, probability: float) -> None:
        super().__init__(probability)
        self.call = call

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        if noise is None:
            return super().forward(x)
        return dropout(x, noise(self.call, tuple(x.shape), 1.0 - self.p), 1.0 - self.p)


class MLP(nn.Sequential):
    """`layer1`, `activation1`, `layer2`, … for sizes (n₀, …, n_L) and one activation's name per layer.

    In training hidden activations are dropped with probability `dropout`, by masks from `noise` where it is given.
    """

    def __init__(self, sizes: Sequence[int], activations: Sequence[str], dropout: float = 0.0) -> None:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for l, activation in enumerate(activations, start=1):
            modules[f"layer{l}"] = nn.Linear(sizes[l - 1], sizes[l])
            modules[f"activation{l}"] = ACTIVATIONS[activation]()
            if dropout and l < len(activations):
                modules[f"dropout{l}"] = Dropout(f"layer{l}.dropout", dropout)
        super().__init__(modules)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        for module in self:
            if not isinstance(module, Dropout):
                x = module(x)
            elif self.training:
                x = module(x, noise)
        return x

    def observed(self) -> dict[str, nn.Module]:
        """The module of each call of the hand-written model, by the call's name."""
        observed = {}
        for name, module in self.named_children():
            kind = name.rstrip("0123456789")
            layer = f"layer{name.removeprefix(kind)}"
            observed[{"layer": layer, "activation": f"{layer}.a", "dropout": f"{layer}.dropout"}[kind]] = module
        return observed
