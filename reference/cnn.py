"""The twins of manual_backprop/models/cnn.py."""

from collections.abc import Sequence

from torch import Tensor, nn

from reference.mlp import ACTIVATIONS, dropout

Observed = tuple[dict[str, nn.Module], dict[str, nn.Module]]


class LeNet5(nn.Sequential):
    """LeNet-5 with plain averages, full C3 and logits; `activation_C1`, … stand behind C1, C3, C5 and F6."""

    def __init__(self, shape: Sequence[int], classes: int, activation: str = "scaled_tanh") -> None:
        super().__init__()
        channels, height, _ = shape
        self.pictures = nn.Unflatten(1, tuple(shape))
        self.C1 = nn.Conv2d(channels, 6, 5, padding=2 if height == 28 else 0)
        self.activation_C1 = ACTIVATIONS[activation]()
        self.S2 = nn.AvgPool2d(2)
        self.C3 = nn.Conv2d(6, 16, 5)
        self.activation_C3 = ACTIVATIONS[activation]()
        self.S4 = nn.AvgPool2d(2)
        self.C5 = nn.Conv2d(16, 120, 5)
        self.activation_C5 = ACTIVATIONS[activation]()
        self.flatten = nn.Flatten()
        self.F6 = nn.Linear(120, 84)
        self.activation_F6 = ACTIVATIONS[activation]()
        self.F7 = nn.Linear(84, classes)

    def observed(self) -> Observed:
        """The modules whose outputs are z and a of each layer, by the layer's name."""
        modules = dict(self.named_children())
        a = {name.removeprefix("activation_"): m for name, m in modules.items() if name.startswith("activation_")}
        return {name: modules[name] for name in ("C1", "S2", "C3", "S4", "C5", "F6", "F7")}, a


class Block(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.activation1 = ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.activation2 = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation1(self.norm1(self.conv1(x)))
        return self.activation2(x + self.norm2(self.conv2(a)))


class Stage(nn.Sequential):
    """A convolution that halves the picture, then `blocks` residual blocks."""

    def __init__(self, channels_in: int, channels: int, blocks: int, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = ACTIVATIONS[activation]()
        for k in range(1, blocks + 1):
            self.add_module(f"block{k}", Block(channels, activation))


class CNN(nn.Module):
    """Stages `stage1`, … of so many channels, the mean over all places, and `linear`.

    Where forward is given a mask, the channels' means are dropped by it, with probability `dropout`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pictures = nn.Unflatten(1, tuple(shape))
        self.stages = len(channels)
        for s, (channels_in, out) in enumerate(zip((shape[0], *channels), channels, strict=False), start=1):
            self.add_module(f"stage{s}", Stage(channels_in, out, blocks, activation))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels[-1], classes)
        self.dropout = dropout

    def forward(self, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        a = self.pictures(x)
        for s in range(1, self.stages + 1):
            a = self.get_submodule(f"stage{s}")(a)
        a = self.pool(a).flatten(1)
        if masks is not None:
            a = dropout(a, masks[0], 1.0 - self.dropout)
        return self.linear(a)

    def observed(self) -> Observed:
        """The modules whose outputs are z and a of each layer, by the layer's name."""
        modules = dict(self.named_modules())
        kinds = (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.Linear)
        z: dict[str, nn.Module] = {name: module for name, module in modules.items() if isinstance(module, kinds)}
        a = {name: modules[name.replace("norm", "activation")] for name in z if ".norm" in name}
        return z, a
