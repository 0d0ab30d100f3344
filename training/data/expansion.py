"""More training examples from those that there are: pictures moved by a pixel, or turned a little."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.dataset import Dataset, Split
from training.errors import UserError

ANGLE = 10.0  # degrees

Pictures = Tensor  # (N, height, width), bytes


def shifted(pictures: Pictures, rows: int, columns: int) -> Pictures:
    """Moved down by `rows` and right by `columns` pixels; what comes in is 0, what goes out is lost."""
    height, width = pictures.shape[1:]
    padded = F.pad(pictures, (max(columns, 0), max(-columns, 0), max(rows, 0), max(-rows, 0)))
    top, left = max(-rows, 0), max(-columns, 0)
    return padded[:, top : top + height, left : left + width]


def turn(degrees: Tensor, height: int, width: int) -> Tensor:
    """Matrices (…, 2, 2) of counterclockwise angles (…): [x, y] of a pixel ↦ [x, y] of where it is taken from.

    x to the right and y down, both from −1 to 1 over the picture.
    """
    c, s = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return torch.stack([c, -s * height / width, s * width / height, c], dim=-1).unflatten(-1, (2, 2))


def rotated(pictures: Pictures, degrees: float) -> Pictures:
    """Turned counterclockwise around the middle, bilinearly, in blocks that fit in memory; what comes in is 0."""
    height, width = pictures.shape[1:]
    matrix = F.pad(turn(torch.tensor(degrees, dtype=torch.float64), height, width), (0, 1)).float()
    turned = []
    for block in pictures.split(5000):
        grid = F.affine_grid(matrix.expand(len(block), 2, 3), [len(block), 1, height, width], align_corners=False)
        values = F.grid_sample(block.unsqueeze(1).float(), grid, align_corners=False)
        turned.append(values.squeeze(1).round().to(torch.uint8))
    return torch.cat(turned)


EXPANSIONS: dict[str, Sequence[Callable[[Pictures], Pictures]]] = {
    "shifts": [
        lambda pictures: shifted(pictures, -1, 0),
        lambda pictures: shifted(pictures, 1, 0),
        lambda pictures: shifted(pictures, 0, -1),
        lambda pictures: shifted(pictures, 0, 1),
    ],
    "rotations": [lambda pictures: rotated(pictures, ANGLE), lambda pictures: rotated(pictures, -ANGLE)],
}


def expand(data: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with copies of its training pictures behind them: "shifts" adds four, "rotations" two of each.

    Nielsen's chapter 3 makes 250,000 pictures of 50,000 by shifts. The test set, or what is held out in its place,
    stays as it is. Raises UserError for examples that are not height×width bytes.
    """
    if not names:
        return data
    if len(data.shape) != 2 or not isinstance(data.train, Split) or data.train.x.dtype != torch.uint8:
        raise UserError(
            f"--expand {' '.join(names)} is for pictures of height×width bytes, and an example of {data.name} is "
            f"{data.example} of {_format(data)}: leave it out"
        )
    pictures = data.train.x.view(-1, *data.shape)
    moves = [move for name in names for move in EXPANSIONS[name]]
    x = torch.cat([pictures, *(move(pictures) for move in moves)]).flatten(1)
    y = data.train.y.repeat(1 + len(moves))
    source = f"{data.source}; expanded by {' and '.join(names)} to {len(y):,} training examples"
    return replace(data, train=Split(x, y), source=source)


def _format(data: Dataset) -> str:
    return str(data.train.stored(torch.arange(0, device=data.train.device)).dtype).removeprefix("torch.")
