"""Pooling against torch's, over kernels, strides, paddings, sizes and ties."""

from itertools import product
from math import inf, nan

import pytest
import torch

from manual_backprop.layers import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from manual_backprop.layers.windows import pad, pooled
from reference import layers as twins
from tests.support.against_torch import assert_same, assert_torchs, normal, refusal

POOLS = {"max": (max_pool2d, twins.max_pool2d), "average": (avg_pool2d, twins.avg_pool2d)}
each_pool = pytest.mark.parametrize(("layer", "twin"), POOLS.values(), ids=POOLS)
LINES = [  # one direction: length, kernel, stride, padding
    (n, k, s, p)
    for n, k, s, p in product((1, 2, 4, 5, 7), (1, 2, 3), (1, 2, 3, 4), (0, 1))
    if 2 * p <= k and n + 2 * p >= k
]


def numbers(seed: int, *shape: int) -> torch.Tensor:
    """Whole numbers from −1 to 1: most windows have a tie."""
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).double() - 1


@each_pool
@pytest.mark.parametrize("ceil_mode", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize("values", [normal, numbers], ids=["distinct values", "ties and zeros"])
def test_any_configuration_is_torchs(layer, twin, ceil_mode, values):
    """Every line is paired with another one across, so kernels, strides and paddings are not square."""
    for i, (n, k, s, p) in enumerate(LINES):
        m, l, t, q = LINES[(37 * i + 11) % len(LINES)]
        assert_torchs(layer, twin, values(i, 2, 3, n, m), (k, l), (s, t), (p, q), ceil_mode)


@each_pool
def test_the_stride_is_the_kernels_unless_given_and_one_image_or_none_will_do(layer, twin):
    for kernel in (2, (2, 3)):
        assert_torchs(layer, twin, normal(0, 2, 3, 7, 6), kernel)
        assert_torchs(layer, twin, normal(0, 3, 7, 6), kernel, None)
    assert layer.forward(normal(0, 2, 3, 7, 6), 3)[0].shape == (2, 3, 2, 2)
    for batch in (0, 1):
        assert_torchs(layer, twin, normal(0, batch, 3, 5, 6), 3, 2, 1, True)


@each_pool
@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize("order", [(1, 0, 3, 2), (3, 2, 1, 0), (0, 2, 3, 1)], ids=str)
def test_any_layout_in_memory(layer, twin, kernel, order):
    def laid_out(v):
        return v.permute(order).contiguous().permute([order.index(i) for i in range(4)])

    x = numbers(0, 3, 4, 6, 6)
    assert_torchs(layer, twin, laid_out(x), kernel)
    assert_torchs(layer, twin, laid_out(x)[:, :1, ::2, 1:].expand(3, 4, 3, 5), kernel)
    y, cache = layer.forward(x, kernel)
    dy = normal(1, *y.shape)
    assert_same(layer.backward(laid_out(dy), cache), layer.backward(dy, cache), "dx")


def test_the_first_of_equal_pixels_takes_the_gradient_and_one_that_is_largest_in_several_windows_takes_all():
    x = torch.tensor([[[1.0, 5, 2], [5, 5, 2], [3, 5, 5]]])
    y, cache = max_pool2d.forward(x, 3)
    assert y.tolist() == [[[5]]]
    assert max_pool2d.backward(torch.full_like(y, 7), cache).tolist() == [[[0, 7, 0], [0, 0, 0], [0, 0, 0]]]
    _, cache = max_pool2d.forward(torch.tensor([[[0.0, 1, 0], [2, 9, 3], [0, 1, 0]]]), 2, 1)
    dx = max_pool2d.backward(torch.tensor([[[1.0, 10], [100, 1000]]]), cache)
    assert dx.tolist() == [[[0, 0, 0], [0, 1111, 0], [0, 0, 0]]]


@pytest.mark.parametrize("where", range(4))
def test_a_pixel_that_is_no_number_is_seen(where):
    """A divergence that pooling swallowed would be found late."""
    x = normal(0, 1, 1, 2, 2)
    x.view(-1)[where] = nan
    y, cache = max_pool2d.forward(x, 2)
    assert y.isnan().all()
    assert max_pool2d.backward(torch.tensor([[[3.0]]]), cache).flatten().tolist() == [0, 0, 0, 3]


def test_what_is_infinite_is_the_largest_or_never():
    x = torch.tensor([[[1.0, inf, -inf, -inf], [2, 3, -inf, -inf]]])
    assert max_pool2d.forward(x, 2)[0].tolist() == [[[inf, -inf]]]


@pytest.mark.parametrize("size", range(1, 8))
def test_adaptive_windows_are_torchs(size):
    for n, other in product(range(1, 8), (1, 3, 7)):
        x = normal(n, 2, 3, n, 8 - n)
        assert_torchs(adaptive_avg_pool2d, twins.adaptive_avg_pool2d, x, (size, other))
    assert_torchs(adaptive_avg_pool2d, twins.adaptive_avg_pool2d, normal(0, 2, 3, 9, 5), size)


def test_adaptive_pooling_of_no_image_and_of_one_without_a_dimension_for_it():
    y, _ = adaptive_avg_pool2d.forward(normal(0, 5, 6), 2)
    assert_same(y, twins.adaptive_avg_pool2d(normal(0, 1, 5, 6), 2)[0], "y of one image")
    assert_torchs(adaptive_avg_pool2d, twins.adaptive_avg_pool2d, normal(0, 0, 3, 5, 6), 2)


MISFITS = [
    ((3, 4), {"kernel": 3, "padding": 2}, "a padding of 2 is more than half the kernel of 3: make it smaller"),
    ((3, 4), {"kernel": (4, 3), "padding": 2}, "a padding of 2 is more than half the kernel of 3: make it smaller"),
    ((3, 4), {"kernel": 4}, "a kernel of 4 does not fit into 3 places padded by 0: make it smaller"),
    ((3, 4), {"kernel": (2, 7), "padding": 1}, "a kernel of 7 does not fit into 4 places padded by 1: make it smaller"),
    ((0, 4), {"kernel": 2, "padding": 1}, "a kernel of 2 does not fit into 0 places padded by 1: make it smaller"),
    ((3, 4), {"kernel": 0}, "kernel is 0: give a whole number from 1, or two of them"),
    ((3, 4), {"kernel": 2, "stride": 0}, "stride is 0: give a whole number from 1, or two of them"),
    ((3, 4), {"kernel": 2, "padding": -1}, "padding is -1: give a whole number from 0, or two of them"),
]
MISFITS_OF_SIZES = [
    ((2, 3, 4), 0, "size is 0: give a whole number from 1, or two of them"),
    ((2, 3, 4), (1, 0), "size is (1, 0): give a whole number from 1, or two of them"),
    ((4,), 1, "x is (4,): give images (…, H, W) of at least one pixel"),
    ((2, 0, 4), 1, "x is (2, 0, 4): give images (…, H, W) of at least one pixel"),
    ((2, 3, 0), 1, "x is (2, 3, 0): give images (…, H, W) of at least one pixel"),
]


@each_pool
@pytest.mark.parametrize(("shape", "options", "said"), MISFITS)
def test_what_does_not_fit_is_said(layer, twin, shape, options, said):
    assert refusal(layer.forward, (2, *shape), **options) == said


@pytest.mark.parametrize(("shape", "size", "said"), MISFITS_OF_SIZES)
def test_what_adaptive_pooling_cannot_do_is_said(shape, size, said):
    assert refusal(adaptive_avg_pool2d.forward, shape, size=size) == said


@each_pool
def test_with_ceil_mode_even_the_first_window_may_stick_out(layer, twin):
    assert layer.forward(torch.ones(1, 1, 1), 2, 2, 0, True)[0].tolist() == [[[1]]]


def test_no_more_is_added_behind_the_padding_than_the_last_window_needs():
    assert pooled(7, 3, 2, 1, False) == pooled(7, 3, 2, 1, True) == (4, 0)
    assert pooled(6, 3, 2, 1, False) == (3, 0)
    assert pooled(6, 3, 2, 1, True) == (4, 1)


def test_the_cache_of_max_pooling_holds_no_picture():
    """Whether a pixel is the largest of its window, and the size of the picture; nothing as large as it."""
    x = normal(0, 2, 3, 8, 6)
    _, (largest, empty, *_) = max_pool2d.forward(x, 2)
    assert {mask.dtype for mask in largest} == {torch.bool}
    assert sum(largest).tolist() == torch.ones(2, 3, 4, 3).tolist()
    assert (empty.shape, empty.device.type) == (x.shape, "meta")


def test_a_picture_without_a_frame_is_not_copied():
    x = normal(0, 2, 3)
    assert pad(x, (0, 0, 0, 0)) is x
    assert pad(x, (0, 1, 0, 0), 7.0).tolist() == [[*row, 7.0] for row in x.tolist()]
