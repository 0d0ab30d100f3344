"""The twin of manual_backprop/models/mlp.py."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": partial(nn.Softplus, threshold=50),  # torch's default, 20, makes it linear too early for float64
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


class MLP(nn.Sequential):
    """`layer1`, `activation1`, `layer2`, … for sizes (n₀, …, n_L) and one activation's name per layer."""

    def __init__(self, sizes: Sequence[int], activations: Sequence[str]) -> None:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for l, activation in enumerate(activations, start=1):
            modules[f"layer{l}"] = nn.Linear(sizes[l - 1], sizes[l])
            modules[f"activation{l}"] = ACTIVATIONS[activation]()
        super().__init__(modules)

    def observed(self) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """The modules whose outputs are z and a of each layer, by the layer's name."""
        z = {name: module for name, module in self.named_children() if name.startswith("layer")}
        a = {
            name.replace("activation", "layer"): m for name, m in self.named_children() if name.startswith("activation")
        }
        return z, a
