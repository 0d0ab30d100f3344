"""Figures show what they should, whole, for data and names of any kind."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.running import ROOT
from training.dashboard import figures

DIGITS = tuple("0123456789")
BLUE = (0, 114, 178)
VERMILION = (213, 94, 0)


def assert_nothing_is_clipped(picture: Image.Image) -> None:
    pixels = np.asarray(picture)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edges == 255).all(), "something is drawn on the picture's edge"


def center(picture: Image.Image, color: tuple[int, int, int], tolerance: int = 12) -> tuple[float, float]:
    """Where in the picture a color is on average: (down, right), each from 0 to 1."""
    found = places(picture, color, tolerance)
    assert len(found), f"no pixel of color {color}"
    down, right = found.mean(axis=0)
    return float(down) / picture.height, float(right) / picture.width


def places(picture: Image.Image, color: tuple[int, int, int], tolerance: int) -> np.ndarray:
    """The pixels (N, 2) of about this color."""
    return np.argwhere((abs(np.asarray(picture).astype(int) - color) <= tolerance).all(axis=2))


def pale(color: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (round(255 - 0.35 * (255 - c)) for c in color)
    return red, green, blue


class TestConfusionMatrix:
    @pytest.mark.slow
    def test_rows_are_labels_and_columns_predictions(self) -> None:
        label, prediction = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
        down, right = center(figures.confusion_matrix(label, prediction, ("a", "b")), (8, 48, 107))
        assert down < 0.45  # label 0 is above
        assert right > 0.55  # prediction 1 is right

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "classes",
        [
            pytest.param(DIGITS, id="digits"),
            pytest.param(("red", "blue"), id="two"),
            pytest.param(("T-shirt/top", "a very long name of a class", *"abcdef"), id="long", marks=pytest.mark.slow),
            pytest.param(tuple(f"class {i}" for i in range(45)), id="many", marks=pytest.mark.slow),
            pytest.param((r"$\a$", "a_b^c", "數字"), id="awkward"),
        ],
    )
    def test_is_whole(self, classes: tuple[str, ...]) -> None:
        labels = torch.arange(200) % len(classes)
        assert_nothing_is_clipped(figures.confusion_matrix(labels, labels.roll(1), classes))


def stripes(horizontal: Tensor) -> Tensor:
    """Pictures (N, 64) of 8×8, striped across where `horizontal` (N,) holds, else down."""
    down = (torch.arange(64) % 2 * 255).to(torch.uint8)
    across = down.view(8, 8).T.flatten()
    return torch.where(horizontal[:, None], across, down)


class TestMistakes:
    def test_none_without_a_mistake(self) -> None:
        x = stripes(torch.zeros(3).bool())
        assert figures.mistakes(x, torch.arange(3), torch.eye(3), (8, 8), DIGITS, "p") is None

    def test_the_most_confident_comes_first(self) -> None:
        confidence = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.99, 0.01]])
        labels = torch.tensor([1, 1, 0])  # the third, of which it is surest, is right

        def first(horizontal: list[bool]) -> np.ndarray:
            x = stripes(torch.tensor(horizontal))
            return np.asarray(figures.mistakes(x, labels, confidence, (8, 8), ("a", "b"), "p", rows=1, columns=1))

        second = first([False, True, False])
        assert (second == first([True, True, True])).all()
        assert (second != first([False, False, False])).any()

    @pytest.mark.parametrize("count", [1, 9, *(pytest.param(count, marks=pytest.mark.slow) for count in (7, 8, 200))])
    @pytest.mark.parametrize(
        "classes", [DIGITS, (r"$\a$", "a very long name of a class " * 3, "數")], ids=["digits", "names"]
    )
    def test_is_whole(self, count: int, classes: tuple[str, ...]) -> None:
        confidence = torch.zeros(count, len(classes))
        confidence[:, 1] = torch.linspace(0.5, 1, count)
        labels = torch.zeros(count, dtype=torch.int64)
        picture = figures.mistakes(stripes(torch.ones(count).bool()), labels, confidence, (8, 8), classes, "activation")
        assert picture is not None
        assert_nothing_is_clipped(picture)


class TestDecisionBoundary:
    @pytest.mark.parametrize(
        ("coordinate", "axis", "sign"), [(0, 1, 1), (1, 0, -1)], ids=["to the right", "to the top"]
    )
    def test_area_is_the_prediction(self, coordinate: int, axis: int, sign: int) -> None:
        x = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        labels = torch.zeros(50, dtype=torch.int64)
        picture = figures.decision_boundary(
            x, labels, lambda p: torch.stack([-p[:, coordinate], p[:, coordinate]], dim=1), ("red", "blue")
        )
        difference = center(picture, pale(BLUE), 3)[axis] - center(picture, pale(VERMILION), 3)[axis]
        assert sign * difference > 0.3
        assert_nothing_is_clipped(picture)

    def test_points_have_the_color_of_their_label(self) -> None:
        x = torch.tensor([[-1.0, -0.5], [1.0, 0.5]]).repeat(20, 1)
        labels = torch.tensor([0, 1]).repeat(20)
        picture = figures.decision_boundary(x, labels, lambda p: torch.ones(len(p), 1), ("red", "blue"))
        without_legend = picture.crop((0, 0, 675, picture.height))
        assert center(without_legend, VERMILION)[1] < 0.3
        assert center(without_legend, BLUE)[1] > 0.7

    def test_a_coordinate_that_never_changes(self) -> None:
        x = torch.stack([torch.zeros(5), torch.arange(5.0)], dim=1)
        picture = figures.decision_boundary(x, torch.zeros(5).long(), lambda p: p, (r"$\a$", "b"))
        assert_nothing_is_clipped(picture)


Records = list[Mapping[str, float | None]]
FLAT: Records = [{"step": s, "loss/test": 1.0 + s / 1e7, "loss/train": 1.0} for s in range(10)]
FAR: Records = [{"step": s * 10**9, "loss/test": 10.0 ** (20 - 4 * s)} for s in range(10)]


def curves_of(tmp_path: Path, names: tuple[str, ...], records: Records, tail: str = "") -> Image.Image:
    """Of so many runs, all with these metrics."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    figures.curves(dict.fromkeys(names, path), tmp_path / "curves.png")
    return Image.open(tmp_path / "curves.png").convert("RGB")


class TestCurves:
    @pytest.mark.slow
    def test_two_equal_runs_are_both_to_be_seen(self, tmp_path: Path) -> None:
        records: Records = []
        for step in range(0, 601, 100):
            if step:
                records.append({"step": step, "loss/train": 2.0 * 0.99**step, "learning_rate": 1.0})
            accuracy = {"accuracy/train": 1 - 0.9**step, "accuracy/test": 1 - 0.91**step}
            records.append({"step": step, "loss/test": 2.2 * 0.99**step, **accuracy})
        picture = curves_of(tmp_path, ("by hand", "autograd"), records)
        for color in (BLUE, VERMILION):
            assert len(places(picture, color, 12)) > 300
            assert len(places(picture, pale(color), 3)) > 1000
        assert_nothing_is_clipped(picture)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("records", "tail"),
        [
            pytest.param([], "", id="empty", marks=pytest.mark.slow),
            pytest.param(
                [{"step": 0, "loss/test": 1.5, "accuracy/test": 0.1, "accuracy/train": 0.1}], "", id="one value"
            ),
            pytest.param(
                [{"step": s, "loss/test": v} for s, v in enumerate((1.5, None, 0.5))], '{"step', id="diverged"
            ),
            pytest.param([{"step": s, "loss/test": 0.0} for s in (1, 2)], "", id="zero", marks=pytest.mark.slow),
            pytest.param(FLAT, "", id="flat", marks=pytest.mark.slow),
            pytest.param(FAR, "", id="far", marks=pytest.mark.slow),
        ],
    )
    def test_any_run_can_be_drawn(self, tmp_path: Path, records: Records, tail: str) -> None:
        assert_nothing_is_clipped(curves_of(tmp_path, (r"$\run$",), records, tail))

    def test_a_single_value_is_to_be_seen(self, tmp_path: Path) -> None:
        picture = curves_of(tmp_path, ("run",), [{"step": 5, "loss/train": 1.0, "accuracy/train": 1.0}])
        center(picture.crop((70, 200, 600, 280)), BLUE)  # below the legend

    def test_without_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
            figures.curves({"run": tmp_path / "metrics.jsonl"}, tmp_path / "curves.png")


@pytest.mark.long
def test_matplotlib_is_loaded_late_and_pyplot_never() -> None:
    program = """
import sys
import torch
from training.dashboard import figures
assert not [name for name in sys.modules if name.startswith("matplotlib")]
labels = torch.tensor([0, 1])
figures.confusion_matrix(labels, labels, ("a", "b"))
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
