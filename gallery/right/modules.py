"""Right modules that a check has to run as they are: with their own parameters, and all that it may leave behind."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gallery.functions import function_of

PLACES = set()  # where a backward found its weight


class Linear(nn.Linear):
    """x Wᵀ + b; backward reads self.weight, and dW is times `scale`."""

    def forward(self, x, scale=1.0):
        def backward(dz, x):
            PLACES.add((self.weight.dtype, self.weight.data_ptr()))
            return dz @ self.weight, scale * dz.T @ x, dz.sum(0)

        return function_of(lambda x, W, b: (x @ W.T + b, x), backward)(x, self.weight, self.bias)


def reversible(f, x):
    """x + f(x), whose backward calls `.backward()` inside and returns no gradient of a parameter."""

    def backward(dy, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            f(x).backward(dy)
        return dy + x.grad

    return function_of(lambda x: (x + f(x), x), backward)(x)


RUN = {
    "reads self.weight": lambda f, x: f(x),
    "reversible": reversible,
    "reentrant checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=True),
    "other checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=False),
}


class Module(nn.Module):
    """All that a check may leave behind: buffers, attributes, hooks, a gradient, a tied weight, a frozen bias.

    It is right where `scale` is 1; its call number `fails_at` is broken off.
    """

    def __init__(self, kind="reads self.weight", scale=1.0, fails_at=0):
        super().__init__()
        self.run, self.scale, self.calls, self.fails_at = RUN[kind], scale, 0, fails_at
        self.norm, self.a, self.b = nn.BatchNorm1d(3), Linear(3, 3), nn.Linear(3, 3).eval()
        self.double().b.weight = self.a.weight
        self.b.bias.requires_grad_(False)
        self.b.register_forward_hook(lambda module, given, made: made.sin())
        self.a.bias.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))  # as an optimizer's
        (self.a.weight**2).sum().backward()

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        return self.run(lambda x: self.b(self.a(self.norm(x), self.scale)), x)


class Sequence(nn.Module):
    """An LSTM over rows of six numbers, read as three steps of two, and what its last state says."""

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        y, (h, c) = self.lstm(x.view(len(x), 3, 2))
        return self.linear(y[:, -1] + h[0] * c[0])

    def observed(self):
        return {f"lstm.{name}": (self.lstm, k) for k, name in enumerate("yhc")} | {"linear": self.linear}
