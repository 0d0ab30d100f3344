"""More training examples by moved and turned pictures."""

import pytest
import torch

from tests.support.refusals import refused
from training.data import Dataset, Split, expand
from training.data.expansion import rotated, shifted


def test_a_shift_moves_the_bytes_and_leaves_black():
    """Down and to the left; test_augmentation.py has the other directions."""
    picture = torch.arange(1, 13, dtype=torch.uint8).view(1, 3, 4)
    moved = shifted(picture, 1, -1)
    assert (moved.dtype, moved.tolist()) == (torch.uint8, [[[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]])


@pytest.mark.parametrize("size", [(5, 5), (4, 4)], ids=str)
def test_a_quarter_turn_is_counterclockwise_and_exact(size):
    picture = torch.randint(0, 256, (2, *size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(rotated(picture, 90.0), torch.rot90(picture, 1, dims=(1, 2)))
    assert torch.equal(rotated(picture, 0.0), picture)


def test_a_turn_keeps_the_sides_in_proportion():
    """A bar across a wide picture, turned by a quarter, is as thick as before, cut off at the edges."""
    picture = torch.zeros(1, 5, 11, dtype=torch.uint8)
    picture[:, 2, :] = 200
    turned = rotated(picture, 90.0)
    assert torch.equal(turned, torch.where(torch.arange(11) == 5, 200, 0).to(torch.uint8).expand(1, 5, 11))


def test_a_small_turn_of_a_digit_moves_little_and_keeps_the_ink(sample):
    pictures = sample.train.x[:200].view(-1, 28, 28)
    turned = rotated(pictures, 10.0)
    assert turned.dtype == torch.uint8
    ink, turned_ink = (x.double().sum(dim=(1, 2)) for x in (pictures, turned))
    assert (turned_ink / ink - 1).abs().max() < 0.03
    assert (turned.double() - pictures.double()).abs().mean() < 0.5 * pictures.double().mean()
    back = rotated(turned, -10.0).double()
    there_and_back, there = ((x.double() - pictures.double()).abs().mean() for x in (back, turned))
    assert there_and_back < 0.5 * there  # what is left is the blur of two interpolations


@pytest.mark.parametrize(
    ("names", "times"), [((), 1), (("shifts",), 5), (("rotations",), 3), (("rotations", "shifts"), 7)], ids=str
)
def test_an_expanded_set_begins_with_the_originals_and_repeats_their_labels(sample, names, times):
    expanded = expand(sample, names)
    count = len(sample.train)
    assert len(expanded.train) == times * count
    assert torch.equal(expanded.train.x[:count], sample.train.x)
    assert expanded.train.x.dtype == torch.uint8
    for i in range(times):
        assert torch.equal(expanded.train.y[i * count : (i + 1) * count], sample.train.y)
    copies = expanded.train.x.view(times, count, -1)[:, 17]
    assert len({tuple(copy.tolist()) for copy in copies}) == times
    assert expanded.test is sample.test
    assert (f"{times * count:,} training examples" in expanded.source) == (times > 1)


BYTES = torch.zeros(6, 12, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("x", "shape", "told"),
    [
        (torch.zeros(6, 4), (4,), "4 of float32"),
        (torch.zeros(6, 4), (2, 2), "2×2 of float32"),
        (BYTES, (12,), "12 of uint8"),
        (BYTES, (3, 2, 2), "3×2×2 of uint8"),
    ],
    ids=["numbers", "no bytes", "no picture", "in color"],
)
def test_what_is_no_picture_is_refused(x, shape, told):
    split = Split(x, torch.zeros(6, dtype=torch.int64))
    with refused("--expand shifts is for pictures of height×width bytes", f"an example of npz is {told}: leave it out"):
        expand(Dataset("npz", split, split, shape, ("a",), ""), ("shifts",))
