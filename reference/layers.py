"""The twins of manual_backprop/layers: torch.nn.functional, each of the name and the arguments of its layer."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


def embedding(ids: Tensor, E: Tensor, padding: int | None = None) -> Tensor:
    """nn.Embedding keeps the row of its padding id at zero; a given E may have other numbers there."""
    E = E if padding is None else E.index_fill(0, torch.tensor([padding], device=E.device), 0.0)
    return F.embedding(ids, E, padding)


def rnn(
    x: Tensor,
    h: Tensor,
    W_ih: Tensor,
    W_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, ...]:
    module = torch.nn.RNN(x.shape[-1], h.shape[-1], nonlinearity=activation, batch_first=True, device="meta")
    return _recurrent(module, x, [h], [W_ih, W_hh, b_ih, b_hh], lengths, reverse)


def lstm(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    W_ih: Tensor,
    W_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, ...]:
    module = torch.nn.LSTM(x.shape[-1], h.shape[-1], batch_first=True, device="meta")
    return _recurrent(module, x, [h, c], [W_ih, W_hh, b_ih, b_hh], lengths, reverse)


def gru(
    x: Tensor,
    h: Tensor,
    W_ih: Tensor,
    W_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, ...]:
    module = torch.nn.GRU(x.shape[-1], h.shape[-1], batch_first=True, device="meta")
    return _recurrent(module, x, [h], [W_ih, W_hh, b_ih, b_hh], lengths, reverse)


def _recurrent(
    module: torch.nn.RNNBase,
    x: Tensor,
    states: list[Tensor],
    parameters: list[Tensor],
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """y and the last states of a module of one layer; the other direction is the mirrored sequence."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    own: Any = [state[None] for state in states]
    own = tuple(own) if len(own) > 1 else own[0]
    given = mirrored(x, lengths) if reverse else x
    packed = given if lengths is None else pack_padded_sequence(given, lengths.cpu(), True, enforce_sorted=False)
    y, last = functional_call(module, dict(zip(names, parameters, strict=True)), (packed, own))
    if lengths is not None:
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    last = last if isinstance(last, tuple) else (last,)
    return mirrored(y, lengths) if reverse else y, *(state[0] for state in last)


def mirrored(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Every sequence of (B, T, …) from its last step to its first; what lies behind its end stays there."""
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    places = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    return x.gather(1, places[:, :, None].expand_as(x))
