"""Figures show what they should, whole, for data and names of any kind."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from explanation.plotly_traces import WISHES
from tests.support.running import ROOT
from training.dashboard import figures
from training.dashboard.weight_images import LEVELS, PALETTE

DIGITS = tuple("0123456789")
BLUE, VERMILION = (0, 114, 178), (213, 94, 0)


def assert_nothing_is_clipped(picture):
    pixels = np.asarray(picture)
    assert all((pixels.take((0, -1), axis) == 255).all() for axis in (0, 1)), "something is drawn on the picture's edge"


def places(picture, color, tolerance=12):
    """The pixels (N, 2) of about this color."""
    return np.argwhere((abs(np.asarray(picture).astype(int) - color) <= tolerance).all(axis=2))


def center(picture, color, tolerance=12):
    """Where in the picture a color is on average: (down, right), each from 0 to 1."""
    found = places(picture, color, tolerance)
    assert len(found), f"no pixel of color {color}"
    return found.mean(axis=0) / (picture.height, picture.width)


def pale(color):
    return tuple(round(255 - 0.35 * (255 - c)) for c in color)


@pytest.mark.slow
def test_confusion_matrix_has_labels_in_rows_and_predictions_in_columns():
    picture = figures.confusion_matrix(torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]), ("a", "b"))
    down, right = center(picture, (8, 48, 107))
    assert (down < 0.45, right > 0.55) == (True, True), "label 0 is not above, or prediction 1 not right"


LONG = ("T-shirt/top", "a very long name of a class", *"abcdef")
MANY = tuple(f"class {i}" for i in range(45))
AWKWARD = (r"$\a$", "a_b^c", "數字")


@pytest.mark.slow
@pytest.mark.parametrize("classes", [DIGITS, ("red", "blue"), LONG, MANY, AWKWARD], ids=lambda names: names[0])
def test_confusion_matrix_is_whole(classes):
    labels = torch.arange(200) % len(classes)
    assert_nothing_is_clipped(figures.confusion_matrix(labels, labels.roll(1), classes))


def stripes(horizontal):
    """Pictures (N, 64) of 8×8, striped across where `horizontal` (N,) holds, else down."""
    down = (torch.arange(64) % 2 * 255).to(torch.uint8)
    return torch.where(torch.tensor(horizontal)[:, None], down.view(8, 8).T.flatten(), down)


class TestMistakes:
    def test_the_most_confident_comes_first(self):
        confidence = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.99, 0.01]])
        labels = torch.tensor([1, 1, 0])  # the third, of which it is surest, is right

        def first(*horizontal):
            of = (stripes(horizontal), labels, confidence)
            return figures.mistakes(*of, (8, 8), ("a", "b"), "p", rows=1, columns=1).tobytes()

        assert first(False, True, False) == first(True, True, True) != first(False, False, False)

    @pytest.mark.parametrize("count", [1, 9, *(pytest.param(count, marks=pytest.mark.slow) for count in (7, 8, 200))])
    @pytest.mark.parametrize("classes", [DIGITS, (r"$\a$", "a very long name of a class " * 3, "數")], ids=len)
    def test_is_whole(self, count, classes):
        confidence = torch.zeros(count, len(classes))
        confidence[:, 1] = torch.linspace(0.5, 1, count)
        of = (stripes([True] * count), torch.zeros(count).long(), confidence)
        assert_nothing_is_clipped(figures.mistakes(*of, (8, 8), classes, "activation"))


class TestDecisionBoundary:
    @pytest.mark.parametrize(("coordinate", "axis", "sign"), [(0, 1, 1), (1, 0, -1)], ids=["right", "top"])
    def test_area_is_the_prediction(self, coordinate, axis, sign):
        x = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        of = (x, torch.zeros(50).long(), lambda p: p[:, [coordinate]] * torch.tensor([-1.0, 1.0]))
        picture = figures.decision_boundary(*of, ("red", "blue"))
        assert sign * (center(picture, pale(BLUE), 3) - center(picture, pale(VERMILION), 3))[axis] > 0.3
        assert_nothing_is_clipped(picture)

    def test_points_have_the_color_of_their_label_where_a_coordinate_never_changes_too(self):
        x, labels = torch.tensor([[-1.0, 0.5], [1.0, 0.5]]).repeat(20, 1), torch.tensor([0, 1]).repeat(20)
        picture = figures.decision_boundary(x, labels, lambda p: torch.ones(len(p), 1), (r"$\a$", "b"))
        assert_nothing_is_clipped(picture)
        without_legend = picture.crop((0, 0, 675, picture.height))
        assert center(without_legend, VERMILION)[1] < 0.3
        assert center(without_legend, BLUE)[1] > 0.7


def curves_of(tmp_path, names, records):
    """Of so many runs, all with these metrics and a line that was cut off."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step')
    figures.curves(dict.fromkeys(names, path), tmp_path / "curves.png")
    picture = Image.open(tmp_path / "curves.png").convert("RGB")
    assert_nothing_is_clipped(picture)
    return picture


ANY_RUN = {
    "empty": [],
    "one value": [{"step": 0, "loss/test": 1.5, "accuracy/test": 0.1, "accuracy/train": 0.1}],
    "diverged": [{"step": s, "loss/test": loss} for s, loss in enumerate((1.5, None, 0.5))],
    "zero": [{"step": s, "loss/test": 0.0} for s in (1, 2)],
    "flat": [{"step": s, "loss/test": 1.0 + s / 1e7, "loss/train": 1.0} for s in range(10)],
    "far": [{"step": s * 10**9, "loss/test": 10.0 ** (20 - 4 * s)} for s in range(10)],
}


class TestCurves:
    @pytest.mark.slow
    def test_two_equal_runs_are_both_to_be_seen(self, tmp_path):
        records = [{"step": s, "accuracy/train": 1 - 0.9**s, "accuracy/test": 1 - 0.91**s} for s in range(0, 601, 100)]
        records += [{"step": s, "loss/train": 2.0 * 0.99**s, "loss/test": 2.2 * 0.99**s} for s in range(0, 601, 100)]
        picture = curves_of(tmp_path, ("by hand", "autograd"), records)
        for color in (BLUE, VERMILION):
            assert len(places(picture, color)) > 300
            assert len(places(picture, pale(color), 3)) > 1000

    @pytest.mark.slow
    @pytest.mark.parametrize("records", ANY_RUN.values(), ids=ANY_RUN)
    def test_any_run_can_be_drawn(self, tmp_path, records):
        curves_of(tmp_path, (r"$\run$",), records)

    def test_a_single_value_is_to_be_seen_and_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
            figures.curves({"run": tmp_path / "metrics.jsonl"}, tmp_path / "curves.png")
        picture = curves_of(tmp_path, ("run",), [{"step": 5, "loss/train": 1.0, "accuracy/train": 1.0}])
        center(picture.crop((70, 200, 600, 280)), BLUE)  # below the legend


@pytest.mark.long
def test_matplotlib_is_loaded_late_and_pyplot_never():
    program = """
import sys
import torch
from training.dashboard import figures
from training.dashboard.weight_images import LEVELS, PALETTE
assert "matplotlib" not in sys.modules
figures.confusion_matrix(torch.tensor([0]), torch.tensor([0]), ("a",))
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_above_zero_is_blue_in_pictures_of_weights_in_lessons_and_in_explanations():
    of_lessons = [tuple(round(255 * part) for part in figures.signed_colors()(end)[:3]) for end in (0.0, 1.0)]
    explained = [ImageColor.getrgb(color) for _, color in WISHES[::2]]
    assert [tuple(PALETTE[i]) for i in (0, 2 * LEVELS)] == of_lessons == explained == [VERMILION, BLUE]
