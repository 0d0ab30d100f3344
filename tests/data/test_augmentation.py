"""Moved and turned pictures, drawn anew in every step or added to a set, dropout's masks, and what draws depend on."""

from math import atan2, cos, degrees, radians, sin

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.support.refusals import refused
from training.data import Dataset, Split, expand
from training.data.augmentation import make_augment, moved, turned
from training.data.expansion import rotated, shifted
from training.data.noise import dropout_noise

HEIGHT, WIDTH = SHAPE = (5, 7)
PICTURE = torch.arange(1, 36, dtype=torch.float64).view(SHAPE) / 35  # no two pixels alike, none 0
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_pictures(count, dtype=torch.float64):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def turned_by_loop(pictures, down, across, angle):
    """Each pixel from its four neighbours at the place that turning counterclockwise and moving bring there.

    With y upwards and the middle at 0, turning brings (x, y) to (x cos α − y sin α, x sin α + y cos α).
    """
    result = torch.zeros(len(pictures), *SHAPE, dtype=torch.float64)
    for r in range(HEIGHT):
        for c in range(WIDTH):
            x, y = c - across - (WIDTH - 1) / 2, (HEIGHT - 1) / 2 - (r - down)
            a = radians(-angle)  # backwards
            row = (HEIGHT - 1) / 2 - (x * sin(a) + y * cos(a))
            column = (WIDTH - 1) / 2 + (x * cos(a) - y * sin(a))
            near = [
                (1 - (torch.arange(n, dtype=torch.float64) - at).abs()).clamp(min=0)
                for at, n in ((row, HEIGHT), (column, WIDTH))
            ]
            result[:, r, c] = torch.einsum("i,j,nij->n", *near, pictures.double())
    return result


def draws(augment, steps, count):
    """(down, across, degrees counterclockwise) of each picture, read off what becomes of two ramps.

    A ramp stays one when interpolated: at the middle pixel and its right neighbour stands where they come from.
    """
    rows, columns = torch.meshgrid(torch.arange(-2.0, 3), torch.arange(-3.0, 4), indexing="ij")
    x, y = (
        augment(steps, ramp.double().flatten().expand(count, -1)).view(-1, *SHAPE)[:, 2, 3:5].tolist()
        for ramp in (columns, -rows)
    )
    found = []
    for (x0, x1), (y0, y1) in zip(x, y, strict=True):
        c, s = x1 - x0, y0 - y1  # (1, 0) is taken from (cos α, −sin α)
        assert c**2 + s**2 == pytest.approx(1, abs=1e-12)
        across, up = -(x0 * c - y0 * s), -(x0 * s + y0 * c)
        assert across == pytest.approx(round(across), abs=1e-12)
        assert up == pytest.approx(round(up), abs=1e-12)
        found.append((-round(up), round(across), degrees(atan2(s, c))))
    return found


def assert_uniform(counts, kinds):
    """Every kind occurs, and χ² is within five deviations of its mean."""
    assert len(counts) == kinds
    assert 0 not in counts
    expected = sum(counts) / kinds
    chi2 = sum((n - expected) ** 2 / expected for n in counts)
    assert abs(chi2 - (kinds - 1)) < 5 * (2 * (kinds - 1)) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_shift_occurs_as_often_and_moves_the_very_values_down_and_right(dtype):
    picture = PICTURE.to(dtype)
    shown = make_augment(SHAPE, 2, 0.0, seed=1)(0, picture.flatten().expand(2500, -1))
    assert shown.dtype == dtype
    counts = []
    for down in range(-2, 3):
        for across in range(-2, 3):
            wanted = shifted(picture[None], down, across)
            assert torch.equal(wanted.double(), turned_by_loop(picture[None], down, across, 0.0))
            counts.append((shown == wanted.flatten()).all(dim=1).sum().item())
    assert sum(counts) == 2500  # so there is no other
    assert_uniform(counts, 25)
    pictures, moves = random_pictures(3, dtype), [(1, 0), (0, -2), (-3, 6)]
    for shown, picture, move in zip(moved(pictures, torch.tensor(moves), 6), pictures, moves, strict=True):
        assert torch.equal(shown, shifted(picture[None], *move)[0])
    x = pictures.flatten(1)
    assert torch.equal(make_augment(SHAPE, 0, 0.0, seed=1)(0, x), x), "without rotation and shift"


@pytest.mark.parametrize("angle", [0.0, 10.0, -10.0, 37.5, 90.0, -164.0], ids=str)
@pytest.mark.parametrize("move", [(0, 0), (1, -2), (-1, 3)], ids=str)
def test_a_turn_is_counterclockwise_bilinear_and_in_pixels(angle, move):
    pictures = random_pictures(2)
    shown = turned(pictures, torch.tensor([move, move]), torch.full((2,), angle, dtype=torch.float64))
    assert_close(shown, turned_by_loop(pictures, *move, angle), rtol=0, atol=1e-12)


def test_pictures_are_turned_and_moved_by_draws_of_their_own():
    pictures = random_pictures(6)
    augment = make_augment(SHAPE, 1, 20.0, seed=1)
    shown = augment(4, pictures.flatten(1)).view(-1, *SHAPE)
    wanted = [turned_by_loop(p[None], *draw) for p, draw in zip(pictures, draws(augment, 4, 6), strict=True)]
    assert_close(shown, torch.cat(wanted), rtol=0, atol=1e-10)


def test_angles_and_shifts_are_uniform_and_independent():
    down, across, angles = np.array(draws(make_augment(SHAPE, 1, 20.0, seed=3), 0, 3000)).T
    assert np.abs(angles).max() <= 20
    assert_uniform(np.histogram(angles, bins=20, range=(-20, 20))[0].tolist(), 20)
    kinds = 9 * (down + 1) + 3 * (across + 1) + np.digitize(angles, [-20 / 3, 20 / 3])
    assert_uniform(np.bincount(kinds.astype(int)).tolist(), 27)
    down, across, angles = zip(*draws(make_augment(SHAPE, 0, 20.0, seed=3), 0, 50), strict=True)
    assert ({*down}, {*across}, len({*angles})) == ({0}, {0}, 50), "without a shift the middle stays"


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_fewer_bits_are_turned_in_float32(dtype):
    x = random_pictures(8, dtype).flatten(1)
    augment = make_augment(SHAPE, 2, 15.0, seed=1)
    shown = augment(0, x)
    assert shown.dtype == dtype
    assert torch.equal(shown, augment(0, x.float()).to(dtype))
    assert_close(augment(0, x.float()).double(), augment(0, x.double()), rtol=0, atol=5e-6)


@pytest.mark.parametrize("rotate", [0.0, 15.0], ids=["moved", "turned"])
def test_they_depend_on_the_seed_and_the_step_and_on_nothing_else_and_x_stays_as_and_where_it_was(rotate):
    x = PICTURE.flatten().repeat(64, 1)
    before = make_augment(SHAPE, 2, rotate, seed=1)(3, x)
    torch.manual_seed(99)
    augment = make_augment(SHAPE, 2, rotate, seed=1)
    others = [augment(4, x), *(make_augment(SHAPE, 2, rotate, seed=s)(t, x) for s, t in [(2, 3), (13, 3), (1, 33)])]
    assert torch.equal(augment(3, x), before)
    assert len({shown.numpy().tobytes() for shown in (before, *others)}) == 5
    augment(0, x).zero_()
    assert torch.equal(x, PICTURE.flatten().expand(64, -1))
    assert augment(0, x.to("meta")).device.type == "meta"
    assert augment(0, x[:0]).shape == (0, 35)


def test_the_draws_are_those_that_recorded_figures_depend_on():
    found = draws(make_augment(SHAPE, 1, 20.0, seed=1), 3, 4)
    recorded = [(0, 0, 5.548081896), (-1, -1, -8.198351594), (1, -1, -1.689898092), (1, 1, 6.725970687)]
    assert found == [pytest.approx(draw, abs=1e-8) for draw in recorded]
    noise = dropout_noise(seed=1)(3, torch.device("cpu"), torch.float32)
    assert noise("layer1.dropout", (2, 6), 0.5).tolist() == [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1]]
    assert noise("layer2.dropout", (2, 4), 0.5).tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_what_is_no_picture_is_not_augmented():
    for shape in ((35,), (1, 5, 7)):
        with pytest.raises(ValueError, match=r"^only pictures \(height, width\) can be augmented, .* the shape \("):
            make_augment(shape, 1, 0.0, seed=1)
    augment = make_augment(SHAPE, 1, 0.0, seed=1)
    for x in (torch.rand(2, 34), torch.rand(35), torch.rand(2, 5, 7)):
        with pytest.raises(ValueError, match=r"^x has the shape \(.*\), but here it must be \(B, 35\)$"):
            augment(0, x)


@pytest.mark.parametrize("angle", [10.0, -10.0, 90.0], ids=str)
def test_an_expansion_turns_the_bytes_of_a_wide_picture_alike_and_a_quarter_is_exact(angle):
    pictures = (255 * random_pictures(2)).round().to(torch.uint8)
    shown = rotated(pictures, angle)
    assert shown.dtype == torch.uint8
    assert_close(shown.double(), turned_by_loop(pictures, 0, 0, angle), rtol=0, atol=0.501)  # to whole numbers
    for size in (4, 5):
        square = pictures[:, :size, :size]
        assert torch.equal(rotated(square, 90.0), torch.rot90(square, 1, dims=(1, 2)))
        assert torch.equal(rotated(square, 0.0), square)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "times"), [((), 1), (("shifts",), 5), (("rotations",), 3), (("rotations", "shifts"), 7)], ids=str
)
def test_an_expanded_set_begins_with_the_originals_and_repeats_their_labels(sample, names, times):
    expanded = expand(sample, names)
    count = len(sample.train)
    assert torch.equal(expanded.train.x[:count], sample.train.x)
    assert expanded.train.x.dtype == torch.uint8
    assert torch.equal(expanded.train.y.view(times, count), sample.train.y.expand(times, -1))
    copies = expanded.train.x.view(times, count, -1)[:, 17]
    assert len({tuple(copy.tolist()) for copy in copies}) == times
    assert expanded.test is sample.test
    assert (f"{times * count:,} training examples" in expanded.source) == (times > 1)


@pytest.mark.parametrize(
    ("dtype", "shape", "told"),
    [
        ("float32", (12,), "12 of float32"),
        ("float32", (3, 4), "3×4 of float32"),
        ("uint8", (12,), "12 of uint8"),
        ("uint8", (3, 2, 2), "3×2×2 of uint8"),
    ],
)
def test_what_is_no_picture_of_bytes_is_not_expanded(dtype, shape, told):
    split = Split(torch.zeros(6, 12, dtype=getattr(torch, dtype)), torch.zeros(6, dtype=torch.int64))
    with refused("--expand shifts is for pictures of height×width bytes", f"an example of npz is {told}: leave it out"):
        expand(Dataset("npz", split, split, shape, ("a",), ""), ("shifts",))


CPU = torch.device("cpu")


def mask(seed=1, step=3, call="layer1.dropout", shape=(400, 50), keep=0.5):
    return dropout_noise(seed)(step, CPU, torch.float64)(call, shape, keep)


@pytest.mark.parametrize(("shape", "keep"), [((400, 50), 0.75), ((30, 4, 100), 0.1)])
def test_masks_are_zeros_and_ones_of_the_shape_asked_for_the_same_in_every_format(shape, keep):
    drawn = mask(shape=shape, keep=keep)
    assert (drawn.shape, drawn.dtype) == (shape, torch.float64)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(drawn.mean().item() - keep) < 5 * (keep * (1 - keep) / drawn.numel()) ** 0.5
    other = dropout_noise(1)(3, CPU, torch.bfloat16)("layer1.dropout", shape, keep)
    assert other.dtype == torch.bfloat16
    assert torch.equal(other.double(), drawn)


OTHERS = [dict(step=4), dict(seed=2), dict(seed=13), dict(step=33), dict(seed=13, step=1), dict(seed=1, step=31)]


@pytest.mark.parametrize("other", [*OTHERS, dict(call="layer2.dropout"), dict(call="dropout")], ids=str)
def test_masks_depend_on_the_seed_the_step_and_the_call_and_on_nothing_else(other):
    before = mask()
    assert not torch.equal(before, mask(**other))
    torch.manual_seed(99)
    noise = dropout_noise(1)(3, CPU, torch.float64)
    noise("layer2.dropout", (7,), 0.5)  # what is asked for before makes no difference
    assert torch.equal(before, noise("layer1.dropout", (400, 50), 0.5))
