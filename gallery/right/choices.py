"""Right backwards that choose another slope at a kink than the layer's own does in the gallery."""

import torch

from gallery.convolution import MAX_POOL
from gallery.elementwise import ABS, CLAMP, LARGER, LEAKY


def last_of_a_tie(dy, cache):
    pairs, _ = cache
    second = (pairs[..., 1] >= pairs[..., 0]).to(dy.dtype)
    return (dy[..., None] * torch.stack([1 - second, second], -1)).flatten(-2)


CHOICES = {
    "all to the last": (MAX_POOL, last_of_a_tie),
    "all to the first": (LARGER, lambda dy, cache: (dy * (cache[0] >= cache[1]), dy * (cache[0] < cache[1]))),
    "the right slope": (LEAKY, lambda dy, x: torch.where(x >= 0, dy, 0.1 * dy)),
    "the right slope of |x|": (ABS, lambda dy, x: dy * torch.where(x >= 0, 1.0, -1.0)),
    "no slope at the border": (CLAMP, lambda dy, x: dy * (x.abs() < 0.5)),
}
