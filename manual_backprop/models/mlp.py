"""The multilayer perceptron, and the four equations of backpropagation.

    zˡ = aˡ⁻¹ (Wˡ)ᵀ + bˡ,  aˡ = σ(zˡ)          forward, from a⁰ = x

    BP1  δᴸ = ∇ₐC ⊙ σ′(zᴸ)                     the error δˡ = ∂C/∂zˡ of the output layer
    BP2  δˡ = δˡ⁺¹ Wˡ⁺¹ ⊙ σ′(zˡ)               and of every layer before, from the layer after
    BP3  ∂C/∂bˡ = Σ_batch δˡ
    BP4  ∂C/∂Wˡ = (δˡ)ᵀ aˡ⁻¹

Rows are examples: x is (B, n₀); zˡ, aˡ and δˡ are (B, nˡ); Wˡ is (nˡ, nˡ⁻¹) and bˡ (nˡ). The numbers are Nielsen's
(chapter 2, where examples are columns). The 1/B of the mean is in ∇ₐC already (losses.py). docs/derivations.md
derives all four.

With dropout the activations of hidden layers go on as aˡ ⊙ mˡ/keep, and so does what comes back to them:
BP2 is δˡ = δˡ⁺¹ Wˡ⁺¹ ⊙ mˡ/keep ⊙ σ′(zˡ) then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from manual_backprop.layers import dropout
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.parameters import NOWHERE, Receiver, Shape

Caches = list[tuple[Tensor, ...]]  # (aˡ⁻¹, zˡ, aˡ) for l = 1 … L, and last, with dropout, its masks m¹ … mᴸ⁻¹


@dataclass(frozen=True)
class MLP:
    """`sizes` (n₀, …, n_L) and one activation's name per layer; (784, 16, 16, 10) has three layers.

    `dropout` is the probability with which a hidden activation is dropped where the forward pass is given masks.

    Raises ValueError for fewer than two sizes, a size below 1, an unknown activation, a number of activations other
    than the number of layers, or a dropout outside of [0, 1).
    """

    sizes: tuple[int, ...]
    activations: tuple[str, ...]
    dropout: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"sizes {self.sizes} make no network: give two or more sizes, each at least 1")
        if len(self.activations) != len(self.sizes) - 1:
            raise ValueError(
                f"{len(self.activations)} activations ({', '.join(self.activations)}) do not fit "
                f"{len(self.sizes) - 1} layers: give one per layer"
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

    @property
    def title(self) -> str:
        return "-".join(map(str, self.sizes))

    def kind(self, layer: str) -> str:
        """What a layer is, in words."""
        return f"linear, {self.activations[int(layer.removeprefix('layer')) - 1]}"

    @property
    def dropped(self) -> tuple[int, ...]:
        """Widths of the masks that dropout takes."""
        return self.sizes[1:-1]

    def initial_state(self) -> dict[str, Tensor]:
        """Buffers that are no parameters: none."""
        return {}

    def forward(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        *,
        state: Mapping[str, Tensor] | None = None,
        noise: tuple[Tensor, ...] | None = None,
        training: bool = False,
        outputs: Receiver = NOWHERE,
        activations: Receiver = NOWHERE,
    ) -> tuple[Tensor, Caches, Mapping[str, Tensor]]:
        """aᴸ (B, n_L) for x (B, n₀), the caches, and the state, of which a perceptron has none.

        `noise` are dropout's masks (B, nˡ), one per hidden layer; without them nothing is dropped. Every zˡ is handed
        to `outputs`, every aˡ to `activations`, by the layer's name.
        """
        masks, keep = noise or (), 1 - self.dropout
        a_next = x
        caches: Caches = []
        for l, activation in enumerate(self.activations, start=1):
            W, b = params[f"layer{l}.weight"], params[f"layer{l}.bias"]
            a_before = a_next
            z = torch.addmm(b, a_before, W.T)  # zˡ = aˡ⁻¹ (Wˡ)ᵀ + bˡ
            a = ACTIVATIONS[activation].value(z)  # aˡ = σ(zˡ)
            outputs[f"layer{l}"], activations[f"layer{l}"] = z, a
            caches.append((a_before, z, a))
            a_next = dropout.forward(a, masks[l - 1], keep)[0] if l <= len(masks) else a
        return a, [*caches, masks] if masks else caches, {}

    def backward(
        self,
        params: Mapping[str, Tensor],
        caches: Caches,
        d_output: Tensor,
        gradients: Receiver,
        *,
        deltas: Receiver = NOWHERE,
        need_dx: bool = False,
    ) -> Tensor | None:
        """Hand every parameter's gradient to `gradients`, and every δˡ to `deltas`, as soon as it is known.

        `d_output` is ∇ₐC, the gradient of the cost with respect to the output. Returns ∂C/∂x if `need_dx`.
        """
        masks, keep = caches[-1] if len(caches) > len(self.activations) else (), 1 - self.dropout
        da = d_output
        for l in range(len(self.activations), 0, -1):
            a_before, z, a = caches[l - 1]
            W, sigma = params[f"layer{l}.weight"], ACTIVATIONS[self.activations[l - 1]]
            if l <= len(masks):
                da = dropout.backward(da, (masks[l - 1], keep))
            delta = da * sigma.derivative(z, a)  # BP1 for l = L, BP2 below
            deltas[f"layer{l}"] = delta
            gradients[f"layer{l}.bias"] = delta.sum(dim=0)  # BP3
            gradients[f"layer{l}.weight"] = delta.T @ a_before  # BP4
            if l > 1 or need_dx:
                da = delta @ W  # BP2, its first factor: ∂C/∂aˡ⁻¹ = δˡ Wˡ
        return da if need_dx else None

    def equation(self, name: str) -> str:
        """The label of the equation that a gradient (`layer2.weight`) or a δ (`layer2`) comes from."""
        if name.endswith(".weight"):
            return "BP4"
        if name.endswith(".bias"):
            return "BP3"
        return "BP1" if name == f"layer{len(self.activations)}" else "BP2"
