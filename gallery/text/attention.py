"""Causal attention: y = (P ⊙ m/keep) v,  P = softmax(s q kᵀ) over the positions that a query may see, s = 1/√D

    q (B, H, T, D), k and v (B, H, S, D), y (B, H, T, D); the T queries are the last of the S positions
    m (B, H, T, S) is dropout's mask; without it m/keep is 1. P̃ = P ⊙ m/keep, and dP = (dy vᵀ) ⊙ m/keep

    AT1  dq = s dS k              dS = P ⊙ (dP − Σ_S P ⊙ dP)
    AT2  dk = s dSᵀ q
    AT3  dv = P̃ᵀ dy

Source: Vaswani et al. 2017.
"""

import torch

EQUATIONS = ("AT1", "AT2", "AT3")
not_differentiable = ("mask",)


def forward(q, k, v, mask=None, keep=1.0):
    T, S, s = q.shape[2], k.shape[2], q.shape[3] ** -0.5
    seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    P = (s * q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1)
    dropped = P if mask is None else P * mask / keep
    return dropped @ v, (q, k, v, P, dropped, mask, keep, s)


def backward(dy, cache):
    q, k, v, P, dropped, mask, keep, s = cache
    dP = dy @ v.mT
    dP = dP if mask is None else dP * mask / keep
    dS = P * (dP - (P * dP).sum(-1, keepdim=True))
    return s * dS @ k, s * dS.mT @ q, dropped.mT @ dy  # AT1, AT2, AT3


def examples(generator):
    for (B, H, T, S, D), keep in (((2, 3, 5, 5, 4), 1.0), ((3, 2, 4, 6, 5), 0.7)):
        q, k, v = (torch.randn(B, H, n, D, generator=generator, dtype=torch.float64) for n in (T, S, S))
        mask = (torch.rand(B, H, T, S, generator=generator) < keep).double()
        yield (q, k, v, mask, keep) if keep < 1 else (q, k, v, None)
