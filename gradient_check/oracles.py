"""What a backward pass is compared with, beside central differences (differences.py): autograd, a dot product."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gradient_check.modes import own_modes

ORACLES = ("reference", "autograd", "dot product", "differences")


class NoForwardMode(ValueError):
    """Forward is made of what has no forward mode."""


class OtherOutputs(ValueError):
    """A forward pass gave outputs of other shapes than the cotangents."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], outputs: Sequence[Tensor]) -> None:
        super().__init__(f"its outputs have the shapes {', '.join(map(str, shapes)) or '(none)'}")
        self.outputs = tuple(output.detach() for output in outputs)


Forward = Callable[..., Any]  # arguments → output, or a tuple with the outputs first


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    """The tensors of floating point at the start of what a forward returned."""
    values = result if isinstance(result, tuple | list) else (result,)
    outputs = []
    for value in values:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            break
        outputs.append(value)
    return tuple(outputs)


@own_modes()
def autograd_gradients(
    forward: Forward,
    arguments: Sequence[Any],
    differentiable: Sequence[int],
    cotangents: Sequence[Tensor] | Tensor,
) -> list[Tensor]:
    """Jᵀ d_output by autograd through `forward`, for each differentiable argument; zeros where there is no path.

    Raises ValueError where `forward` leaves no graph to go through.
    """
    cotangents = [cotangents] if isinstance(cotangents, Tensor) else list(cotangents)
    own = [v.detach().clone() if i in differentiable else v for i, v in enumerate(arguments)]
    return gradients_and_outputs(forward, own, differentiable, cotangents)[0]


def gradients_and_outputs(
    forward: Forward, arguments: Sequence[Any], differentiable: Sequence[int], cotangents: Sequence[Tensor]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """As `autograd_gradients`, with the outputs that they came from; it takes the arguments for its own."""
    leaves = list(arguments)
    for i in differentiable:
        leaves[i] = arguments[i].detach().requires_grad_()
    with torch.enable_grad():
        outputs = outputs_of(forward(*leaves))[: len(cotangents)]
        shapes = [tuple(output.shape) for output in outputs]
        if shapes != [tuple(cotangent.shape) for cotangent in cotangents]:
            raise OtherOutputs(shapes, outputs)
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        if not pairs:
            raise ValueError("autograd finds no graph: the forward pass is not made of differentiable operators")
        gradients = torch.autograd.grad(
            [o for o, _ in pairs], [leaves[i] for i in differentiable], [c for _, c in pairs], allow_unused=True
        )
    given = zip(differentiable, gradients, strict=True)
    found = [torch.zeros_like(leaves[i]) if g is None else dense(g) for i, g in given]
    return found, tuple(output.detach() for output in outputs)


def directional_derivatives(
    forward: Forward, arguments: Sequence[Any], differentiable: Sequence[int], directions: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """J u in forward mode: how each output moves when the arguments move along `directions`.

    Raises NoForwardMode, a ValueError, where `forward` is not made of operators that have one.
    """
    with forward_ad.dual_level():
        duals = list(arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first dual loads a part of torch that warns of itself
            for i, u in zip(differentiable, directions, strict=True):
                duals[i] = forward_ad.make_dual(arguments[i].detach().clone(), u)
        try:
            outputs = outputs_of(forward(*duals))
        except (NotImplementedError, RuntimeError) as error:
            if any(said in str(error) for said in ("forward AD", "forward mode AD", "jvp")):
                raise NoForwardMode(str(error)) from error
            raise
        tangents = [forward_ad.unpack_dual(output).tangent for output in outputs]
    if all(tangent is None for tangent in tangents):
        raise NoForwardMode("forward mode finds no path: the forward pass is not made of differentiable operators")
    return tuple(torch.zeros_like(o) if t is None else t for o, t in zip(outputs, tangents, strict=True))


@own_modes()
def directional_derivative(
    forward: Forward, arguments: Sequence[Any], differentiable: Sequence[int], directions: Sequence[Tensor]
) -> Tensor:
    """J u of the first output."""
    return directional_derivatives(forward, arguments, differentiable, directions)[0]


def dense(gradient: Tensor) -> Tensor:
    """A sparse gradient as its dense values, duplicates added up; every other as it is."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def longest_sum(values: Sequence[Any]) -> int:
    """How many products may have been added up in one element: no more than the largest tensor has elements."""
    return max(value.numel() for value in values if isinstance(value, Tensor))


def drawn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers; the same in every dtype, but for rounding."""
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu").to(
        tensor.device, tensor.dtype
    )


def random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
    """Signs at random, sizes from ½ to 1½: no element is near zero, so none can hide."""
    size = torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5
    sign = 2.0 * torch.randint(0, 2, like.shape, generator=generator, device="cpu") - 1
    return (size * sign).to(like)


def nudged(arguments: Sequence[Any], positions: Sequence[int]) -> list[Any]:
    """The arguments, those at `positions` moved by rounding."""
    return [moved_by_rounding(v, 0) if i in positions else v for i, v in enumerate(arguments)]


def moved_by_rounding(tensor: Tensor, draw: int) -> Tensor:
    """Every element off by one unit in the last place, up or down by its own value: zeros stay, equal ones equal."""
    return moved_by(torch.finfo(tensor.dtype).eps, tensor, draw) if tensor.is_floating_point() else tensor


def moved_by(part: float, tensor: Tensor, draw: int) -> Tensor:
    """Every element off by that part of itself, up or down by its own value: zeros stay, equal ones equal."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    bits = (tensor.double().view(torch.int64) ^ (0x9E3779B97F4A7C15 >> (draw + 1))) * 0x2545F4914F6CDD1D
    sign = 1.0 - 2.0 * ((bits >> 40) & 1).to(tensor.dtype)
    return tensor + sign * part * tensor


def copies(values: Sequence[Any]) -> list[Any]:
    """Of the tensors, laid out as they are."""
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def contiguous(values: Sequence[Any]) -> list[Any]:
    """Contiguous copies, made outside of inference mode so that autograd may see them."""
    return [v.detach().clone(memory_format=torch.contiguous_format) if isinstance(v, Tensor) else v for v in values]


def doubled(values: Sequence[Any]) -> list[Any]:
    """In float64 where they are of floating point."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]
