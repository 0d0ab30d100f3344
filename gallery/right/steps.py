"""One step of training, by hand and by autograd: a batch of linear regression."""

import torch
from torch import nn

from gallery.affine import LINEAR
from gallery.entry import normal
from gradient_check import Step

X, W, B = LINEAR.arguments(0)
BATCH = [X, normal(torch.Generator().manual_seed(3), len(X), len(B))]


def by_hand(x, y, scale=1.0):
    """The step of `Net`, right where `scale`, that of δ, is 1."""
    z = x @ W.T + B
    delta = scale * (z - y) / len(x)
    gradients = {"layer.weight": delta.T @ x, "layer.bias": delta.sum(0)}
    return Step(((z - y) ** 2).sum() / 2 / len(x), gradients, {"layer": z, "δ layer": delta})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3).double()
        self.layer.load_state_dict({"weight": W, "bias": B})

    def forward(self, x, y):
        return ((self.layer(x) - y) ** 2).sum() / 2 / len(x)
