"""Update equations on whole vectors: how a step moves θ, given the gradient of the cost.

An optimizer is its settings and two functions. `init` makes the state, vectors as long as θ; `update` writes the
new θ and the new state in place. All operations are elementwise, but Muon's on matrices.

A vector as long as θ that is made anew in each step costs as much as the arithmetic, because the system has to find
memory for it. So most lines write into what is there: `m.lerp_(x, w)` is m + w (x − m), `a.sub_(b, alpha=k)` is
a − k b, `a.addcmul_(b, c, value=k)` is a + k b ⊙ c, and `a.addcdiv_(b, c, value=k)` is a + k b / c. What fits nowhere
goes into a vector as long as θ that the caller may put into the state by the name `scratch`; it is not saved.

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

import torch
from torch import Tensor

from manual_backprop.norm import norm

State = dict[str, Tensor]
Decay = Tensor | None  # λ for matrices and kernels, 0 for biases and scales; None means no L2 at all
Split = Callable[[Tensor], Mapping[str, Tensor]]  # the named tensors of a vector as long as θ, as views of it


class Optimizer(Protocol):
    """What every optimizer has."""

    def init(self, theta: Tensor) -> State:
        """The state before the first step: named vectors as long as θ. `scratch` is not among them."""
        ...

    def update(
        self, theta: Tensor, gradient: Tensor, state: State, lr: Tensor, t: Tensor, decay: Decay, split: Split
    ) -> None:
        """Take step t = 1, 2, …; the rate `lr` and t are 0-d. Methods that treat matrices as such `split` vectors."""
        ...


def coupled(gradient: Tensor, theta: Tensor, decay: Decay, scratch: Tensor | None = None) -> Tensor:
    """g = ∇C + λ ⊙ θ, in `scratch` if there is one and it differs from ∇C"""
    return gradient if decay is None else torch.addcmul(gradient, decay, theta, out=scratch)


def shrink(theta: Tensor, lr: Tensor, decay: Decay) -> None:
    """θ ← θ − η λ ⊙ θ"""
    if decay is not None:
        theta.addcmul_(decay, theta, value=-float(lr))


def average(mean: Tensor, beta: float, new: Tensor) -> Tensor:
    """m ← β m + (1 − β) x = m + (1 − β) (x − m), a mean that forgets; it has seen about 1/(1 − β) steps."""
    return mean.lerp_(new, 1 - beta)


def average_of_squares(mean: Tensor, beta: float, new: Tensor) -> Tensor:
    """v ← β v + (1 − β) x²"""
    return mean.mul_(beta).addcmul_(new, new, value=1 - beta)


def root(v: Tensor, scratch: Tensor | None) -> Tensor:
    """√v = 1 / (1/√v), in `scratch` if there is one

    `torch.sqrt` may take ten times as long where v is 0, as it is for each weight of a pixel that is always black.
    """
    return torch.rsqrt(v, out=scratch).reciprocal_()


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
        g = coupled(gradient, theta, decay, state.get("scratch"))
        v = state["velocity"].mul_(self.momentum).add_(g) if self.momentum else g
        theta.sub_(v, alpha=float(lr))


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
        scratch = state.get("scratch")
        g = coupled(gradient, theta, decay, scratch)
        v = state["velocity"].mul_(self.momentum).add_(g)
        ahead = torch.add(g, v, alpha=self.momentum, out=scratch)
        theta.sub_(ahead, alpha=float(lr))


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
        s = state["square_sum"].addcmul_(g, g)
        theta.addcdiv_(g, root(s, state.get("scratch")).add_(self.eps), value=-float(lr))


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
        v = average_of_squares(state["square_mean"], beta, g)
        theta.addcdiv_(g, root(v, state.get("scratch")).add_(self.eps), value=-float(lr))


def adam_step(
    theta: Tensor, g: Tensor, state: State, lr: Tensor, t: Tensor, betas: tuple[float, float], eps: float
) -> None:
    """θ ← θ − η m̂ / (√v̂ + ε) at step t; the means m and v are brought up to date, and m̂ is not made by itself."""
    (beta1, beta2), time = betas, float(t)
    m = average(state["mean"], beta1, g)
    v = average_of_squares(state["square_mean"], beta2, g)
    v_hat = torch.div(v, 1 - beta2**time, out=state.get("scratch"))
    theta.addcdiv_(m, root(v_hat, v_hat).add_(eps), value=-float(lr) / (1 - beta1**time))


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
        g = coupled(gradient, theta, decay, state.get("scratch"))
        adam_step(theta, g, state, lr, t, self.betas, self.eps)


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
        adam_step(theta, gradient, state, lr, t, self.betas, self.eps)


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
        c = torch.mul(m, beta1, out=state.get("scratch")).add_((1 - beta1) * gradient)
        shrink(theta, lr, decay)
        theta.sub_(c.sign_(), alpha=float(lr))
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
                ahead = torch.lerp(g, m, self.momentum).flatten(1)
                O = orthogonalized(ahead).view_as(p)
                p.sub_(O, alpha=float(lr) * 0.2 * sqrt(max(ahead.shape)))
            else:
                adam_step(p, g, {"mean": m, "square_mean": squares[name]}, lr, t, self.betas, self.eps)


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
