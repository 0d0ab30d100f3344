"""The twins of manual_backprop/layers: torch.nn.functional, of the same arguments."""

from torch import Tensor
from torch.nn import functional as F

Size = int | tuple[int, int]


def linear(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, W, b)


def conv2d(
    x: Tensor,
    W: Tensor,
    b: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    return F.conv2d(x, W, b, stride, padding, dilation, groups)


def max_pool2d(
    x: Tensor, kernel: Size, stride: Size | None = None, padding: Size = 0, ceil_mode: bool = False
) -> Tensor:
    return F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode)


def avg_pool2d(
    x: Tensor, kernel: Size, stride: Size | None = None, padding: Size = 0, ceil_mode: bool = False
) -> Tensor:
    return F.avg_pool2d(x, kernel, stride, padding, ceil_mode)


def adaptive_avg_pool2d(x: Tensor, size: Size) -> Tensor:
    return F.adaptive_avg_pool2d(x, size)
