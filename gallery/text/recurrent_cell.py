"""One step of a recurrent network: h′ = tanh(x W_xᵀ + h W_hᵀ + b)

    x (B, I), h and h′ (B, N), W_x (N, I), W_h (N, N), b (N,); dz = dh′ ⊙ (1 − h′²)

    RN1  dx = dz W_x
    RN2  dh = dz W_h
    RN3  dW_x = dzᵀ x
    RN4  dW_h = dzᵀ h
    RN5  db = Σ_batch dz

Source: Elman 1990.
"""

import torch

EQUATIONS = ("RN1", "RN2", "RN3", "RN4", "RN5")


def forward(x, h, W_x, W_h, b):
    h_new = torch.tanh(x @ W_x.T + h @ W_h.T + b)
    return h_new, (x, h, W_x, W_h, h_new)


def backward(dh_new, cache):
    x, h, W_x, W_h, h_new = cache
    dz = dh_new * (1 - h_new * h_new)
    return dz @ W_x, dz @ W_h, dz.T @ x, dz.T @ h, dz.sum(dim=0)  # RN1 … RN5


def examples(generator):
    B, inputs, N = 3, 4, 5
    sizes = ((B, inputs), (B, N), (N, inputs), (N, N), (N,))
    for scale in (0.5, 1.0):
        yield tuple(scale * torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
