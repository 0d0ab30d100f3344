"""Pictures of weights, kernels and feature maps, looked at by pixel."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.dashboard import BLACK, BLUE, GRAY, VERMILION, WHITE, colors_of, image, random_pictures
from tests.support.running import learner_of
from training.dashboard.weight_images import GRID_PIXELS, feature_maps, filter_pictures, weight_pictures
from training.families.configure import configure

LABEL = 24  # pixels above every row of maps
FIRST_MAPS = 2 * LABEL + 132 + 2  # where the first layer's maps begin, below a picture of 128 pixels and two labels
HUNDRED = {(40, 3, 3, 3): (12 * (3 * 11 + 6) + 6, 9 * (3 * 11 + 6) + 6), (2, 150, 1, 1): (100 * 10 + 6, 16)}  # kernels
NOT_FINITE = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


def depth(colors):
    """From -1, vermilion, over 0, white, to 1, blue."""
    bluish, pale = colors[..., 0] < colors[..., 2], 255 - colors[..., 1]
    return np.where(bluish, pale / (255 - BLUE[1]), -pale / (255 - VERMILION[1]))


def cell(grid, row, column, zoom, shape, line=2):
    """One picture of a grid with lines of `line` pixels, at its original size."""
    height, width = (side * zoom + line for side in shape)
    top, left = row * height + line, column * width + line
    return grid[top : top + height - line : zoom, left : left + width - line : zoom]


def cells(grid, count, columns, zoom, side):
    """The first kernels of a grid."""
    return [cell(grid, i // columns, i % columns, zoom, (side, side), line=6) for i in range(count)]


class TestWeights:
    def test_size_sign_and_place(self, tmp_path):
        weights = torch.zeros(3, 20)
        weights[0], weights[1], weights[2, 7] = 1.0, -1.0, 1.0  # the last in row 1, column 2 of a 4×5 picture
        parameters = {"embedding": torch.ones(2, 7), "layer1.bias": torch.zeros(3), "layer1.weight": weights}
        parameters |= {"layer2.weight": torch.ones(2, 20)}
        tag, grid = image(tmp_path, random_pictures((4, 5)), "pictures", parameters)
        zoom = GRID_PIXELS // (2 * 5)  # two columns of neurons
        assert (tag, grid.shape) == ("first_layer_weights", (2 * (4 * zoom + 2) + 2, 2 * (5 * zoom + 2) + 2, 3))
        blue, vermilion, point = (cell(grid, *place, zoom, (4, 5)).reshape(20, 3) for place in ((0, 0), (0, 1), (1, 0)))
        for found, color in (
            (blue, BLUE),
            (vermilion, VERMILION),
            (point[7], BLUE),
            (np.delete(point, 7, axis=0), WHITE),
        ):
            assert (found == color).all()

    @NOT_FINITE
    def test_color_is_in_proportion_to_the_weight_and_black_where_it_is_not_finite(self, bad):
        weights = torch.tensor([[-1.0, -0.5, bad, 0.0, 0.25, 1.0]])
        colors = cell(colors_of(weight_pictures(weights, (2, 3))), 0, 0, GRID_PIXELS // 3, (2, 3)).reshape(6, 3)
        assert depth(np.delete(colors, 2, axis=0)) == pytest.approx([-1, -0.5, 0, 0.25, 1], abs=0.01)
        assert (colors[2] == BLACK).all()

    @pytest.mark.slow
    @pytest.mark.parametrize(("value", "color"), [(0.0, WHITE), (math.nan, BLACK)], ids=["zeros", "nan"])
    def test_without_a_scale(self, value, color):
        weights, kernels = torch.full((4, 6), value), torch.full((4, 1, 3, 3), value)
        for picture in (weight_pictures(weights, (2, 3)), filter_pictures(kernels)):
            assert set(map(tuple, colors_of(picture).reshape(-1, 3))) == {tuple(GRAY), tuple(color)}

    def test_at_most_a_hundred_neurons(self):
        many = torch.randn(150, 784, generator=torch.Generator().manual_seed(0))
        assert weight_pictures(many, (28, 28)) == weight_pictures(many[:100], (28, 28))
        assert weight_pictures(many, (28, 28)).size == (10 * 30 + 2, 10 * 30 + 2)


ONE = torch.eye(200)[3]
ANY_SIZE = {
    "zeros": 0 * ONE,
    "one large value among zeros": 3e38 * ONE,
    "one small value among zeros": 1e-3 * ONE,
    "beyond any scale": 1e308 * ONE.double() + 1e-300,
    "bfloat16": torch.ones(200).bfloat16(),
}


class TestFeatureMaps:
    def test_a_known_filter_on_a_known_picture(self, tmp_path):
        """LeNet-5, in C1 all zeros but for two maps: the picture itself, and its negative a pixel further down."""
        data = random_pictures((28, 28))
        lenet5 = configure(model="lenet5", activation=("scaled_tanh",), loss="softmax-cross-entropy", init="xavier")
        learner = learner_of(replace(lenet5, impl="manual"), data)
        learner.params.theta.zero_()
        learner.params["C1.weight"][1, 0, 2, 2] = 1.0
        learner.params["C1.weight"][4, 0, 1, 2] = -1.0
        a = learner.activations(data.test.batch(torch.arange(1), torch.float32)[0])
        tag, shown = image(tmp_path, data, "feature_maps", a)
        assert tag == "feature_maps"

        picture, top = data.test.x[0].view(28, 28), LABEL + 2
        for i in (0, 3):  # the first and the last of a pixel's four
            assert (shown[top + i : top + 112 : 4, 2 + i : 2 + 112 : 4] == picture[..., None].numpy()).all()

        top += 112 + 2 + LABEL + 2
        maps = [shown[top : top + 56 : 2, 2 + 58 * c : 2 + 58 * c + 56 : 2] for c in range(6)]
        expected = 1.7159 * np.tanh(2 / 3 * picture.double().numpy() / 255)
        full = np.quantile(np.abs([0 * expected] * 4 + [expected, np.pad(expected, ((1, 0), (0, 0)))[:28]]), 0.99)
        assert depth(maps[1]) == pytest.approx(np.minimum(expected / full, 1), abs=0.01)
        assert depth(maps[4][1:]) == pytest.approx(-np.minimum(expected[:-1] / full, 1), abs=0.01)
        assert (maps[4][0] == WHITE).all()
        assert all((maps[c] == WHITE).all() for c in (0, 2, 3, 5))
        assert shown.shape[0] == 4 * LABEL + 116 + (56 + 4) + (60 + 4) + (64 + 4)  # C1, C3 and C5 are maps, F6 is not

    def test_each_layer_has_a_scale_of_its_own_and_at_most_16_maps(self):
        maps = {"a": torch.full((40, 2, 2), 1e-3), "b": torch.full((2, 4, 4), -1e3)}
        shown = colors_of(feature_maps(torch.zeros(1, 4, 4), maps))
        assert shown.shape == (3 * LABEL + (128 + 4) + 2 * (64 + 4), 16 * 66 + 2, 3)
        a, b = (shown[top:][:64] for top in (FIRST_MAPS, FIRST_MAPS + 68 + LABEL))
        assert all((a[:, 2 + 66 * c : 66 + 66 * c] == BLUE).all() for c in range(16))
        assert all((b[:, 2 + 66 * c : 66 + 66 * c] == VERMILION).all() for c in range(2))
        assert (b[:, 2 * 66 + 2 :] == WHITE).all()  # nothing more

    def test_labels(self):
        """Text is above every row, another for another name."""
        images = [colors_of(feature_maps(torch.zeros(1, 4, 4), {name: torch.ones(9, 4, 4)})) for name in ("C1", "C3")]
        label = [shown[LABEL + 132 : 2 * LABEL + 132] for shown in images]
        assert all((strip < 100).any() for strip in label)
        assert (label[0] != label[1]).any()

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "floating point"])
    def test_three_channels_are_in_color_and_others_side_by_side(self, dtype):
        colors = torch.randint(256, (3, 8, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        colors[:2, 0, 0] = torch.tensor([0, 255])  # of all pictures the least and the greatest
        picture = colors if dtype == torch.uint8 else colors.float() * 0.3 - 5
        maps = {"a": torch.ones(1, 2, 2)}
        three, two = (colors_of(feature_maps(p, maps))[LABEL + 2 :][:128:16] for p in (picture, picture[:2]))
        assert (three[:, 2:66:16] == colors.permute(1, 2, 0).numpy()).all()
        for channel, left in enumerate((2, 68)):
            assert (two[:, left : left + 64 : 16] == colors[channel, ..., None].numpy()).all()

    @NOT_FINITE
    def test_what_is_not_finite_is_black(self, bad):
        """In a map; of the picture itself it is as dark as its least value."""
        a = {"a": torch.tensor([1.0, bad, -1.0, bad]).view(1, 2, 2), "b": torch.full((3, 2, 2), bad)}
        shown = colors_of(feature_maps(torch.tensor([[[5.0, bad], [6.0, 7.0]]]), a))
        assert shown[LABEL + 2 : LABEL + 130 : 64, 2:130:64, 0].tolist() == [[0, 0], [128, 255]]
        assert shown[FIRST_MAPS : FIRST_MAPS + 64 : 32, 2:66:32].tolist() == [[BLUE, BLACK], [VERMILION, BLACK]]
        assert (shown[FIRST_MAPS + 66 + LABEL + 2 :][:64, 2:66] == BLACK).all()
        feature_maps(torch.full((1, 2, 2), bad), {"a": torch.ones(1, 1, 1)})

    @pytest.mark.parametrize("values", ANY_SIZE.values(), ids=ANY_SIZE)
    def test_values_of_any_size(self, values):
        shown = colors_of(feature_maps(torch.rand(1, 4, 4), {"a": values.view(2, 10, 10)}))
        assert shown[FIRST_MAPS, 2 + 3 * 6].tolist() == (BLUE if values[3] else WHITE)

    def test_large_pictures_are_thinned_out(self):
        a = torch.cat([torch.zeros(1, 100, 100), torch.ones(1, 100, 100)], dim=1)
        shown = colors_of(feature_maps(torch.zeros(1, 200, 100), {"a": a}))
        assert shown.shape[0] == 2 * LABEL + (100 + 4) + (50 + 4)
        assert (shown[-52:-2, 2:27] == np.repeat([[WHITE], [BLUE]], 25, axis=0)).all()


class TestFilters:
    def test_one_channel(self, tmp_path):
        kernels = torch.zeros(6, 1, 5, 5)
        kernels[1], kernels[3, 0, 1, 2], kernels[5, 0, 4, 0] = 2.0, -2.0, math.nan
        parameters = {"stem.bias": torch.ones(6), "conv.weight": kernels, "conv2.weight": torch.ones(3, 6, 2, 2)}
        tag, shown = image(tmp_path, random_pictures((28, 28)), "pictures", parameters)
        zoom = 400 // (3 * 5)
        assert (tag, shown.shape) == ("filters", (2 * (5 * zoom + 6) + 6, 3 * (5 * zoom + 6) + 6, 3))
        expected = np.full((6, 5, 5, 3), WHITE)
        expected[1], expected[3, 1, 2], expected[5, 4, 0] = BLUE, VERMILION, BLACK
        assert (np.array(cells(shown, 6, 3, zoom, 5)) == expected).all()

    def test_three_channels_are_side_by_side(self):
        kernels = torch.zeros(8, 3, 3, 3)
        kernels[5, 2], kernels[4, 0] = 1.0, -1.0
        shown = cells(colors_of(filter_pictures(kernels)), 24, 6, 400 // (6 * 3), 3)  # two outputs a row
        colored = {i: c[0, 0].tolist() for i, c in enumerate(shown) if (c != WHITE).any()}
        assert colored == {3 * 5 + 2: BLUE, 3 * 4: VERMILION}

    @pytest.mark.parametrize(("shape", "size"), HUNDRED.items(), ids=["33 outputs of three", "100 channels of one"])
    def test_at_most_a_hundred(self, shape, size):
        picture = filter_pictures(torch.randn(shape))
        assert picture.size == size
        fourth = colors_of(picture)[-9, 123:156]  # of the last row, in which 33 outputs of three leave three cells
        assert (fourth == GRAY).all() == (shape[0] == 40)


NOTHING_TO_SHOW = {
    "no pictures but features": ((20,), "pictures", {"layer1.weight": torch.ones(3, 20)}),
    "maps of no pictures": ((16,), "feature_maps", {"a": torch.ones(1, 2, 3, 3)}),
    "no maps": ((4, 4), "feature_maps", {"layer1": torch.ones(1, 9)}),
    "no activations": ((4, 4), "feature_maps", {}),
    "empty maps": ((4, 4), "feature_maps", {"a": torch.ones(1, 0, 3, 3)}),
}


@pytest.mark.parametrize(("shape", "call", "tensors"), NOTHING_TO_SHOW.values(), ids=NOTHING_TO_SHOW)
def test_only_where_examples_are_pictures_and_there_are_maps(tmp_path, shape, call, tensors):
    assert image(tmp_path, random_pictures(shape), call, tensors) is None
