"""The twin of manual_backprop/models/cnn.py."""

from collections.abc import Sequence

from torch import Tensor, nn

from reference.mlp import ACTIVATIONS, Dropout, Noise


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

    In training the channels' means are dropped with probability `dropout`, by a mask from `noise` where it is given.
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
        self.dropout = Dropout("dropout", dropout)
        self.linear = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        a = self.pictures(x)
        for s in range(1, self.stages + 1):
            a = self.get_submodule(f"stage{s}")(a)
        a = self.pool(a).flatten(1)
        if self.training and self.dropout.p:
            a = self.dropout(a, noise)
        return self.linear(a)

    def observed(self) -> dict[str, nn.Module]:
        """The module of each call of the hand-written model, by the call's name."""
        return {
            name.replace("activation", "norm") + ".a" if "activation" in name else name: module
            for name, module in self.named_modules()
            if not isinstance(module, CNN | Stage | Block | nn.Unflatten)
        }
