"""What the networks that read pictures ask of their configuration and of x."""

from math import prod

from torch import Tensor

from manual_backprop.layers.activations import ACTIVATIONS


def require_images(shape: tuple[int, int, int], classes: int, activation: str) -> None:
    """Raises ValueError for a shape that is not (channels, height, width), no class, or an unknown activation."""
    if len(shape) != 3 or min(shape) < 1 or classes < 1:
        raise ValueError(
            f"shape {shape} and {classes} classes make no network: (channels, height, width) and classes are from 1"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"{activation!r} is not an activation; there are {', '.join(ACTIVATIONS)}")


def rows_to_images(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x (B, channels·height·width) as (B, channels, height, width). Raises ValueError for rows of another length."""
    if x.shape[1:] != (prod(shape),):
        sizes = "×".join(map(str, shape))
        raise ValueError(f"x is {tuple(x.shape)}: give rows of {prod(shape)} numbers, {sizes} pictures")
    return x.reshape(len(x), *shape)
