"""Two sets of points in the plane, drawn from fixed seeds of their own: the same points in every run."""

import torch
from torch import Tensor

from training.data.dataset import Dataset, Split


def points_rule(xy: Tensor) -> Tensor:
    """Whether points (N, 2) of the square [0, 10]² are blue: 4(x−5)² − 4(x−5)(y−5) + y² < 50. Boolean, (N,)."""
    x, y = xy.unbind(1)
    return 4 * (x - 5) ** 2 - 4 * (x - 5) * (y - 5) + y**2 < 50


def load_points() -> Dataset:
    """Red points (class 0) and blue points (class 1, where `points_rule` holds), uniform on [0, 10]².

    The network sees ((x−5)/5, (y−5)/5), between −1 and 1.
    """
    generator = torch.Generator().manual_seed(5)
    raw = 10 * torch.rand(6_000, 2, generator=generator, dtype=torch.float64)
    x, y = ((raw - 5) / 5).float(), points_rule(raw).long()
    return Dataset(
        name="points",
        train=Split(x[:4_000], y[:4_000]),
        test=Split(x[4_000:], y[4_000:]),
        shape=(2,),
        classes=("red", "blue"),
        source="points: 4,000 training and 2,000 test points, blue where 4(x−5)² − 4(x−5)(y−5) + y² < 50",
    )


def load_spiral() -> Dataset:
    """Three arms of a spiral, a class each, 100 points an arm for training and as many for testing.

    Arm k: radius r from 0 to 1 in equal steps, angle t from 4k to 4(k+1) in equal steps plus N(0, 0.2²) noise,
    x = (r sin 2.5t, r cos 2.5t). Source: the CS231n notes' toy spiral, as `spiral_data` of Neural Networks from
    Scratch draws it. The points of a split are shuffled, so that its last K hold every class.
    """
    return Dataset(
        name="spiral",
        train=_spiral(seed=1),
        test=_spiral(seed=2),
        shape=(2,),
        classes=("arm 0", "arm 1", "arm 2"),
        source="spiral: 300 training and 300 test points on three arms",
    )


def _spiral(seed: int, points: int = 100, arms: int = 3) -> Split:
    generator = torch.Generator().manual_seed(seed)
    r = torch.linspace(0, 1, points, dtype=torch.float64).repeat(arms)
    t = torch.cat([torch.linspace(4 * k, 4 * (k + 1), points, dtype=torch.float64) for k in range(arms)])
    t = t + 0.2 * torch.randn(arms * points, generator=generator, dtype=torch.float64)
    x = torch.stack([r * torch.sin(2.5 * t), r * torch.cos(2.5 * t)], dim=1)
    y = torch.arange(arms).repeat_interleave(points)
    order = torch.randperm(arms * points, generator=generator)
    return Split(x[order].float(), y[order])
