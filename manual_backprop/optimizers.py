"""Update equations on whole vectors: how a step moves θ, given the gradient of the cost.

An optimizer is its settings and two functions. `init` makes the state, vectors as long as θ; `update` writes the
new θ and the new state in place. All operations are elementwise, but Muon's on matrices.

L2 regularization belongs to the update, because its gradient needs no backpropagation. λ is `l2` here, the same number
as torch's `weight_decay`, and works on weights only. It comes in two ways that differ once g is rescaled (Loshchilov
and Hutter 2019):

    coupled     the cost that is minimized is C + ½ Σ_w λ w², so    g = ∇C + λ ⊙ θ
    decoupled   the weights shrink beside the step, which sees only ∇C:    θ ← θ − η λ ⊙ θ

AdamW, Lion and Muon decouple it, the others couple it. Nielsen writes the penalty (λ_N/2n) Σ w², with n the size of
the training set, so λ = λ_N / n: his λ_N = 5 on 50,000 images is l2 = 0.0001.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

from torch import Tensor

from manual_backprop.norm import norm

State = dict[str, Tensor]
Decay = Tensor | None  # λ for matrices and kernels, 0 for biases and scales; None means no L2 at all
Split = Callable[[Tensor], Mapping[str, Tensor]]  # the named tensors of a vector as long as θ, as views of it


class Optimizer(Protocol):
    """What every optimizer has."""

    def init(self, theta: Tensor) -> State:
        """The state before the first step: named vectors as long as θ."""
        ...

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        """Take step t = 1, 2, …; the rate `lr` and t are 0-d. Methods that treat matrices as such `split` vectors."""
        ...


def coupled(gradient: Tensor, theta: Tensor, decay: Decay) -> Tensor:
    """g = ∇C + λ ⊙ θ"""
    return gradient if decay is None else gradient + decay * theta


def shrink(theta: Tensor, lr: Tensor, decay: Decay) -> None:
    """θ ← θ − η λ ⊙ θ"""
    if decay is not None:
        theta.sub_(lr * decay * theta)


def average(mean: Tensor, beta: float, new: Tensor) -> Tensor:
    """m ← β m + (1 − β) x, a mean that forgets; it has seen about 1/(1 − β) steps."""
    return mean.mul_(beta).add_((1 - beta) * new)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum μ (torch's convention: the rate is not part of the velocity).

        v ← μ v + g
        θ ← θ − η v          with μ = 0 just θ ← θ − η g

    Sources: Nielsen, chapters 1 and 3; Sutskever et al. 2013.
    """

    momentum: float = 0.0

    def init(self, theta: Tensor) -> State:
        return {"velocity": theta.new_zeros(theta.shape)} if self.momentum else {}

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        g = coupled(gradient, theta, decay)
        v = state["velocity"].mul_(self.momentum).add_(g) if self.momentum else g
        theta.sub_(lr * v)


@dataclass(frozen=True)
class Nesterov:
    """Momentum that looks ahead: the step is the one that the velocity would take next, if g stayed.

        v ← μ v + g
        θ ← θ − η (g + μ v)

    θ here is Nesterov's looked-ahead point, at which the gradient is taken. Sources: Nesterov 1983; Bengio et al. 2013.
    """

    momentum: float = 0.9

    def init(self, theta: Tensor) -> State:
        return {"velocity": theta.new_zeros(theta.shape)}

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        g = coupled(gradient, theta, decay)
        v = state["velocity"].mul_(self.momentum).add_(g)
        theta.sub_(lr * (g + self.momentum * v))


@dataclass(frozen=True)
class Adagrad:
    """A rate of its own for every parameter, which falls as its gradients add up.

        s ← s + g²
        θ ← θ − η g / (√s + ε)

    Source: Duchi, Hazan and Singer 2011.
    """

    eps: float = 1e-8

    def init(self, theta: Tensor) -> State:
        return {"square_sum": theta.new_zeros(theta.shape)}

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        g = coupled(gradient, theta, decay)
        s = state["square_sum"].add_(g * g)
        theta.sub_(lr * g / (s.sqrt() + self.eps))


@dataclass(frozen=True)
class RMSprop:
    """Adagrad with a mean in the place of the sum, so that the rate need not fall.

        v ← β v + (1 − β) g²
        θ ← θ − η g / (√v + ε)

    Source: Tieleman and Hinton 2012 (Coursera, lecture 6e).
    """

    betas: tuple[float] = (0.99,)
    eps: float = 1e-8

    def init(self, theta: Tensor) -> State:
        return {"square_mean": theta.new_zeros(theta.shape)}

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        (beta,) = self.betas
        g = coupled(gradient, theta, decay)
        v = average(state["square_mean"], beta, g * g)
        theta.sub_(lr * g / (v.sqrt() + self.eps))


def adam_step(g: Tensor, m: Tensor, v: Tensor, t: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's m̂ / (√v̂ + ε) at step t; the means m and v are brought up to date in place."""
    beta1, beta2 = betas
    m_hat = average(m, beta1, g) / (1 - beta1**t)
    v_hat = average(v, beta2, g * g) / (1 - beta2**t)
    return m_hat / (v_hat.sqrt() + eps)


@dataclass(frozen=True)
class Adam:
    """The mean of the gradients over the root of the mean of their squares.

        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)        both start at 0; the hats take that bias out
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)
        θ ← θ − η m̂ / (√v̂ + ε)

    Source: Kingma and Ba 2015, algorithm 1.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def init(self, theta: Tensor) -> State:
        return {"mean": theta.new_zeros(theta.shape), "square_mean": theta.new_zeros(theta.shape)}

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        g = coupled(gradient, theta, decay)
        theta.sub_(lr * adam_step(g, state["mean"], state["square_mean"], t, self.betas, self.eps))


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled decay.

        θ ← θ − η λ ⊙ θ
        θ ← θ − η m̂ / (√v̂ + ε)          with g = ∇C in Adam's m̂ and v̂

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def init(self, theta: Tensor) -> State:
        return {"mean": theta.new_zeros(theta.shape), "square_mean": theta.new_zeros(theta.shape)}

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        shrink(theta, lr, decay)
        theta.sub_(lr * adam_step(gradient, state["mean"], state["square_mean"], t, self.betas, self.eps))


@dataclass(frozen=True)
class Lion:
    """Every parameter moves by η exactly, in the direction in which a mean of the gradients points.

        c = β₁ m + (1 − β₁) ∇C
        θ ← θ − η (sign(c) + λ ⊙ θ)      sign(0) = 0
        m ← β₂ m + (1 − β₂) ∇C           after the step: it remembers longer than c looks back

    Source: Chen et al. 2023, algorithm 2.
    """

    betas: tuple[float, float] = (0.9, 0.99)

    def init(self, theta: Tensor) -> State:
        return {"mean": theta.new_zeros(theta.shape)}

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        beta1, beta2 = self.betas
        m = state["mean"]
        c = beta1 * m + (1 - beta1) * gradient
        shrink(theta, lr, decay)
        theta.sub_(lr * c.sign())
        average(m, beta2, gradient)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c
NEWTON_SCHULZ_STEPS = 5


def orthogonalized(G: Tensor) -> Tensor:
    """About U Vᵀ for G = U S Vᵀ: the same directions, with all singular values near 1 (0.7 to 1.2).

        X = G / ‖G‖, then five times X ← a X + (b X Xᵀ + c (X Xᵀ)²) X

    which takes each singular value s to a s + b s³ + c s⁵. Of a tall G the transposed is taken, whose X Xᵀ is smaller.
    """
    if G.shape[0] > G.shape[1]:
        return orthogonalized(G.T).T
    a, b, c = NEWTON_SCHULZ
    X = G / (norm(G) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


@dataclass(frozen=True)
class Muon:
    """Matrices move along the orthogonalized mean of their gradients, everything else by AdamW.

        M ← μ M + (1 − μ) G
        W ← W − η λ ⊙ W
        W ← W − η 0.2 √max(rows, columns) O,      O = orthogonalized(μ M + (1 − μ) G), a look ahead as Nesterov's

    The factor makes the root mean square of a step that of AdamW's, so that one η and one λ serve both. G, M and W are
    (rows, columns); a tensor of more dimensions is taken as (first, all others). Sources: Jordan et al. 2024 (Muon: an
    optimizer for hidden layers); Liu et al. 2025 (the factor and the decay).
    """

    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def init(self, theta: Tensor) -> State:
        return {"mean": theta.new_zeros(theta.shape), "square_mean": theta.new_zeros(theta.shape)}

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        shrink(theta, lr, decay)
        gradients, means, squares = split(gradient), split(state["mean"]), split(state["square_mean"])
        for name, p in split(theta).items():
            g, m = gradients[name], means[name]
            if p.dim() > 1:
                m = average(m, self.momentum, g)
                ahead = (self.momentum * m + (1 - self.momentum) * g).flatten(1)
                p.sub_(lr * 0.2 * sqrt(max(ahead.shape)) * orthogonalized(ahead).view_as(p))
            else:
                p.sub_(lr * adam_step(g, m, squares[name], t, self.betas, self.eps))


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "nesterov": Nesterov,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "lion": Lion,
    "muon": Muon,
}
