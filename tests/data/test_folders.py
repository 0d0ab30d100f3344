"""Pictures of one's own in a folder for every class, --dataset images."""

import shutil

import pytest
import torch
from PIL import Image

from tests.support.refusals import refused
from training.data import load


@pytest.fixture
def folders(tmp_path):
    """Seven black-ish cats, two white-ish dogs, and things that are no examples."""
    root = tmp_path / "pets"
    for name, count, base in (("dog", 2, 200), ("cat", 7, 10)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (base + i,) * 3).save(root / name / f"{i}.{'PNG' if i % 2 else 'bmp'}")
    (root / ".git").mkdir()
    (root / "cat" / ".hidden.png").write_text("no picture")
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "notes.txt").write_text("no folder")
    return root


def shades(split):
    """The color of each picture, which tells which file it was, with its class."""
    return sorted(zip(split.x[:, 0].tolist(), split.y.tolist(), strict=True))


def test_each_folder_is_a_class_and_a_fifth_of_it_is_for_testing(folders):
    dataset = load("images", folders)
    assert (dataset.classes, dataset.shape) == (("cat", "dog"), (28, 28))
    assert sorted(shades(dataset.train) + shades(dataset.test)) == [
        *((10 + i, 0) for i in range(7)),
        (200, 1),
        (201, 1),
    ]
    assert dataset.test.y.bincount().tolist() == [1, 1]
    assert dataset.train.x.dtype == torch.uint8
    assert torch.equal(load("images", folders).train.x, dataset.train.x)
    assert "7 training and 2 test pictures of 2 classes, each made 28×28 grey" in dataset.source
    assert "2 files are left out (2 .txt)" in dataset.source


def test_odd_folders_are_read_and_told(folders):
    (folders / "an empty one").mkdir()
    (folders / "__MACOSX" / "cat").mkdir(parents=True)
    (folders / "größe 猫" / "deeper").mkdir(parents=True)
    Image.new("RGBA", (5, 9), (0, 0, 0, 0)).save(folders / "größe 猫" / "deeper" / "a b.png")
    (folders / "cat" / "Thumbs.db").write_text("no picture")
    dataset = load("images", folders)
    assert dataset.classes == ("cat", "dog", "größe 猫")
    assert dataset.train.y.bincount().tolist() == [6, 1, 1]
    assert "no test example is of class größe 猫" in dataset.source
    assert "(2 .txt); empty folders are left out (an empty one)" in dataset.source


@pytest.mark.parametrize(
    "names", [("train", "test"), ("Training", "Testing"), ("train", "val"), ("train", "test", "val")]
)
def test_folders_for_training_and_testing_hold_the_classes(names, folders, tmp_path):
    for name in names:
        shutil.copytree(folders, tmp_path / "parts" / name)
    shutil.rmtree(tmp_path / "parts" / names[0] / "dog")
    dataset = load("images", tmp_path / "parts")
    assert [number for number, _ in shades(dataset.test)] == [*range(10, 17), 200, 201]
    assert len(dataset.train) == (7 if len(names) == 2 else 7 + 9)
    assert ("no training example is of class dog, so 2 test" in dataset.source) == (len(names) == 2)


def test_folders_that_do_not_fit_are_refused(folders, tmp_path):
    (folders / "cat" / "3.PNG").write_text("no picture")
    with refused(str(folders / "cat" / "3.PNG")):
        load("images", folders)
    (folders / "dog" / "0.bmp").write_text("no picture")
    with refused("2 pictures cannot be read, the first of them", str(folders / "cat" / "3.PNG")):
        load("images", folders)
    (folders / "owl").mkdir()
    (folders / "owl" / "1.heic").write_text("no picture")
    with refused(str(folders / "owl"), "no picture (1 .heic)", "*.png"):
        load("images", folders)
    with refused("0 class folder", "at least 2"):
        load("images", folders / "cat")
    with refused("1 class folder", f"give --data-dir {folders}"):
        load("images", tmp_path)
    with refused("nowhere", "folder per class"):
        load("images", tmp_path / "nowhere")
    shutil.copytree(folders, tmp_path / "parts" / "train")
    (tmp_path / "parts" / "test").mkdir()
    shutil.rmtree(tmp_path / "parts" / "train" / "owl")
    with refused(str(tmp_path / "parts" / "test"), "no pictures in class folders"):
        load("images", tmp_path / "parts")
    (tmp_path / "parts" / "old").mkdir()
    with refused("old, test, train", "one folder each for train, val and test"):
        load("images", tmp_path / "parts")
