"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998): forward is a list of layer calls, backward the list read upward.

    C1 6@28×28 → S2 6@14×14 → C3 16@10×10 → S4 16@5×5 → C5 120 → F6 84 → F7 classes

C are 5×5 convolutions, S means of 2×2, F affine. Pictures of 28×28 are padded to the paper's 32×32. After C1, C3, C5
and F6 comes the activation, in the paper 1.7159 tanh(2z/3). Unlike the paper's, S has no weights and no activation,
every map of C3 sees all of S2's, and F7 gives logits instead of distances to drawn digits.

The equations are those of the layers (layers/*.py, docs/derivations.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from manual_backprop.layers import avg_pool2d, conv2d, linear
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.images import require_images, rows_to_images
from manual_backprop.parameters import Receiver, Shape
from manual_backprop.tape import Tape


@dataclass(frozen=True)
class LeNet5:
    """For pictures of `shape` (channels, height, width).

    Raises ValueError for pictures of another size, fewer than one class, and an unknown activation.
    """

    shape: tuple[int, int, int]
    classes: int
    activation: str = "scaled_tanh"

    def __post_init__(self) -> None:
        require_images(self.shape, self.classes, self.activation)
        if self.shape[1:] not in ((28, 28), (32, 32)):
            height, width = self.shape[1:]
            raise ValueError(f"LeNet-5 reads pictures of 28×28 or 32×32 pixels, not of {height}×{width}")

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of the parameters, in the order in which θ holds them."""
        weights: dict[str, Shape] = {
            "C1": (6, self.shape[0], 5, 5),
            "C3": (16, 6, 5, 5),
            "C5": (120, 16, 5, 5),
            "F6": (84, 120),
            "F7": (self.classes, 84),
        }
        return {
            f"{name}.{kind}": shape for name, W in weights.items() for kind, shape in (("weight", W), ("bias", W[:1]))
        }

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that are no parameters: none."""
        return {}

    def forward(self, p: Mapping[str, Tensor], x: Tensor, tape: Tape) -> Tensor:
        """Logits (B, classes) for x (B, channels·height·width)."""
        sigma = ACTIVATIONS[self.activation]
        a = rows_to_images(x, self.shape)
        z = tape.forward(conv2d, "C1", a, p["C1.weight"], p["C1.bias"], padding=(32 - self.shape[1]) // 2)
        a = tape.forward(sigma, "C1.a", z)
        a = tape.forward(avg_pool2d, "S2", a, 2)
        z = tape.forward(conv2d, "C3", a, p["C3.weight"], p["C3.bias"])
        a = tape.forward(sigma, "C3.a", z)
        a = tape.forward(avg_pool2d, "S4", a, 2)
        z = tape.forward(conv2d, "C5", a, p["C5.weight"], p["C5.bias"])
        a = tape.forward(sigma, "C5.a", z)
        z = tape.forward(linear, "F6", a.flatten(1), p["F6.weight"], p["F6.bias"])
        a = tape.forward(sigma, "F6.a", z)
        return tape.forward(linear, "F7", a, p["F7.weight"], p["F7.bias"])

    def backward(self, p: Mapping[str, Tensor], d_output: Tensor, g: Receiver, tape: Tape) -> Tensor | None:
        """Hand every parameter's gradient to `g` as soon as it is known. Returns ∂C/∂x if the tape needs it."""
        sigma = ACTIVATIONS[self.activation]
        da, g["F7.weight"], g["F7.bias"] = tape.backward(linear, "F7", d_output)
        dz = tape.backward(sigma, "F6.a", da)
        da, g["F6.weight"], g["F6.bias"] = tape.backward(linear, "F6", dz)
        dz = tape.backward(sigma, "C5.a", da.view(-1, 120, 1, 1))
        da, g["C5.weight"], g["C5.bias"] = tape.backward(conv2d, "C5", dz)
        da = tape.backward(avg_pool2d, "S4", da)
        dz = tape.backward(sigma, "C3.a", da)
        da, g["C3.weight"], g["C3.bias"] = tape.backward(conv2d, "C3", dz)
        da = tape.backward(avg_pool2d, "S2", da)
        dz = tape.backward(sigma, "C1.a", da)
        dx, g["C1.weight"], g["C1.bias"] = tape.backward(conv2d, "C1", dz, need_dx=tape.need_dx)
        return dx.flatten(1) if tape.need_dx else None
