"""Mistakes with complex numbers, for which backward is linear over the reals and a gradient is ∂C/∂Re + i ∂C/∂Im."""

import torch

from gallery import naive
from gallery.entry import Layer, normal


def drawn(generator, *shape):
    return torch.complex(normal(generator, *shape), normal(generator, *shape))


def real_product(generator):
    return normal(generator, 7, 5) + 0j, normal(generator, 5, 3) + 0j


def product(x, W):
    return x @ W, (x, W)


def product_backward(dz, cache):
    x, W = cache
    return dz @ W.conj().T, x.conj().T @ dz


PRODUCT = Layer(product, product_backward, lambda g: (drawn(g, 7, 5), drawn(g, 5, 3)))
REAL = naive.given("values without an imaginary part", real_product)


@PRODUCT.wrong(
    "complex product: conjugate forgotten in dW",
    what="dW = xᵀ dz for xᴴ dz",
    naive=REAL,
    diagnosis=["conjugate"],
)
def weight_not_conjugated(dz, cache):
    x, W = cache
    return dz @ W.conj().T, x.T @ dz


@PRODUCT.wrong(
    "complex product: conjugate forgotten in dx",
    what="dx = dz Wᵀ for dz Wᴴ",
    naive=REAL,
    diagnosis=["conjugate"],
)
def input_not_conjugated(dz, cache):
    x, W = cache
    return dz @ W.T, x.conj().T @ dz


MODULUS = Layer(lambda z: (z.abs(), z), lambda da, z: da * z.sgn(), lambda g: (drawn(g, 5, 4),))


@MODULUS.wrong(
    "modulus: conjugated",
    what="the gradient of |z| is d z̄/|z| for d z/|z|",
    naive=naive.given("values without an imaginary part", lambda g: (normal(g, 5, 4) + 0j,)),
    diagnosis=["conjugate"],
)
def modulus_conjugated(da, z):
    return da * z.sgn().conj()


POWER = Layer(lambda z: (z.real**2 + z.imag**2, z), lambda dy, z: 2 * dy * z, lambda g: (drawn(g, 5, 4),))


@POWER.wrong(
    "squared modulus: Wirtinger's half",
    what="the gradient of |z|² is d z, the derivative by z̄, for 2 d z",
    naive=naive.cost_falls,
    diagnosis=["factor"],
)
def wirtinger(dy, z):
    return dy * z


def spectrum(x):
    return torch.fft.rfft(x), x.shape[-1]


def spectrum_backward(dX, n):
    full = dX.new_zeros(*dX.shape[:-1], n)
    full[..., : dX.shape[-1]] = dX
    return torch.fft.ifft(full).real * n


SPECTRUM = Layer(spectrum, spectrum_backward, lambda g: (normal(g, 3, 7),))


@SPECTRUM.wrong(
    "rfft: frequencies doubled",
    what="backward is n times `irfft`, which counts all frequencies twice that forward returns once",
    naive=naive.given("two values, which have no frequency in between", lambda g: (normal(g, 3, 2),)),
)
def doubled(dX, n):
    return torch.fft.irfft(dX, n) * n


# right ones, over which no alarm is raised

Z = drawn(torch.Generator().manual_seed(0), 5, 3)
RIGHT = {
    "product": (PRODUCT.forward, PRODUCT.backward, PRODUCT.arguments(0)),
    "spectrum": (SPECTRUM.forward, SPECTRUM.backward, SPECTRUM.arguments(0)),
    "exponential": (lambda z: (z.exp(), z), lambda dy, z: (dy.conj() * z.exp()).conj(), [Z]),
    "real part": (lambda z: (z.real, z), lambda dy, z: dy + 0j, [Z]),
    "angle": (lambda z: (z.angle(), z), lambda dy, z: torch.where(z == 0, 0, 1j * dy / z.conj()), [Z]),
    "arrays": (lambda b: (b["z"] ** 2, b), lambda dy, b: {"z": 2 * dy * b["z"].conj()}, [{"z": Z.numpy()}]),
}
