"""A product with a matrix: z = x Wᵀ

x (…, I), W (O, I), z (…, O)

MM1  dx = dz W
MM2  dW = Σ dzᵀ x             over all places of …
"""

import torch

EQUATIONS = ("MM1", "MM2")


def forward(x, W):
    return x @ W.T, (x, W)


def backward(dz, cache):
    x, W = cache
    return dz @ W, dz.reshape(-1, W.shape[0]).T @ x.reshape(-1, W.shape[1])  # MM1, MM2


def examples(generator):
    for shape in ((5, 4), (2, 3, 4)):
        yield tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, (6, 4)))
