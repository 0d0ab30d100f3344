"""A text as training reads it: in B parallel streams, or in independent windows."""

import pytest
import torch

from training.data import Split, Streams, epoch_order, scaled
from training.errors import UserError

IDS = torch.arange(50, 150)  # ids that tell where they stand


def batches(text, size, epoch=0):
    order = text.order(3, epoch, size)
    return [text.batch(indices, torch.float32) for indices in order.split(size)]


@pytest.mark.parametrize(("context", "size"), [(4, 3), (1, 1), (7, 2), (5, 19), (99, 1)])
def test_every_id_is_read_once_and_in_order(context, size):
    text = Streams(IDS, context)
    assert text.carries, "a batch continues the streams of the one before"
    assert torch.equal(text.order(3, 0, size), text.order(8, 5, size)), "in every epoch, for every seed"
    assert text.order(0, 0, size).dtype == torch.int64
    read = batches(text, size)
    assert len(read) == text.steps(size)
    streams = torch.cat([x for x, _ in read], dim=1)  # (size, steps·context): a stream a row
    assert torch.equal(streams.flatten(), IDS[: streams.numel()])
    assert len(IDS) - text.leftover(size) == streams.numel() + 1, "the last target is read too"
    assert 0 <= text.leftover(size) < context * size + context


def test_windows_are_shuffled_segments_each_of_them_once():
    text = Streams(IDS, 4, carries=False)
    assert not text.carries
    assert text.steps(5) == 5
    assert [len(x) for x, _ in batches(text, 5)] == [5, 5, 5, 5, 4]
    first, second = (torch.cat([x for x, _ in batches(text, 5, epoch)]) for epoch in (0, 1))
    assert not torch.equal(first, second)
    for windows in (first, second):
        assert torch.equal(windows.flatten().sort().values, IDS[:96])
    assert torch.equal(text.order(3, 1, 5), epoch_order(3, 1, 24))
    assert text.leftover(5) == 3  # of 100 ids, 96 are read as x, and one more as a target


def test_lengths_and_more_streams_than_segments():
    assert len(Streams(IDS, 4)) == 24
    assert len(Streams(IDS[:97], 4)) == 24
    assert len(Streams(IDS[:96], 4)) == 23, "the last segment lacks its last target"
    assert [Streams(IDS, 4).steps(size) for size in (1, 3, 5, 24)] == [24, 8, 4, 1]
    assert [Streams(IDS, 4).leftover(size) for size in (1, 3, 5, 24)] == [3, 3, 19, 3]
    assert len(Streams(IDS[:0], 4)) == 0
    with pytest.raises(UserError, match=r"--batch-size is 25, but a text of 100 ids has 24 segments of 4.*smaller"):
        Streams(IDS, 4).steps(25)
    with pytest.raises(UserError, match="--batch-size is 25"):
        Streams(IDS, 4).order(0, 0, 25)
    assert Streams(IDS, 4, carries=False).steps(25) == 1


@pytest.mark.parametrize("carries", [True, False])
def test_targets_follow_and_parts_are_texts_of_their_own_and_all_can_be_moved(carries):
    text = Streams(IDS, 4, carries)
    first, rest = text.first(10), text.part(10, len(text))
    assert (len(first), len(rest)) == (10, 14)
    assert (first.carries, rest.carries) == (carries, carries)
    assert torch.equal(first.ids, IDS[:41])
    every = torch.arange(24)
    x = torch.cat([part.stored(torch.arange(len(part))) for part in (first, rest)])
    assert torch.equal(x, text.stored(every))
    y = torch.cat([part.batch(torch.arange(len(part)), torch.float32)[1] for part in (first, rest)])
    assert torch.equal(y, text.batch(every, torch.float32)[1])
    assert len(text.first(1000)) == 24
    for x, y in batches(text, 3):
        assert y.shape == (len(x) * text.targets,)
        assert torch.equal(y.view(x.shape), x + 1)
    moved = text.to("meta")
    assert moved.device == moved.ids.device == torch.device("meta")
    assert (len(moved), moved.context, moved.carries) == (24, 4, carries)


ROW, CONTEXT = "they must be int64 and in one row", "context is 0, but it must be a whole number from 1"


@pytest.mark.parametrize(
    ("ids", "context", "told"),
    [(IDS.int(), 4, ROW), (IDS.float(), 4, ROW), (IDS.view(10, 10), 4, ROW), (IDS, 0, CONTEXT)],
    ids=["int32", "float32", "two dimensions", "no context"],
)
def test_what_is_no_text(ids, context, told):
    with pytest.raises(ValueError, match=told):
        Streams(ids, context)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_whole_numbers_stay_what_they_are(dtype):
    ids = torch.tensor([[2**40 + 1, 257]])
    assert torch.equal(scaled(ids, dtype), ids)
    assert scaled(ids, dtype).dtype == torch.int64
    x, _ = Streams(IDS, 4).batch(torch.arange(3), dtype)
    assert x.dtype == torch.int64
    x, _ = Split(ids, torch.tensor([0])).batch(torch.tensor([0]), dtype)
    assert torch.equal(x, ids)
