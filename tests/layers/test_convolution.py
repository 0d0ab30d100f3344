"""The convolution against torch's and against the unfold form, over strides, paddings, dilations, groups and sizes."""

from random import Random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradient_check import check_backward
from manual_backprop.layers import conv2d
from reference.layers import conv2d as twin
from tests.support.against_torch import assert_same, assert_torchs, normal


def configuration(seed: int, **fixed: int) -> tuple:
    """Random arguments that fit; every second one has a bias."""
    draw = Random(seed)

    def two(low: int, high: int) -> tuple[int, int]:
        return draw.randint(low, high), draw.randint(low, high)

    while True:
        groups = fixed.get("groups", draw.randint(1, 3))
        batch, inputs, outputs = fixed.get("batch", draw.randint(1, 3)), draw.randint(1, 2), draw.randint(1, 3)
        size, kernel, stride, padding, dilation = two(1, 7), two(1, 4), two(1, 4), two(0, 3), two(1, 3)
        if all(d * (k - 1) < n + 2 * p for n, k, p, d in zip(size, kernel, padding, dilation, strict=True)):
            break
    x = normal(seed, batch, inputs * groups, *size)
    W = normal(seed + 1, outputs * groups, inputs, *kernel)
    b = normal(seed + 2, len(W)) if seed % 2 else None
    return x, W, b, stride, padding, dilation, groups


def unfolded(x: Tensor, W: Tensor, b: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """z = W · unfold(x): the columns of unfold(x) are what the windows see. Without groups."""
    (_, _, H, width), (O, _, kh, kw) = x.shape, W.shape
    rows = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    columns = (width + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    seen = F.unfold(x, (kh, kw), dilation, padding, stride)  # (B, C·kh·kw, H′·W′)
    return (W.flatten(1) @ seen + b.unsqueeze(1)).view(len(x), O, rows, columns)


@pytest.mark.parametrize("seed", range(0, 100, 10))
def test_any_configuration_is_torchs(seed):
    for each in range(seed, seed + 10):
        assert_torchs(conv2d, twin, *configuration(each))


@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [
        ((1, 1), (1, 1), {}),
        ((1, 1), (3, 3), {"padding": 1}),
        ((5, 7), (5, 7), {}),
        ((6, 7), (2, 2), {"stride": 4}),
        ((7, 6), (1, 1), {"stride": (2, 3)}),
        ((7, 7), (3, 2), {"dilation": (3, 5), "stride": (1, 2)}),
        ((4, 3), (2, 2), {"padding": (3, 4)}),
        ((8, 5), (3, 3), {"stride": (3, 2), "padding": (0, 1), "dilation": (2, 1)}),
    ],
    ids=[
        "one pixel",
        "one pixel, padded",
        "kernel as large as the image",
        "stride beyond the kernel",
        "1x1 with a stride",
        "dilated over the whole image",
        "padding beyond the kernel",
        "rows behind the last window",
    ],
)
@pytest.mark.parametrize("groups", [1, 3], ids=["dense", "depthwise"])
def test_the_borders_of_what_fits(size, kernel, options, groups):
    settings = {"stride": 1, "padding": 0, "dilation": 1} | options
    x, W = normal(0, 2, 3, *size), normal(1, 6, 3 // groups, *kernel)
    assert_torchs(conv2d, twin, x, W, normal(2, 6), *settings.values(), groups)


@pytest.mark.parametrize("batch", [0, 1])
def test_one_image_and_none(batch):
    assert_torchs(conv2d, twin, normal(0, batch, 4, 5, 6), normal(1, 6, 2, 3, 2), normal(2, 6), 2, 1, 1, 2)


@pytest.mark.parametrize("more", [0, 1])
def test_more_images_than_are_taken_together(more):
    x, W, b, *options = configuration(1, groups=2)
    assert_torchs(conv2d, twin, normal(0, 2 * conv2d.TOGETHER + more, *x.shape[1:]), W, b, *options)


@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_a_matrix_product_with_what_the_windows_see(stride):
    x, W, b = normal(0, 2, 3, 7, 8), normal(1, 4, 3, 3, 2), normal(2, 4)
    assert_torchs(conv2d, unfolded, x, W, b, stride, 1, 2)


def test_any_layout_in_memory():
    x, W, b, dz = normal(0, 3, 4, 6, 5), normal(1, 6, 2, 3, 2), normal(2, 6), normal(3, 3, 6, 4, 4)
    z, cache = conv2d.forward(x, W, b, groups=2)
    expected = conv2d.backward(dz, cache)
    for layout in (
        lambda v: v.contiguous(memory_format=torch.channels_last),
        lambda v: v.transpose(0, 3).contiguous().transpose(0, 3),
        lambda v: torch.stack([v, v + torch.nan], dim=-1)[..., 0],
    ):
        again, cache = conv2d.forward(layout(x), layout(W), b, groups=2)
        assert_same(again, z, "z")
        for actual, gradient in zip(conv2d.backward(layout(dz), cache), expected, strict=True):
            assert_same(actual, gradient, "a gradient")
    everywhere = dz[:1, :1, :1, :1].expand(z.shape)
    for actual, gradient in zip(
        conv2d.backward(everywhere, cache), conv2d.backward(everywhere.clone(), cache), strict=True
    ):
        assert_same(actual, gradient, "a gradient of an expanded cotangent")


def test_dx_can_be_left_out():
    x, W, b, *options = next(conv2d.examples(torch.Generator().manual_seed(0)))
    for bias in (b, None):
        z, cache = conv2d.forward(x, W, bias, *options)
        _, *expected = conv2d.backward(z, cache)
        dx, *rest = conv2d.backward(z, cache, need_dx=False)
        assert dx is None
        assert len(rest) == len(expected) == (1 if bias is None else 2)
        assert all(torch.equal(a, e) for a, e in zip(rest, expected, strict=True))


def test_numbers_stand_for_pairs_and_the_defaults_are_torchs():
    x, W = normal(0, 2, 4, 7, 7), normal(1, 4, 4, 3, 3)
    assert_same(conv2d.forward(x, W)[0], F.conv2d(x, W), "z by default")
    assert_same(conv2d.forward(x, W, None, 2)[0], F.conv2d(x, W, None, (2, 2)), "z with a stride")
    assert_same(conv2d.forward(x, W, None, [2, 1])[0], F.conv2d(x, W, None, (2, 1)), "z with a list of strides")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_lower_precision_it_is_as_exact_as_torchs(dtype):
    """Images large enough for the order of the sum to matter."""
    x, W, b = normal(0, 5, 3, 12, 11), normal(1, 4, 3, 3, 3), normal(2, 4)
    report = check_backward(conv2d.forward, conv2d.backward, [x, W, b, 2, 1], reference=twin, dtypes=[dtype], cases=[])
    report.assert_passed()


@pytest.mark.parametrize(
    ("shapes", "options", "said"),
    [
        (
            ((3, 7, 7), (4, 3, 3, 3), None),
            {},
            "x is (3, 7, 7) and W (4, 3, 3, 3): give (B, C, H, W) and (O, C/groups, kh, kw)",
        ),
        (
            ((2, 3, 7, 7), (4, 3, 9), None),
            {},
            "x is (2, 3, 7, 7) and W (4, 3, 9): give (B, C, H, W) and (O, C/groups, kh, kw)",
        ),
        (
            ((2, 3, 7, 7), (4, 3, 3, 3), None),
            {"groups": 2},
            "2 groups for 3 channels and 4 outputs: give a divisor of both",
        ),
        (
            ((2, 4, 7, 7), (3, 2, 3, 3), None),
            {"groups": 2},
            "2 groups for 4 channels and 3 outputs: give a divisor of both",
        ),
        (
            ((2, 4, 7, 7), (3, 2, 3, 3), None),
            {"groups": 0},
            "0 groups for 4 channels and 3 outputs: give a divisor of both",
        ),
        (
            ((2, 6, 7, 7), (6, 4, 3, 3), None),
            {"groups": 2},
            "W sees 4 channels and x has 3 per group: give W as many",
        ),
        (((2, 3, 7, 7), (4, 3, 3, 3), (3,)), {}, "b is (3,): give (4,), a number for each output of W"),
        (
            ((2, 3, 5, 6), (4, 3, 3, 3), None),
            {"dilation": 3},
            "a kernel of 3, dilated by 3, does not fit into 5 places padded by 0: make it smaller",
        ),
        (
            ((2, 3, 5, 3), (4, 3, 1, 6), None),
            {"padding": 1},
            "a kernel of 6, dilated by 1, does not fit into 3 places padded by 1: make it smaller",
        ),
        (((2, 3, 5, 5), (4, 3, 3, 3), None), {"stride": 0}, "stride is 0: give a whole number from 1, or two of them"),
        (
            ((2, 3, 5, 5), (4, 3, 3, 3), None),
            {"stride": (1, 0)},
            "stride is (1, 0): give a whole number from 1, or two of them",
        ),
        (
            ((2, 3, 5, 5), (4, 3, 3, 3), None),
            {"padding": -1},
            "padding is -1: give a whole number from 0, or two of them",
        ),
        (
            ((2, 3, 5, 5), (4, 3, 3, 3), None),
            {"padding": (1, 1, 1)},
            "padding is (1, 1, 1): give a whole number from 0, or two of them",
        ),
        (
            ((2, 3, 5, 5), (4, 3, 3, 3), None),
            {"dilation": (1.5, 1)},
            "dilation is (1.5, 1): give a whole number from 1, or two of them",
        ),
        (
            ((2, 3, 5, 5), (4, 3, 3, 3), None),
            {"dilation": 0},
            "dilation is 0: give a whole number from 1, or two of them",
        ),
    ],
)
def test_what_does_not_fit_is_said(shapes, options, said):
    x, W, b = (None if shape is None else normal(0, *shape) for shape in shapes)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        conv2d.forward(x, W, b, **options)
    assert str(caught.value) == said


def test_the_largest_kernel_fits():
    for n, k, p, d in ((5, 3, 0, 2), (3, 5, 1, 1)):
        z, _ = conv2d.forward(normal(0, 2, 3, n, n), normal(1, 4, 3, k, k), None, 1, p, d)
        assert z.shape == (2, 4, 1, 1)
