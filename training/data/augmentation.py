"""Random augmentation of a mini-batch's pictures: a pure function of seed and step, like the noise."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.expansion import turn
from training.data.noise import step_generator

Augment = Callable[[int, Tensor], Tensor]  # (steps taken, x) → x as this step shows it; the same for the same steps
Pictures = Tensor  # (B, height, width), floating point


def make_augment(shape: tuple[int, ...], shift: int, rotate: float, seed: int) -> Augment:
    """Pictures of shape (height, width), flattened, each turned and moved by draws of its own, which are uniform.

    By −shift..shift whole pixels down, as many across, and an angle of −rotate..rotate degrees around its middle.
    What comes in is 0, what goes out is lost. Raises ValueError for a shape that is no picture's, and, when called,
    for x of another width.
    """
    if len(shape) != 2:
        raise ValueError(f"only pictures (height, width) can be augmented, and the examples have the shape {shape}")
    height, width = shape

    def augment(steps: int, x: Tensor) -> Tensor:
        if x.shape[1:] != (height * width,):
            raise ValueError(f"x has the shape {tuple(x.shape)}, but here it must be (B, {height * width})")
        if not len(x):
            return x
        pictures = x.view(-1, height, width)
        generator = step_generator(seed, steps, "augment")
        moves = torch.randint(-shift, shift + 1, (len(x), 2), generator=generator)
        if not rotate:
            return moved(pictures, moves, shift).flatten(1)
        degrees = rotate * (2 * torch.rand(len(x), generator=generator, dtype=torch.float64) - 1)
        return turned(pictures, moves, degrees).flatten(1)

    return augment


def moved(pictures: Pictures, moves: Tensor, most: int) -> Pictures:
    """Moved by `moves` (B, 2) whole pixels down and right, at most `most`: the very values."""
    height, width = pictures.shape[1:]
    windows = F.pad(pictures, (most, most, most, most)).unfold(1, height, 1).unfold(2, width, 1)
    top, left = (most - moves).to(pictures.device).unbind(1)
    return windows[torch.arange(len(pictures), device=pictures.device), top, left]


def turned(pictures: Pictures, moves: Tensor, degrees: Tensor) -> Pictures:
    """Turned counterclockwise by `degrees` (B,) around the middle, then moved; one bilinear interpolation for both.

    In float64 or, for pictures of fewer bits, in float32. With R from `turn` and t the move, what stands at p is
    taken from R(p − t) = Rp − Rt.
    """
    height, width = pictures.shape[1:]
    dtype = torch.promote_types(pictures.dtype, torch.float32)
    R = turn(degrees, height, width)
    t = moves.flip(1) * torch.tensor([2 / width, 2 / height], dtype=R.dtype)  # (down, right) pixels → [x, y]
    matrices = torch.cat([R, -R @ t.unsqueeze(2)], dim=2).to(pictures.device, dtype)
    grid = F.affine_grid(matrices, [len(pictures), 1, height, width], align_corners=False)
    values = F.grid_sample(pictures.unsqueeze(1).to(dtype), grid, align_corners=False)
    return values.squeeze(1).to(pictures.dtype)
