"""The twin of manual_backprop/models/mlp.py."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn


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


def dropout(x: Tensor, mask: Tensor, keep: float) -> Tensor:
    """`torch.nn.functional.dropout` with a mask that was drawn elsewhere."""
    return x.masked_fill(mask == 0, 0.0) / keep


class MLP(nn.Sequential):
    """`layer1`, `activation1`, `layer2`, … for sizes (n₀, …, n_L) and one activation's name per layer.

    Where forward is given a mask for every hidden layer, its activations are dropped by it, with probability `dropout`.
    """

    def __init__(self, sizes: Sequence[int], activations: Sequence[str], dropout: float = 0.0) -> None:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for l, activation in enumerate(activations, start=1):
            modules[f"layer{l}"] = nn.Linear(sizes[l - 1], sizes[l])
            modules[f"activation{l}"] = ACTIVATIONS[activation]()
        super().__init__(modules)
        self.dropout = dropout

    def forward(self, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        if masks is None:
            return super().forward(x)
        layers, activations = (list(modules.values()) for modules in self.observed())
        for layer, activation, mask in zip(layers, activations, [*masks, None], strict=True):
            x = activation(layer(x))
            if mask is not None:
                x = dropout(x, mask, 1.0 - self.dropout)
        return x

    def observed(self) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """The modules whose outputs are z and a of each layer, by the layer's name."""
        z = {name: module for name, module in self.named_children() if name.startswith("layer")}
        a = {
            name.replace("activation", "layer"): m for name, m in self.named_children() if name.startswith("activation")
        }
        return z, a
