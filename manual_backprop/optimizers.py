"""Update equations on whole vectors: how a step moves θ, given the gradient of the cost.

An optimizer is its settings and two functions. `init` makes the state, vectors as long as θ; `update` writes the
new θ and the new state in place. L2 regularization belongs to the update, because its gradient needs no
backpropagation: the cost that is minimized is

    C + ½ Σ_w λ w²          so every weight's gradient is ∂C/∂w + λ w, and a bias's just ∂C/∂b.

λ is `l2` here, the same number as torch's (coupled) `weight_decay`. Nielsen writes the penalty (λ_N/2n) Σ w², with n
the size of the training set, so λ = λ_N / n: his λ_N = 5 on 50,000 images is l2 = 0.0001.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

State = dict[str, Tensor]


class Optimizer(Protocol):
    """What every optimizer has."""

    def init(self, theta: Tensor) -> State:
        """The state before the first step: named vectors as long as θ."""
        ...

    def update(self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, decay: Tensor | None) -> None:
        """Take one step. `lr` is 0-d; `decay` holds λ for weights and 0 for biases, None means no L2 at all."""
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum μ (torch's convention: the rate is not part of the velocity).

        g = ∇C + λ ⊙ θ
        v ← μ v + g
        θ ← θ − η v          with μ = 0 just θ ← θ − η g

    Sources: Nielsen, chapters 1 and 3; Sutskever et al. 2013.
    """

    momentum: float = 0.0

    def init(self, theta: Tensor) -> State:
        return {"velocity": theta.new_zeros(theta.shape)} if self.momentum else {}

    def update(self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, decay: Tensor | None) -> None:
        g = gradient if decay is None else gradient + decay * theta
        if self.momentum:
            v = state["velocity"].mul_(self.momentum).add_(g)
        else:
            v = g
        theta.sub_(lr * v)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD}
