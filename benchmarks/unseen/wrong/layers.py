"""Pairs: normalizations, convolution and pooling."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, randn

# Normalizations


def layer_norm_forward(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Any]:
    inverse = torch.rsqrt(x.var((1, 2), correction=0, keepdim=True) + 1e-5)
    x_hat = (x - x.mean((1, 2), keepdim=True)) * inverse
    return gamma * x_hat + beta, (gamma, x_hat, inverse)


def layer_norm_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    gamma, x_hat, inverse = cache
    g = dy * gamma
    n = g.shape[-1]
    along_one, along_x = g.sum((1, 2), keepdim=True) / n, (g * x_hat).sum((1, 2), keepdim=True) / n
    return inverse * (g - along_one - x_hat * along_x), (dy * x_hat).sum(0), dy.sum(0)


pair(
    "layer norm of two axes: the sums divided by the last axis's size",
    "the sums of the projection are over both axes, and divided by the size of one",
    layer_norm_forward,
    layer_norm_backward,
    [randn(35, 2, 3, 5), randn(36, 3, 5), randn(37, 3, 5)],
    reference=lambda x, gamma, beta: F.layer_norm(x, x.shape[1:], gamma, beta),
    true=(r"^(term|factor|wrong axis)",),
)


def unit_forward(x: Tensor) -> tuple[Tensor, Any]:
    n = x.norm(dim=1, keepdim=True).clamp(min=0.5)
    return x / n, (x / n, n)


def unit_backward(dy: Tensor, cache: Any) -> Tensor:
    u, n = cache
    return (dy - u * (u * dy).sum(1, keepdim=True)) / n


pair(
    "unit vectors with a least length: projected below it too",
    "a row shorter than ε is divided by ε, a constant, and the gradient is projected all the same",
    unit_forward,
    unit_backward,
    [randn(38, 4, 5) * torch.tensor([[1.0], [1.0], [0.1], [1.0]], dtype=torch.float64)],
    reference=lambda x: F.normalize(x, dim=1, eps=0.5),
    true=(r"^(rows|term)", r"small|short"),
)


def frozen_norm_forward(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Any]:
    inverse = torch.rsqrt(var + 1e-5)
    x_hat = (x - mean) * inverse
    return gamma * x_hat + beta, (gamma, x_hat, inverse)


def frozen_norm_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    gamma, x_hat, inverse = cache
    g = dy * gamma
    return inverse * (g - g.mean(0) - x_hat * (g * x_hat).mean(0)), (dy * x_hat).sum(0), dy.sum(0)


pair(
    "batch norm with its running statistics: the gradient of training",
    "the statistics are constants here, and dx has the two terms that it has when they are the batch's",
    frozen_norm_forward,
    frozen_norm_backward,
    [randn(39, 5, 3), randn(40, 3), randn(41, 3).abs() + 0.5, randn(42, 3), randn(43, 3)],
    reference=lambda x, mean, var, gamma, beta: F.batch_norm(x, mean, var, gamma, beta),
    not_differentiable=("mean", "var"),
    true=(r"^term",),
)


def weight_norm_forward(g: Tensor, v: Tensor) -> tuple[Tensor, Any]:
    n = v.norm(dim=1, keepdim=True)
    return g[:, None] * v / n, (v / n, n)


def weight_norm_backward(dW: Tensor, cache: Any) -> tuple[Tensor, ...]:
    u, n = cache
    along = (dW * u).sum(1, keepdim=True)
    return along[:, 0], (dW - u * along) / n


pair(
    "weight normalization: g forgotten in dv",
    "dv is that of the unit vector, without the length g that multiplies it",
    weight_norm_forward,
    weight_norm_backward,
    [randn(44, 4), randn(45, 4, 5)],
    true=(r"^(missing factor|factor|term)",),
)


def group_norm_forward(x: Tensor) -> tuple[Tensor, Any]:
    groups = x.reshape(len(x), 2, -1)
    inverse = torch.rsqrt(groups.var(2, correction=0, keepdim=True) + 1e-5)
    x_hat = (groups - groups.mean(2, keepdim=True)) * inverse
    return x_hat.reshape(x.shape), (x_hat.reshape(x.shape), inverse)


def group_norm_backward(dy: Tensor, cache: Any) -> Tensor:
    x_hat, inverse = cache
    B, C, n = dy.shape
    g, h = dy.reshape(B, C // 2, 2, n), x_hat.reshape(B, C // 2, 2, n)
    projected = g - g.mean((1, 3), keepdim=True) - h * (g * h).mean((1, 3), keepdim=True)
    return (inverse * projected.reshape(B, 2, -1)).reshape(dy.shape)


pair(
    "group norm: every second channel for a group in backward",
    "forward's groups are neighbouring channels, backward's means are over every second channel",
    group_norm_forward,
    group_norm_backward,
    [randn(46, 2, 6, 3)],
    reference=lambda x: F.group_norm(x, 2),
    true=(r"^(wrong axis|term)", r"group|mean"),
)


# Convolution and pooling


def causal_forward(x: Tensor, w: Tensor) -> tuple[Tensor, Any]:
    padded = F.pad(x, (len(w) - 1, 0))
    windows = padded.unfold(1, len(w), 1)
    return windows @ w, (windows, w)


def causal_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    windows, w = cache
    T = dy.shape[1]
    d_padded = dy.new_zeros(len(dy), T + len(w) - 1)
    for k in range(len(w)):
        d_padded[:, k : k + T] += w[k] * dy
    return d_padded[:, :T], (dy[..., None] * windows).sum((0, 1))


pair(
    "causal convolution: the padding cut off at the wrong end",
    "forward pads on the left, and dx is cut on the right, so it is two steps late",
    causal_forward,
    causal_backward,
    [randn(47, 2, 7), randn(48, 3)],
    reference=lambda x, w: F.conv1d(F.pad(x[:, None], (len(w) - 1, 0)), w[None, None])[:, 0],
    true=(r"^(rows|term|wrong axis|shift)", r"shift|padd|late|roll"),
)


def mean_pool_forward(x: Tensor) -> tuple[Tensor, Any]:
    return x.unfold(2, 2, 2).mean(3), x.shape[2]


def mean_pool_backward(dy: Tensor, n: int) -> Tensor:
    dx = dy.repeat_interleave(2, 2) / 2
    return F.pad(dx, (0, n - dx.shape[2]), mode="replicate")


pair(
    "average pooling of an odd length: the tail has a gradient",
    "the last element of an odd length is in no window, and gets the gradient of the one before it",
    mean_pool_forward,
    mean_pool_backward,
    [randn(49, 2, 3, 7)],
    true=(r"^(rows|zero|term|mask ignored)", r"\blast\b|window"),
)


def max_pool_forward(x: Tensor) -> tuple[Tensor, Any]:
    windows = x.unfold(2, 2, 2)
    y = windows.amax(3).clamp(min=0)  # the running maximum starts at zero
    return y, (windows.argmax(3), y)


def max_pool_backward(dy: Tensor, cache: Any) -> Tensor:
    place, y = cache
    return (F.one_hot(place, 2) * (dy * (y > 0))[..., None]).flatten(2)


pair(
    "max pooling: the maximum starts at zero, in forward",
    "a window of negative numbers has 0 for a maximum; backward is the right derivative of that",
    max_pool_forward,
    max_pool_backward,
    [randn(50, 2, 3, 8)],
    reference=lambda x: F.max_pool1d(x, 2),
    true=(r"^(output|forward|reference)", r"forward"),
)


def power_pool_forward(x: Tensor) -> tuple[Tensor, Any]:
    windows = x.unfold(1, 2, 2)
    y = (windows.abs() ** 3).sum(2) ** (1 / 3)
    return y, (windows, y)


def power_pool_backward(dy: Tensor, cache: Any) -> Tensor:
    windows, y = cache
    return ((dy / y**2)[..., None] * windows**2).flatten(1)


pair(
    "pooling by the third power: sign of negative inputs",
    "d|x|³/dx is 3 x|x| and not 3 x², the same for positive inputs only",
    power_pool_forward,
    power_pool_backward,
    [randn(51, 3, 6)],
    true=(r"^(sign|derivative forgotten|missing factor)", r"negative"),
)


def shuffle_forward(x: Tensor) -> tuple[Tensor, Any]:
    B, C, H, W = x.shape
    y = x.reshape(B, C // 4, 2, 2, H, W).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(B, C // 4, 2 * H, 2 * W), x.shape


def shuffle_backward(dy: Tensor, shape: Any) -> Tensor:
    B, C, H, W = shape
    return dy.reshape(B, C // 4, H, 2, W, 2).permute(0, 1, 5, 3, 2, 4).reshape(shape)


pair(
    "pixel shuffle: rows and columns of the small square swapped",
    "backward puts the two axes of each 2×2 square back in the other order, which has the same shape",
    shuffle_forward,
    shuffle_backward,
    [randn(52, 2, 8, 3, 2)],
    reference=lambda x: F.pixel_shuffle(x, 2),
    true=(r"^(transposed|wrong axis|swapped|rows)", r"permut|order"),
)
