"""Moving elements around."""

import torch
from torch.nn import functional as F

from gallery.right.base import Draw, RightLayer, family


@family
def permute(draw: Draw) -> RightLayer:
    order = draw.choice([(0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0)])

    def forward(x):
        return x.permute(order), None

    def backward(dy, cache):
        return dy.permute([order.index(i) for i in range(3)])

    return RightLayer("permute", forward, backward, (draw.normal(*draw.shape(3)),))


@family
def flatten(draw: Draw) -> RightLayer:
    def forward(x):
        return x.flatten(1), x.shape

    def backward(dy, shape):
        return dy.reshape(shape)

    return RightLayer("flatten", forward, backward, (draw.normal(*draw.shape(3)),))


@family
def flip_and_roll(draw: Draw) -> RightLayer:
    shift = draw.integer(-2, 3)

    def forward(x):
        return x.flip(0).roll(shift, -1), None

    def backward(dy, cache):
        return dy.roll(-shift, -1).flip(0)

    return RightLayer("flip and roll", forward, backward, (draw.normal(*draw.shape(2)),))


@family
def pad(draw: Draw) -> RightLayer:
    left, right = draw.integer(0, 3), draw.integer(0, 3)

    def forward(x):
        return F.pad(x, (left, right)), x.shape[-1]

    def backward(dy, n):
        return dy[..., left : left + n]

    return RightLayer("pad", forward, backward, (draw.normal(*draw.shape(2)),))


@family
def triangle(draw: Draw) -> RightLayer:
    def forward(x):
        return x.tril(), None

    def backward(dy, cache):
        return dy.tril()

    return RightLayer("triangle", forward, backward, (draw.normal(*draw.shape(2)),))


@family
def concatenate(draw: Draw) -> RightLayer:
    def forward(x, y, z):
        return torch.cat([x, y, z], -1), (x.shape[-1], y.shape[-1], z.shape[-1])

    def backward(dw, sizes):
        return dw.split(sizes, -1)

    B = draw.integer(1, 4)
    return RightLayer("concatenate", forward, backward, tuple(draw.normal(B, n) for n in draw.shape(3)))


@family
def stack(draw: Draw) -> RightLayer:
    def forward(x, y):
        return torch.stack([x, y], 1), None

    def backward(dz, cache):
        return dz.unbind(1)

    shape = draw.shape(2)
    return RightLayer("stack", forward, backward, (draw.normal(*shape), draw.normal(*shape)))


@family
def split(draw: Draw) -> RightLayer:
    k = draw.integer(1, 3)

    def forward(x):
        return x[:, :k], x[:, k:], None

    def backward(dy, dz, cache):
        return torch.cat([dy, dz], 1)

    return RightLayer("split", forward, backward, (draw.normal(draw.integer(1, 4), k + draw.integer(1, 3)),), outputs=2)


@family
def rotary(draw: Draw) -> RightLayer:
    """Pairs of features are turned by an angle that grows with the place; backward turns them back."""

    def turn(x, angles):
        a, b = x.chunk(2, -1)
        cos, sin = torch.cos(angles), torch.sin(angles)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(x, angles):
        return turn(x, angles), angles

    def backward(dy, angles):
        return turn(dy, -angles)

    B, T, n = draw.shape(3)
    return RightLayer("rotary", forward, backward, (draw.normal(B, T, 2 * n), draw.normal(T, n)), ("angles",))
