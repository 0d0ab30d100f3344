"""Small layers, and two of them one behind the other, for what is asked of a tape."""

from types import SimpleNamespace

from manual_backprop.layers import linear
from manual_backprop.layers.activations import ACTIVATIONS
from tests.support.against_torch import normal

tanh = ACTIVATIONS["tanh"]
X, W1, B1, W2, B2 = normal(0, 7, 3), normal(1, 5, 3), normal(2, 5), normal(3, 5, 5), normal(4, 5)
DELTA = normal(5, 7, 5)
# Two outputs, y = a + b and h = a b.
TWO = SimpleNamespace(
    name="two",
    OUTPUTS=("y", "h"),
    EQUATIONS=("TW1", "TW2"),
    forward=lambda a, b: (a + b, a * b, (a, b)),
    backward=lambda dy, dh, cache: (dy + dh * cache[1], dy + dh * cache[0]),
)


def two_layers(tape):
    z = tape.forward(linear, "first", X, W1, B1)
    return tape.forward(linear, "second", tape.forward(tanh, "first.a", z), W2, B2)
