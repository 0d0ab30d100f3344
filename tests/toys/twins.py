"""The twins of the toys: ordinary modules, differentiated by autograd."""

import torch
from torch import Tensor, nn

from toys.conv_net import ConvNet
from toys.recurrent_net import KEEP, RecurrentNet

Observed = tuple[dict[str, nn.Module], dict[str, nn.Module]]


class ConvNetTwin(nn.Module):
    def __init__(self, config: ConvNet) -> None:
        super().__init__()
        C, (kh, kw) = config.channels, config.kernel
        self.shape = (C, config.height, config.width)
        self.conv = nn.Conv2d(C, C, (kh, kw), padding="same")
        self.norm1, self.norm2 = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
        self.tanh = nn.Tanh()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(C, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        a = self.tanh(self.norm1(self.conv(x.unflatten(1, self.shape))))
        a = self.tanh(self.norm2(self.conv(a)))
        return self.linear(self.pool(a))

    def observed(self) -> Observed:
        return dict(self.named_children()), {}


class RecurrentCell(nn.Module):
    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.weight_x = nn.Parameter(torch.zeros(hidden, features))
        self.weight_h = nn.Parameter(torch.zeros(hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(x, self.weight_x, self.bias) + nn.functional.linear(h, self.weight_h))


class RecurrentNetTwin(nn.Module):
    h: Tensor

    def __init__(self, config: RecurrentNet) -> None:
        super().__init__()
        self.time, self.hidden = config.time, config.hidden
        self.cell = RecurrentCell(config.features, config.hidden)
        self.linear = nn.Linear(config.hidden, config.classes)
        self.register_buffer("h", torch.zeros(config.batch, config.hidden))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x * mask / KEEP
        h = self.h.clone() if self.training else x.new_zeros(len(x), self.hidden)
        for x_t in x.unflatten(1, (self.time, -1)).unbind(1):
            h = self.cell(x_t, h)
        if self.training:
            self.h.copy_(h.detach())
        return self.linear(h)

    def observed(self) -> Observed:
        return dict(self.named_children()), {}
