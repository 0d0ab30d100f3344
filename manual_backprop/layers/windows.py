"""What convolution and pooling share: the windows through which they see an image, in each direction."""

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]  # vertical, horizontal


def pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    """The two whole numbers, or the one for both directions. Raises ValueError for what is below `least` or none."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(number, int) and number >= least for number in both):
        raise ValueError(f"{name} is {value}: give a whole number from {least}, or two of them")
    return both[0], both[1]


def strided(start: int, stride: int, count: int) -> slice:
    """The `count` places start, start + stride, start + 2·stride, …, as a slice."""
    return slice(start, start + stride * (count - 1) + 1, stride)


def pad(x: Tensor, sizes: tuple[int, ...], value: float = 0.0) -> Tensor:
    """x with so many places of `value` added on the left, on the right, above and below; x itself if none are."""
    return torch.constant_pad_nd(x, sizes, value) if any(sizes) else x


def pooled(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> Pair:
    """(the number of windows, how far the last reaches beyond the padding) in one direction, as torch counts them.

    With `ceil_mode` a window may stick out behind, but none begins there. Raises ValueError if the padding is more than
    half the kernel, for a window could then see nothing else, or if there is no window.
    """
    if 2 * padding > kernel:
        raise ValueError(f"a padding of {padding} is more than half the kernel of {kernel}: make it smaller")
    beyond = length + 2 * padding - kernel  # places behind the first window
    count = (beyond + (stride - 1) * ceil_mode) // stride + 1
    if length < 1 or count < 1:
        raise ValueError(f"a kernel of {kernel} does not fit into {length} places padded by {padding}: make it smaller")
    if (count - 1) * stride >= length + padding:
        count -= 1
    return count, max((count - 1) * stride - beyond, 0)
