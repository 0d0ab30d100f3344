"""The multilayer perceptron, and the four equations of backpropagation.

    zˡ = aˡ⁻¹ (Wˡ)ᵀ + bˡ,  aˡ = σ(zˡ)          forward, from a⁰ = x

    BP1  δᴸ = ∇ₐC ⊙ σ′(zᴸ)                     the error δˡ = ∂C/∂zˡ of the output layer
    BP2  δˡ = δˡ⁺¹ Wˡ⁺¹ ⊙ σ′(zˡ)               and of every layer before, from the layer after
    BP3  ∂C/∂bˡ = Σ_batch δˡ
    BP4  ∂C/∂Wˡ = (δˡ)ᵀ aˡ⁻¹

Rows are examples: x is (B, n₀); zˡ, aˡ and δˡ are (B, nˡ); Wˡ is (nˡ, nˡ⁻¹) and bˡ (nˡ). The numbers are Nielsen's
(chapter 2, where examples are columns). The 1/B of the mean is in ∇ₐC already (losses.py). docs/derivations.md
derives all four.

With dropout the next layer reads aˡ ⊙ mˡ/keep in the place of aˡ, and what comes back takes the same way:
BP2 is δˡ = δˡ⁺¹ Wˡ⁺¹ ⊙ mˡ/keep ⊙ σ′(zˡ) then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from manual_backprop.layers import dropout
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.parameters import Receiver, Shape
from manual_backprop.tape import Tape


@dataclass(frozen=True)
class MLP:
    """`sizes` (n₀, …, n_L) and one activation's name per layer; (784, 16, 16, 10) has three layers.

    `dropout` is the probability with which training drops a hidden activation.

    Raises ValueError for fewer than two sizes, a size below 1, an unknown activation, a number of activations other
    than the number of layers, or a dropout outside of [0, 1).
    """

    sizes: tuple[int, ...]
    activations: tuple[str, ...]
    dropout: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        layers, names = len(self.sizes) - 1, ", ".join(self.activations)
        if layers < 1 or min(self.sizes) < 1:
            raise ValueError(f"sizes {self.sizes} make no network: give two or more sizes, each at least 1")
        if len(self.activations) != layers:
            raise ValueError(
                f"{len(self.activations)} activations ({names}) do not fit {layers} layers: give one per layer"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but it must be from 0 to below 1")
        for name in self.activations:
            if name not in ACTIVATIONS:
                raise ValueError(f"{name!r} is not an activation; there are {', '.join(ACTIVATIONS)}")

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of the parameters, in the order in which θ holds them."""
        shapes: dict[str, Shape] = {}
        for l in range(1, len(self.sizes)):
            shapes[f"layer{l}.weight"] = (self.sizes[l], self.sizes[l - 1])
            shapes[f"layer{l}.bias"] = (self.sizes[l],)
        return shapes

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that are no parameters: none."""
        return {}

    def forward(self, p: Mapping[str, Tensor], x: Tensor, tape: Tape) -> Tensor:
        """aᴸ (B, n_L) for x (B, n₀)."""
        a = x
        for l, activation in enumerate(self.activations, start=1):
            W, b, sigma = p[f"layer{l}.weight"], p[f"layer{l}.bias"], ACTIVATIONS[activation]
            a_before, z = a, torch.addmm(b, a, W.T)  # zˡ = aˡ⁻¹ (Wˡ)ᵀ + bˡ
            a = sigma.value(z)  # aˡ = σ(zˡ)
            tape.keep("linear", f"layer{l}", z, (a_before, z, a), BP4=W, BP3=b)
            tape.keep(activation, f"layer{l}.a", a)
            if self._drops(l, tape):
                keep = 1 - self.dropout
                mask = tape.noise(f"layer{l}.dropout", tuple(a.shape), keep)
                a = tape.forward(dropout, f"layer{l}.dropout", a, mask, keep)
        return a

    def backward(self, p: Mapping[str, Tensor], d_output: Tensor, g: Receiver, tape: Tape) -> Tensor | None:
        """Hand every parameter's gradient to `g` as soon as it is known; `d_output` is ∇ₐC. Returns ∂C/∂x if needed."""
        L, da = len(self.activations), d_output
        for l in range(L, 0, -1):
            W, sigma = p[f"layer{l}.weight"], ACTIVATIONS[self.activations[l - 1]]
            if self._drops(l, tape):
                da = tape.backward(dropout, f"layer{l}.dropout", da)
            tape.see(f"layer{l}.a", da)
            a_before, z, a = tape.take(f"layer{l}")
            delta = da * sigma.derivative(z, a)  # BP1 for l = L, BP2 below
            tape.see(f"layer{l}", delta, "BP1" if l == L else "BP2")
            g[f"layer{l}.bias"] = delta.sum(dim=0)  # BP3
            g[f"layer{l}.weight"] = delta.T @ a_before  # BP4
            if l > 1 or tape.need_dx:
                da = delta @ W  # BP2, its first factor: ∂C/∂aˡ⁻¹ = δˡ Wˡ
                tape.name("BP2", da)
        return da if tape.need_dx else None

    def _drops(self, l: int, tape: Tape) -> bool:
        return tape.training and self.dropout > 0 and l < len(self.activations)
