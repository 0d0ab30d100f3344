"""Examples as training reads them: labelled ones, those that are made by a rule, and texts."""

import math
import re

import pytest
import torch

from tests.support.refusals import refused
from training.data import Split, Streams, epoch_order, load, points_rule, scaled
from training.errors import UserError


def test_a_batch_is_gathered_and_of_bytes_scaled():
    split = Split(torch.tensor([[0, 255, 51], [1, 2, 3]], dtype=torch.uint8), torch.tensor([7, 8]))
    x, y = split.batch(torch.tensor([1, 0, 0]), torch.float64)
    expected = torch.tensor([[1, 2, 3], [0, 255, 51], [0, 255, 51]], dtype=torch.float64) / 255
    torch.testing.assert_close(x, expected, rtol=1e-15, atol=0)
    assert x.max() == 1
    assert y.tolist() == [8, 7, 7]
    assert split.x.tolist() == [[0, 255, 51], [1, 2, 3]]
    stored = split.stored(torch.tensor([1]))
    assert (stored.dtype, stored.tolist()) == (torch.uint8, [[1, 2, 3]])
    split = Split(torch.tensor([[0.5, -3.0], [2.0, 255.0]]), torch.tensor([0, 1]))
    x, y = split.batch(torch.tensor([1]), torch.float64)
    assert (x.tolist(), x.dtype, y.tolist()) == ([[2.0, 255.0]], torch.float64, [1])
    split.batch(torch.tensor([0, 1]), torch.float32)[0].zero_()
    assert split.x[1, 1] == 255


def test_labelled_examples_are_shuffled_carry_nothing_and_can_be_moved():
    split = Split(torch.arange(20.0).view(10, 2), torch.arange(10))
    assert (split.targets, split.carries, split.device) == (1, False, torch.device("cpu"))
    assert [split.steps(size) for size in (1, 3, 5, 10, 11)] == [10, 4, 2, 1, 1]
    assert torch.equal(split.order(3, 2, 4), epoch_order(3, 2, 10))
    assert torch.equal(split.part(2, 5).y, torch.arange(2, 5))
    assert torch.equal(split.first(3).x, split.x[:3])
    assert len(split.first(99)) == 10
    moved = load("points").to("meta")
    assert {t.device.type for s in (moved.train, moved.test) for t in (s.x, s.y)} == {"meta"}
    assert (moved.name, moved.shape, moved.classes) == ("points", (2,), ("red", "blue"))


def assert_examples(split, x, y):
    assert torch.equal(split.x, x)
    assert torch.equal(split.y, y)


@pytest.mark.parametrize("name", ["sample", "points", "spiral"])
def test_the_last_training_examples_are_held_out_and_the_first_of_the_others_kept(name):
    whole, held = load(name), load(name, validation=37)
    x, y = whole.train.x, whole.train.y
    assert_examples(held.train, x[:-37], y[:-37])
    assert_examples(held.test, x[-37:], y[-37:])
    assert "last 37 training examples are held out" in held.source
    assert set(held.test.y.tolist()) == set(range(len(whole.classes)))
    few = load(name, validation=20, examples=70)
    assert_examples(few.train, x[:70], y[:70])
    assert_examples(few.test, x[-20:], y[-20:])
    assert "of the training examples the first 70" in few.source
    assert_examples(load(name, examples=70).test, whole.test.x, whole.test.y)


@pytest.mark.parametrize(
    ("validation", "examples", "named"),
    [(-1, 0, "0 to 299"), (300, 0, "0 to 299"), (301, 0, "0 to 299"), (50, -1, "0 to 250"), (50, 251, "0 to 250")],
)
def test_all_but_one_can_be_held_out_and_all_others_kept_but_no_more(validation, examples, named):
    with refused(f"{examples or validation}", named):
        load("spiral", validation=validation, examples=examples)
    assert len(load("spiral", validation=299).train) == 1
    assert len(load("spiral", validation=50, examples=250).train) == 250


def test_points_follow_the_rule():
    points = load("points")
    assert (len(points.train), len(points.test), points.shape) == (4_000, 2_000, (2,))
    assert (points.train.x.dtype, points.classes) == (torch.float32, ("red", "blue"))
    for split in (points.train, points.test):
        assert -1 <= split.x.min() < -0.99
        assert 0.99 < split.x.max() <= 1
        x, y = (5 * split.x.double() + 5).unbind(1)
        margin = 4 * (x - 5) ** 2 - 4 * (x - 5) * (y - 5) + y**2 - 50
        clear = margin.abs() > 1e-4  # float32 coordinates cannot decide the rest
        assert clear.sum() > len(split) - 5
        assert torch.equal((margin < 0)[clear], split.y.bool()[clear])
        assert torch.equal(points_rule(torch.stack([x, y], dim=1))[clear], split.y.bool()[clear])
        assert 0.35 < split.y.double().mean() < 0.5


@pytest.mark.parametrize("name", ["points", "spiral"])
def test_synthetic_sets_depend_on_no_seed_but_their_own(name):
    torch.manual_seed(1)
    first, state = load(name), torch.get_rng_state()
    torch.manual_seed(2)
    second = load(name)
    assert torch.equal(first.train.x, second.train.x)
    assert torch.equal(first.test.y, second.test.y)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nor do they touch the run's generator
    assert name == "spiral" or not torch.isin(first.test.x, first.train.x).all(dim=1).any()


def test_spiral_arms_turn_as_they_should():
    spiral = load("spiral")
    assert not torch.equal(spiral.train.x, spiral.test.x)
    for split in (spiral.train, spiral.test):
        assert split.y.bincount().tolist() == [100, 100, 100]
        for arm in range(3):
            x = split.x[split.y == arm].double()
            r, order = x.norm(dim=1).sort()
            torch.testing.assert_close(r, torch.linspace(0, 1, 100, dtype=torch.float64), rtol=0, atol=1e-6)
            t = torch.linspace(4 * arm, 4 * (arm + 1), 100, dtype=torch.float64)
            angle = torch.atan2(x[order, 0], x[order, 1])
            turn = torch.remainder(angle - 2.5 * t + math.pi, 2 * math.pi) - math.pi
            assert abs(turn[1:].mean()) < 0.2
            assert 0.35 < turn[1:].std() < 0.65  # 2.5 times the noise of 0.2


# A text, in B parallel streams or in independent windows


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
    counts = (f"{size:,}", f"{streams.shape[1]:,}", f"{context:,}", f"{len(IDS) - streams.numel() - 1:,}")
    assert tuple(re.findall(r"[\d,]*\d", text.reading(size))) == counts, "streams, their length, a step's, what is left"


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
    with refused("--batch-size is 25, but it must be at most 24: a text of 100 characters", "segments of 4", "smaller"):
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
