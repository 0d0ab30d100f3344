"""What several lessons draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from training.dashboard.figures import signed_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def show_signed(axes: Axes, matrix: Tensor, largest: float, aspect: Literal["equal", "auto"] = "equal") -> AxesImage:
    """A matrix as a picture: blue is positive, orange negative, white zero; full colors begin at ±`largest`."""
    return axes.imshow(matrix.numpy(), cmap=signed_colors(), vmin=-largest, vmax=largest, aspect=aspect)


def signed(figure: Figure, axes: Axes, matrix: Tensor) -> None:
    """The same up to the largest value, with its scale."""
    figure.colorbar(show_signed(axes, matrix, matrix.abs().max().item(), "auto"), ax=axes)
