"""Softmax and its relatives."""

import math

import torch

from gallery.right.base import Draw, RightLayer, family


@family
def softmax(draw: Draw) -> RightLayer:
    shape = draw.shape(draw.integer(1, 3), low=2)
    dim = draw.integer(0, len(shape) - 1)

    def forward(z):
        p = torch.softmax(z, dim)
        return p, p

    def backward(dp, p):
        return p * (dp - (dp * p).sum(dim, keepdim=True))

    return RightLayer("softmax", forward, backward, (draw.normal(*shape),))


@family
def softmax_written_out(draw: Draw) -> RightLayer:
    """The maximum that is taken off for safety cancels, so that backward leaves it out."""

    def forward(z):
        e = torch.exp(z - z.max(-1, keepdim=True).values)
        p = e / e.sum(-1, keepdim=True)
        return p, p

    def backward(dp, p):
        return p * (dp - (dp * p).sum(-1, keepdim=True))

    B, n = draw.shape(2, low=2)
    return RightLayer("softmax written out", forward, backward, (draw.normal(B, n),))


@family
def log_softmax(draw: Draw) -> RightLayer:
    def forward(z):
        y = torch.log_softmax(z, -1)
        return y, y

    def backward(dy, y):
        return dy - torch.exp(y) * dy.sum(-1, keepdim=True)

    B, n = draw.shape(2, low=2)
    return RightLayer("log-softmax", forward, backward, (draw.normal(B, n),))


@family
def logsumexp(draw: Draw) -> RightLayer:
    def forward(z):
        return torch.logsumexp(z, -1), z

    def backward(dy, z):
        return dy[..., None] * torch.softmax(z, -1)

    return RightLayer("logsumexp", forward, backward, (draw.normal(*draw.shape(2)),))


@family
def masked_softmax(draw: Draw) -> RightLayer:
    def forward(z, mask):
        p = torch.softmax(z.masked_fill(~mask, -math.inf), -1)
        return p, p

    def backward(dp, p):
        return p * (dp - (dp * p).sum(-1, keepdim=True))

    B, n = draw.shape(2, low=3)
    mask = draw.keep(B, n)
    mask[:, :2] = True
    return RightLayer("masked softmax", forward, backward, (draw.normal(B, n), mask))
