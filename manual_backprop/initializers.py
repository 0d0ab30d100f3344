"""Initial values: where on the cost surface the descent starts.

An initializer is a function of a parameter's name and shape that draws from a generator. It draws in float64 on the
CPU whatever the network's dtype and device, so that one seed is one start everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Generator, Tensor

from manual_backprop.parameters import Parameters, Shape

Draw = Callable[[Shape, Generator], Tensor]
Initializer = Callable[[str, Shape, Generator], Tensor]  # (name, shape, generator) → initial values


@dataclass(frozen=True)
class WeightsAndBiases:
    """An initializer that draws weights, biases and embeddings, each in its own way.

    Names that end in `.bias`, or in `.bias_…` as those of recurrent layers, are biases, and `embedding.weight` has a
    row for each id; of the others, matrices and kernels are weights, and vectors are scales (the γ of a normalization),
    which start at 1.
    """

    weight: Draw
    bias: Draw
    embedding: Draw

    def __call__(self, name: str, shape: Shape, generator: Generator) -> Tensor:
        if name.rpartition(".")[2].startswith("bias"):
            return self.bias(shape, generator)
        if name.endswith("embedding.weight"):
            return self.embedding(shape, generator)
        return self.weight(shape, generator) if len(shape) > 1 else torch.ones(shape, dtype=torch.float64, device="cpu")


def standard_normal(shape: Shape, generator: Generator) -> Tensor:
    """w ~ N(0, 1). The lessons' start (Nielsen, chapter 1); sums of many such terms saturate a sigmoid.

    An embedding starts so: its output is one row, no sum.
    """
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def scaled_normal(shape: Shape, generator: Generator) -> Tensor:
    """w ~ N(0, 1/fan_in): z is then of the size of the inputs, whatever their number (Nielsen, chapter 3)."""
    return standard_normal(shape, generator) / sqrt(fan_in(shape))


def small_normal(shape: Shape, generator: Generator) -> Tensor:
    """w ~ N(0, 0.01²): outputs next to zero, whatever the input (Neural Networks from Scratch, chapter 3)."""
    return 0.01 * standard_normal(shape, generator)


def xavier(shape: Shape, generator: Generator) -> Tensor:
    """w ~ U(−r, r), r = √(6 / (fan_in + fan_out)): keeps variance forward and backward (Glorot and Bengio 2010)."""
    r = sqrt(6 / (fan_in(shape) + fan_out(shape)))
    return r * (2 * torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") - 1)


def he(shape: Shape, generator: Generator) -> Tensor:
    """w ~ N(0, 2/fan_in): as many inputs again, because a relu passes half of them (He et al. 2015)."""
    return sqrt(2) * scaled_normal(shape, generator)


def zeros(shape: Shape, generator: Generator) -> Tensor:
    """w = 0: every neuron of a layer stays the same neuron."""
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


def constant(shape: Shape, generator: Generator) -> Tensor:
    """w = ½: equal weights, the same symmetry as zeros, with gradients that are not zero."""
    return torch.full(shape, 0.5, dtype=torch.float64, device="cpu")


def fan_in(shape: Shape) -> int:
    """Inputs of a neuron: the product of all dimensions but the first (`in` of a matrix, in·kh·kw of a convolution)."""
    return prod(shape[1:])


def fan_out(shape: Shape) -> int:
    """Neurons that an input reaches: `out` of a matrix, out·kh·kw of a convolution."""
    return shape[0] * prod(shape[2:])


INITIALIZERS: dict[str, Initializer] = {
    "standard-normal": WeightsAndBiases(standard_normal, standard_normal, standard_normal),
    "scaled-normal": WeightsAndBiases(scaled_normal, standard_normal, standard_normal),
    "small-normal": WeightsAndBiases(small_normal, zeros, small_normal),
    "xavier": WeightsAndBiases(xavier, zeros, standard_normal),
    "he": WeightsAndBiases(he, zeros, standard_normal),
    "zeros": WeightsAndBiases(zeros, zeros, zeros),
    "constant": WeightsAndBiases(constant, zeros, constant),
}


def initialize(parameters: Parameters, initializer: Initializer, seed: int) -> None:
    """Fill every parameter, in order, from one generator."""
    generator = Generator().manual_seed(seed)
    for name, tensor in parameters.items():
        tensor.copy_(initializer(name, tuple(tensor.shape), generator))
