"""A layer by hand against torch.nn.functional and autograd, at a random cotangent: outputs and all gradients."""

import pytest
import torch
from torch import Generator, Tensor


def normal(seed, *shape):
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def by_autograd(function, arguments, fixed=()):
    """The output, a random cotangent, and the gradients of all tensors whose position is not in `fixed`."""

    def leaf(i, v):
        if not isinstance(v, Tensor) or i in fixed:
            return v
        return v.detach().clone(memory_format=torch.preserve_format).requires_grad_()

    leaves = [leaf(i, v) for i, v in enumerate(arguments)]
    output = function(*leaves)
    cotangent = normal(output.numel() + 1, *output.shape)
    wanted = [v for v in leaves if isinstance(v, Tensor) and v.requires_grad]
    return output.detach(), cotangent, list(torch.autograd.grad(output, wanted, cotangent))


def assert_same(actual, expected, what, tolerance=1e-12):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    error, size = (actual - expected).norm().item(), expected.norm().item()
    assert error <= tolerance * size + 1e-14, f"{what}: off by {error:.1e} of {size:.1e}"


def assert_torchs(layer, function, *arguments, fixed=()):
    """`layer` gives what `function` does. Arguments at the positions in `fixed` are not differentiable."""
    said = ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else str(v) for v in arguments)
    expected, cotangent, gradients = by_autograd(function, arguments, fixed)
    with torch.inference_mode():
        output, cache, *_ = layer.forward(*arguments)
        returned = layer.backward(cotangent, cache)
    assert_same(output, expected, f"the output of {said}")
    returned = returned if isinstance(returned, tuple) else (returned,)
    for i, (actual, gradient) in enumerate(zip(returned, gradients, strict=True)):
        assert_same(actual, gradient, f"gradient {i} of {said}")


def refusal(function, *shapes, **options):
    """The sentence that refuses tensors of these shapes; a number and None stand for themselves."""
    arguments = [torch.zeros(shape) if isinstance(shape, tuple) else shape for shape in shapes]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        function(*arguments, **options)
    return str(caught.value)
