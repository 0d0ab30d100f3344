"""More training examples by moved and turned pictures; test_augmentation.py has other directions and angles."""

import pytest
import torch

from tests.support.refusals import refused
from training.data import Dataset, Split, expand
from training.data.expansion import rotated, shifted


def test_a_shift_moves_the_bytes_and_leaves_black():
    picture = torch.arange(1, 13, dtype=torch.uint8).view(1, 3, 4)
    moved = shifted(picture, 1, -1)
    assert (moved.dtype, moved.tolist()) == (torch.uint8, [[[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]])


@pytest.mark.parametrize("size", [(5, 5), (4, 4)], ids=str)
def test_a_quarter_turn_is_counterclockwise_and_exact(size):
    picture = torch.randint(0, 256, (2, *size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(rotated(picture, 90.0), torch.rot90(picture, 1, dims=(1, 2)))
    assert torch.equal(rotated(picture, 0.0), picture)


@pytest.mark.slow
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
