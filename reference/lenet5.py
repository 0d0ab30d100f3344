"""The twin of manual_backprop/models/lenet5.py."""

from collections.abc import Sequence

from torch import nn

from reference.mlp import ACTIVATIONS


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

    def observed(self) -> dict[str, nn.Module]:
        """The module of each call of the hand-written model, by the call's name."""
        return {
            name.removeprefix("activation_") + ".a" if name.startswith("activation_") else name: module
            for name, module in self.named_children()
            if not isinstance(module, nn.Unflatten | nn.Flatten)
        }
