"""The convolution against torch's, over strides, paddings, dilations, groups and sizes."""

from random import Random

import pytest
import torch

from manual_backprop.layers import conv2d
from reference.layers import conv2d as twin
from tests.support.against_torch import assert_torchs, normal, refusal


def configuration(seed: int) -> tuple:
    """Random arguments that fit; every second one has a bias."""
    draw = Random(seed)

    def two(low: int, high: int) -> tuple[int, int]:
        return draw.randint(low, high), draw.randint(low, high)

    while True:
        groups, batch, inputs, outputs = (draw.randint(1, most) for most in (3, 3, 2, 3))
        size, kernel, stride, padding, dilation = two(1, 7), two(1, 4), two(1, 4), two(0, 3), two(1, 3)
        if all(d * (k - 1) < n + 2 * p for n, k, p, d in zip(size, kernel, padding, dilation, strict=True)):
            break
    x = normal(seed, batch, inputs * groups, *size)
    W = normal(seed + 1, outputs * groups, inputs, *kernel)
    b = normal(seed + 2, len(W)) if seed % 2 else None
    return x, W, b, stride, padding, dilation, groups


@pytest.mark.parametrize("seed", range(0, 100, 10))
def test_any_configuration_is_torchs(seed):
    for each in range(seed, seed + 10):
        assert_torchs(conv2d, twin, *configuration(each))


BORDERS = {
    "one pixel": ((1, 1), (1, 1), {}),
    "one pixel, padded": ((1, 1), (3, 3), {"padding": 1}),
    "kernel as large as the image": ((5, 7), (5, 7), {}),
    "stride beyond the kernel": ((6, 7), (2, 2), {"stride": 4}),
    "1x1 with a list of strides": ((7, 6), (1, 1), {"stride": [2, 3]}),
    "dilated over the whole image": ((7, 7), (3, 2), {"dilation": (3, 5), "stride": (1, 2)}),
    "padding beyond the kernel": ((4, 3), (2, 2), {"padding": (3, 4)}),
    "rows behind": ((8, 5), (3, 3), {"stride": (3, 2), "padding": (0, 1), "dilation": (2, 1)}),
}


@pytest.mark.parametrize(("size", "kernel", "options"), BORDERS.values(), ids=BORDERS)
@pytest.mark.parametrize("groups", [1, 3], ids=["dense", "depthwise"])
def test_the_borders_of_what_fits(size, kernel, options, groups):
    settings = {"stride": 1, "padding": 0, "dilation": 1} | options
    x, W = normal(0, 2, 3, *size), normal(1, 6, 3 // groups, *kernel)
    assert_torchs(conv2d, twin, x, W, normal(2, 6), *settings.values(), groups)


@pytest.mark.parametrize("batch", [0, 1, 2 * conv2d.TOGETHER, 2 * conv2d.TOGETHER + 1])
def test_no_image_one_and_more_than_are_taken_together(batch):
    assert_torchs(conv2d, twin, normal(0, batch, 4, 5, 6), normal(1, 6, 2, 3, 2), normal(2, 6), 2, 1, 1, 2)


@pytest.mark.parametrize("seed", [0, 1], ids=["without a bias", "with a bias"])
def test_dx_can_be_left_out(seed):
    z, cache = conv2d.forward(*configuration(seed))
    _, *expected = conv2d.backward(z, cache)
    dx, *rest = conv2d.backward(z, cache, need_dx=False)
    assert dx is None
    assert len(rest) == 1 + seed
    assert all(torch.equal(a, e) for a, e in zip(rest, expected, strict=True))


FOUR, DIVISOR = "give (B, C, H, W) and (O, C/groups, kh, kw)", "give a divisor of both"
MISFITS = [
    (((3, 7, 7), (4, 3, 3, 3)), {}, f"x is (3, 7, 7) and W (4, 3, 3, 3): {FOUR}"),
    (((2, 3, 7, 7), (4, 3, 9)), {}, f"x is (2, 3, 7, 7) and W (4, 3, 9): {FOUR}"),
    (((2, 3, 7, 7), (4, 3, 3, 3)), {"groups": 2}, f"2 groups for 3 channels and 4 outputs: {DIVISOR}"),
    (((2, 4, 7, 7), (3, 2, 3, 3)), {"groups": 2}, f"2 groups for 4 channels and 3 outputs: {DIVISOR}"),
    (((2, 4, 7, 7), (3, 2, 3, 3)), {"groups": 0}, f"0 groups for 4 channels and 3 outputs: {DIVISOR}"),
    (((2, 6, 7, 7), (6, 4, 3, 3)), {"groups": 2}, "W sees 4 channels and x has 3 per group: give W as many"),
    (((2, 3, 7, 7), (4, 3, 3, 3), (3,)), {}, "b is (3,): give (4,), a number for each output of W"),
]
TOO_LARGE = [
    ((5, 6), (3, 3), {"dilation": 3}, "of 3, dilated by 3, does not fit into 5 places padded by 0"),
    ((5, 3), (1, 6), {"padding": 1}, "of 6, dilated by 1, does not fit into 3 places padded by 1"),
]
NUMBERS = [("stride", 0, 1), ("stride", (1, 0), 1), ("padding", -1, 0), ("padding", (1, 1, 1), 0), ("dilation", 0, 1)]


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (5, 3), (4, 4)])
def test_a_product_is_made_the_way_with_fewer_rows(rows, columns):
    """Which way it was is told by how the product lies in memory."""
    a, b = normal(0, 2, 7, rows), normal(1, 2, 7, columns)
    product = conv2d.product(a, b)
    torch.testing.assert_close(product, torch.einsum("bki,bkj->bij", a, b), rtol=1e-14, atol=1e-14)
    assert product.is_contiguous() == (rows <= columns)


@pytest.mark.parametrize(("shapes", "options", "said"), MISFITS)
def test_shapes_that_do_not_fit_are_said(shapes, options, said):
    assert refusal(conv2d.forward, *shapes, **options) == said


@pytest.mark.parametrize(("size", "kernel", "options", "said"), TOO_LARGE)
def test_a_kernel_that_does_not_fit_is_said(size, kernel, options, said):
    assert refusal(conv2d.forward, (2, 3, *size), (4, 3, *kernel), **options) == f"a kernel {said}: make it smaller"


@pytest.mark.parametrize(("name", "value", "least"), [*NUMBERS, ("dilation", (1.5, 1), 1)])
def test_numbers_that_are_none_are_said(name, value, least):
    said = f"{name} is {value}: give a whole number from {least}, or two of them"
    assert refusal(conv2d.forward, (2, 3, 5, 5), (4, 3, 3, 3), **{name: value}) == said
