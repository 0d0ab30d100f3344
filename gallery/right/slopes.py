"""Functions of one tensor that central differences must judge rightly: steep, badly scaled, cancelling, or with kinks.

Each makes, of the random numbers of a `Problem`, summands and the point at which their slopes are asked for.
"""

import torch

from gallery.entry import normal


class Problem:
    """Random numbers that the functions below are made of."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.n = int(torch.randint(1, 40, (), generator=generator))
        self.c, self.d, self.v = (normal(generator, self.n) for _ in range(3))
        self.W = normal(generator, 17, self.n)


SMOOTH = {  # name: (summands, point)
    "linear": lambda p: (lambda x: p.c * x, p.v),
    "exp": lambda p: (lambda x: p.c * torch.exp(3 * x), p.v),
    "steep tanh": lambda p: (lambda x: p.c * torch.tanh(50 * x), p.v * 0.1),
    "saturated tanh": lambda p: (lambda x: p.c * torch.tanh(50 * x), p.v),
    "points of 1e4": lambda p: (lambda x: p.c * x * x.sin(), p.v * 1e4),
    "points of 1e-4": lambda p: (lambda x: p.c * (1e4 * x).sin(), p.v * 1e-4),
    "log of 1e-4": lambda p: (lambda x: p.c * x.log(), p.v.abs() * 1e-4 + 1e-7),
    "cancellation at 1e6": lambda p: (lambda x: p.c * ((x + 1e6) - 1e6) ** 2, p.v),
    "cancellation at 1e7": lambda p: (lambda x: p.c * ((x + 1e7) - 1e7) ** 2, p.v),
    "logsumexp at 1e4": lambda p: (lambda x: (torch.logsumexp(x + 1e4, 0) - 1e4)[None], p.v),
    "saturated softmax": lambda p: (lambda x: p.c * torch.softmax(30 * x, 0), p.v),
    "matrix": lambda p: (lambda x: torch.tanh(p.W @ x), p.v),
    "float32 inside": lambda p: (lambda x: p.c * torch.tanh(x.float()).double(), p.v),
    "float32 matrix inside": lambda p: (lambda x: torch.tanh(p.W.float() @ x.float()).double(), p.v),
    "fourth power at 0": lambda p: (lambda x: (p.W @ x) ** 4, p.v * 0),
    "constant": lambda p: (lambda x: p.c + 0 * x, p.v),
    "shift before normalization": lambda p: (lambda x: ((x - x.mean()) * p.d).flatten() * p.c.sum(), p.v),
    "quick sine": lambda p: (lambda x: p.c * (1e3 * x).sin(), p.v),
    "root near 0": lambda p: (lambda x: p.c * x.abs().sqrt(), p.v * 1e-3),
    "relu within 1e-4": lambda p: (lambda x: p.c * x.relu(), p.d.sign() * 1e-4),
    "relu within 1e-6": lambda p: (lambda x: p.c * x.relu(), p.d.sign() * 1e-6),
    "relu within 1e-8": lambda p: (lambda x: p.c * x.relu(), p.d.sign() * 1e-8),
    "relu of a matrix": lambda p: (lambda x: torch.relu(p.W @ x), p.v),
    "thousands of relus": lambda p: (lambda x: torch.relu(torch.linspace(-3, 3, 4001) * x[0] + p.c[0]), p.v),
    "stairs": lambda p: (lambda x: p.c * x.floor(), p.v),
}
KINKED = {  # name: (summands, point, where the kinks are)
    "relu at 0": lambda p: (lambda x: p.c * x.relu(), p.v * 0, p.v == p.v),
    "relu within 1e-12": lambda p: (lambda x: p.c * x.relu(), p.d.sign() * 1e-12, p.v == p.v),
    "abs at some 0": lambda p: (lambda x: p.c * x.abs() + x, p.v.relu(), p.v <= 0),
    "tie in max": lambda p: (lambda x: p.c * torch.maximum(x, p.d), torch.where(p.v > 0, p.d, p.v), p.v > 0),
    "clamp at its limits": lambda p: (lambda x: p.c * x.clamp(-1, 1), p.v.clamp(-1, 1), p.v.abs() > 1),
    "a jump": lambda p: (lambda x: p.c * x.floor() + x, p.v.round(), p.v == p.v),
    "stairs finer than the first steps": lambda p: (lambda x: (x * 1e6).floor() / 1e6, p.v * 0 + 0.3, p.v == p.v),
    "sqrt at 0": lambda p: (lambda x: p.c * x.sqrt(), p.v.relu(), p.v <= 0),
}
