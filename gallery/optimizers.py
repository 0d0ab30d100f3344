"""Optimizers: update rules, fed the same recorded gradients as torch.optim."""

from functools import partial

import torch

from gallery.entry import ENTRIES, WrongRule

LR, MU, BETA1, BETA2, EPS = 0.1, 0.9, 0.9, 0.99, 1e-8


def moments(g, state, t):
    """Adam's averages of g and g², without their bias."""
    state["m"] = BETA1 * state.get("m", 0) + (1 - BETA1) * g
    state["v"] = BETA2 * state.get("v", 0) + (1 - BETA2) * g**2
    return state["m"] / (1 - BETA1**t), state["v"] / (1 - BETA2**t)


def adam(theta, g, state, t, decay):
    m, v = moments(g + decay * theta, state, t)
    return theta - LR * m / (v.sqrt() + EPS)


def adam_biased(theta, g, state, t, decay):
    moments(g + decay * theta, state, t)
    return theta - LR * state["m"] / (state["v"].sqrt() + EPS)


def adam_step_zero(theta, g, state, t, decay):
    m, v = moments(g + decay * theta, state, t + 1)
    return theta - LR * m / (v.sqrt() + EPS)


def adam_epsilon(theta, g, state, t, decay):
    m, v = moments(g + decay * theta, state, t)
    return theta - LR * m / (v + EPS).sqrt()


def adamw(theta, g, state, t, decay):
    m, v = moments(g, state, t)
    return theta - LR * (m / (v.sqrt() + EPS) + decay * theta)


def momentum(theta, g, state, t, decay):
    state["v"] = MU * state.get("v", 0) + g + decay * theta
    return theta - LR * state["v"]


def momentum_sign(theta, g, state, t, decay):
    state["v"] = g + decay * theta - MU * state.get("v", 0)
    return theta - LR * state["v"]


def momentum_averaged(theta, g, state, t, decay):
    state["v"] = MU * state.get("v", 0) + (1 - MU) * (g + decay * theta)
    return theta - LR * state["v"]


def biases_decay(theta, g, state, t, decay):
    return momentum(theta, g, state, t, 0.03)


def nesterov(theta, g, state, t, decay):
    g = g + decay * theta
    state["v"] = MU * state.get("v", 0) + g
    return theta - LR * (g + MU * state["v"])


def nesterov_old_velocity(theta, g, state, t, decay):
    g = g + decay * theta
    old = state.get("v", 0)
    state["v"] = MU * old + g
    return theta - LR * (g + MU * old)


ADAM = partial(torch.optim.Adam, lr=LR, betas=(BETA1, BETA2), eps=EPS)
ADAMW = partial(torch.optim.AdamW, lr=LR, betas=(BETA1, BETA2), eps=EPS)
SGD = partial(torch.optim.SGD, lr=LR, momentum=MU)
NESTEROV = partial(torch.optim.SGD, lr=LR, momentum=MU, nesterov=True)

ENTRIES += [
    WrongRule(
        "Adam: bias not corrected", "the averages start at zero and are not divided by 1 − βᵗ", adam, adam_biased, ADAM
    ),
    WrongRule(
        "Adam: step off by one", "the first step is corrected as if it were the second", adam, adam_step_zero, ADAM
    ),
    WrongRule("Adam: ε under the root", "divides by √(v̂ + ε) instead of √v̂ + ε", adam, adam_epsilon, ADAM),
    WrongRule(
        "AdamW: decay through the gradient",
        "λθ is added to g, as Adam does, instead of to the step",
        adamw,
        adam,
        ADAMW,
    ),
    WrongRule("momentum: sign", "the velocity is subtracted from the gradient", momentum, momentum_sign, SGD),
    WrongRule("momentum: averaged", "the gradient enters the velocity with 1 − μ", momentum, momentum_averaged, SGD),
    WrongRule("momentum: biases decay", "weight decay is applied to biases too", momentum, biases_decay, SGD),
    WrongRule(
        "Nesterov: plain momentum",
        "the step is the velocity itself, without looking ahead",
        nesterov,
        momentum,
        NESTEROV,
    ),
    WrongRule(
        "Nesterov: old velocity",
        "looks ahead along the velocity of the step before",
        nesterov,
        nesterov_old_velocity,
        NESTEROV,
    ),
]
