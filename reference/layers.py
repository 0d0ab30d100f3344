"""The twins of manual_backprop/layers: torch.nn.functional, each of the name and the arguments of its layer."""

from torch import Tensor
from torch.nn import functional as F

Size = int | tuple[int, int]


def dropout(x: Tensor, mask: Tensor, keep: float) -> Tensor:
    return x.masked_fill(mask == 0, 0.0) / keep


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


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """In training; the running statistics, which torch would write to, stay as they are."""
    return F.batch_norm(x, running_mean.clone(), running_var.clone(), gamma, beta, True, momentum, eps)


def batch_norm_evaluation(
    x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor, eps: float = 1e-5
) -> Tensor:
    return F.batch_norm(x, running_mean, running_var, gamma, beta, False, eps=eps)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, gamma.shape, gamma, beta, eps)


def group_norm(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """F.group_norm folds μ into the shift, which cancels badly where a group is constant; F.layer_norm does not."""
    grouped = x.unflatten(1, (groups, -1)).flatten(2)
    xhat = F.layer_norm(grouped, grouped.shape[2:], eps=eps).view(x.shape)
    return (xhat.movedim(1, -1) * gamma + beta).movedim(-1, 1)


def prelu(z: Tensor, alpha: Tensor) -> Tensor:
    return F.prelu(z, alpha)
