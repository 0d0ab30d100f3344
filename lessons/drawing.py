"""What several lessons draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from training.dashboard.figures import signed_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def signed(figure: Figure, axes: Axes, matrix: Tensor) -> None:
    """A matrix as a picture: blue is positive, vermilion negative, white zero."""
    largest = matrix.abs().max().item()
    image = axes.imshow(matrix.numpy(), cmap=signed_colors(), vmin=-largest, vmax=largest, aspect="auto")
    figure.colorbar(image, ax=axes)
