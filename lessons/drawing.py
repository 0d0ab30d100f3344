"""What several lessons draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def signed(figure: Figure, axes: Axes, matrix: Tensor) -> None:
    """A matrix as a picture: red is positive, blue negative, white zero."""
    largest = matrix.abs().max().item()
    image = axes.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    figure.colorbar(image, ax=axes)
