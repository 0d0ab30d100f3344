"""Costs."""

import torch
from torch.nn import functional as F

from gallery.right.base import Draw, RightLayer, family


@family
def quadratic(draw: Draw) -> RightLayer:
    def forward(a, y):
        return ((a - y) ** 2).sum() / (2 * len(a)), a - y

    def backward(dC, difference):
        return dC * difference / len(difference)

    B, n = draw.shape(2)
    return RightLayer("quadratic", forward, backward, (draw.normal(B, n), draw.normal(B, n)), ("y",))


@family
def cross_entropy(draw: Draw) -> RightLayer:
    smoothing = draw.choice([0.0, 0.1])

    def forward(z, labels):
        return F.cross_entropy(z, labels, label_smoothing=smoothing), (z, labels)

    def backward(dC, cache):
        z, labels = cache
        B, n = z.shape
        target = (1 - smoothing) * F.one_hot(labels, n).to(z.dtype) + smoothing / n
        return dC * (torch.softmax(z, -1) - target) / B

    B, n = draw.integer(1, 5), draw.integer(2, 6)
    return RightLayer("cross-entropy", forward, backward, (draw.normal(B, n), draw.ids(n, B)))


@family
def weighted_cross_entropy(draw: Draw) -> RightLayer:
    def forward(z, labels, weights):
        w = weights[labels]
        C = -(w * torch.log_softmax(z, -1)[torch.arange(len(z)), labels]).sum() / w.sum()
        return C, (z, labels, w)

    def backward(dC, cache):
        z, labels, w = cache
        p = torch.softmax(z, -1)
        p[torch.arange(len(z)), labels] -= 1
        return dC * p * (w / w.sum())[:, None]

    B, n = draw.integer(1, 5), draw.integer(2, 6)
    example = (draw.normal(B, n), draw.ids(n, B), draw.positive(n))
    return RightLayer("weighted cross-entropy", forward, backward, example, ("weights",))


@family
def sigmoid_cross_entropy(draw: Draw) -> RightLayer:
    def forward(z, y):
        return (torch.logaddexp(z, torch.zeros_like(z)) - y * z).sum(-1).mean(), (z, y)

    def backward(dC, cache):
        z, y = cache
        return dC * (torch.sigmoid(z) - y) / len(z)

    B, n = draw.shape(2)
    example = (draw.normal(B, n), draw.keep(B, n).to(draw.dtype))
    return RightLayer("sigmoid cross-entropy", forward, backward, example, ("y",))


@family
def hinge(draw: Draw) -> RightLayer:
    def forward(z, sign):
        margin = 1 - sign * z
        return margin.clamp(min=0).mean(), (margin, sign)

    def backward(dC, cache):
        margin, sign = cache
        return -dC * sign * (margin > 0) / margin.numel()

    shape = draw.shape(2)
    sign = 2 * draw.keep(*shape).to(draw.dtype) - 1
    return RightLayer("hinge", forward, backward, (draw.off([-1, 1], *shape), sign), ("sign",))


@family
def huber(draw: Draw) -> RightLayer:
    delta = draw.choice([0.5, 1.0])

    def forward(a, y):
        r = a - y
        small = r.abs() <= delta
        return torch.where(small, r * r / 2, delta * (r.abs() - delta / 2)).sum(), r

    def backward(dC, r):
        dr = dC * r.clamp(-delta, delta)
        return dr, -dr

    shape = draw.shape(2)
    y = draw.normal(*shape)
    return RightLayer("huber", forward, backward, (y + draw.off([-delta, delta], *shape), y))


@family
def divergence(draw: Draw) -> RightLayer:
    """KL(p ‖ q) of two softmaxes, both differentiable: ∂/∂u = p ⊙ (log p/q − KL), ∂/∂v = q − p."""

    def forward(u, v):
        log_p, log_q = torch.log_softmax(u, -1), torch.log_softmax(v, -1)
        ratio = log_p - log_q
        kl = (log_p.exp() * ratio).sum(-1)
        return kl, (log_p.exp(), log_q.exp(), ratio, kl)

    def backward(dkl, cache):
        p, q, ratio, kl = cache
        dkl = dkl[:, None]
        return dkl * p * (ratio - kl[:, None]), dkl * (q - p)

    B, n = draw.integer(1, 4), draw.integer(2, 5)
    return RightLayer("divergence", forward, backward, (draw.normal(B, n), draw.normal(B, n)))


@family
def contrastive(draw: Draw) -> RightLayer:
    """Every row of x is to find its own row of y: cross-entropy of the scores x yᵀ/τ."""

    def forward(x, y, tau):
        scores = x @ y.T / tau
        return -torch.log_softmax(scores, -1).diagonal().mean(), (x, y, tau, torch.softmax(scores, -1))

    def backward(dC, cache):
        x, y, tau, p = cache
        dscores = dC * (p - torch.eye(len(p), dtype=p.dtype, device=p.device)) / len(p) / tau
        return dscores @ y, dscores.T @ x

    B, n = draw.integer(2, 5), draw.integer(1, 4)
    return RightLayer("contrastive", forward, backward, (draw.normal(B, n), draw.normal(B, n), 0.5))
