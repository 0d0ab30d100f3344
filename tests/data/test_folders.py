"""Pictures of one's own in a folder for every class, --dataset images."""

import shutil

import pytest
import torch
from PIL import Image

from tests.support.refusals import refused
from training.data import load


@pytest.fixture
def folders(tmp_path):
    """Seven black-ish cats, two white-ish dogs, a transparent 猫, and things that are no examples."""
    root = tmp_path / "pets"
    for name, count, base in (("dog", 2, 200), ("cat", 7, 10)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (base + i,) * 3).save(root / name / f"{i}.{'PNG' if i % 2 else 'bmp'}")
    for name in (".git", "__MACOSX/cat", "an empty one", "größe 猫/deeper"):
        (root / name).mkdir(parents=True)
    Image.new("RGBA", (5, 9), (0, 0, 0, 0)).save(root / "größe 猫" / "deeper" / "a b.png")
    for name in ("cat/.hidden.png", "cat/Thumbs.db", "cat/notes.txt", "notes.txt"):
        (root / name).write_text("no picture")
    return root


def shades(split):
    """The color of each picture, which tells which file it was, with its class."""
    return sorted(zip(split.x[:, 0].tolist(), split.y.tolist(), strict=True))


CATS, DOGS = [(10 + i, 0) for i in range(7)], [(200, 1), (201, 1)]


def test_each_folder_is_a_class_and_a_fifth_of_it_is_for_testing(folders):
    data = load("images", folders)
    assert (data.classes, data.shape, data.train.x.dtype) == (("cat", "dog", "größe 猫"), (28, 28), torch.uint8)
    assert sorted(shades(data.train) + shades(data.test)) == [*CATS, *DOGS, (255, 2)]
    assert data.test.y.bincount().tolist() == [1, 1]
    assert torch.equal(load("images", folders).train.x, data.train.x)
    assert "8 training and 2 test pictures of 3 classes, each made 28×28 grey" in data.source
    assert data.source.endswith("(2 .txt); empty folders are left out (an empty one)")


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Val"), ("train", "test", "valid")], ids=str)
def test_folders_for_training_and_testing_hold_the_classes(names, folders, tmp_path):
    for name in names:
        shutil.copytree(folders, tmp_path / "parts" / name)
    shutil.rmtree(tmp_path / "parts" / names[0] / "dog")
    data = load("images", tmp_path / "parts")
    assert shades(data.test) == [*CATS, *DOGS, (255, 2)]
    assert len(data.train) == (8 if len(names) == 2 else 8 + 10)
    assert ("no training example is of class dog, so 2 of the test" in data.source) == (len(names) == 2)


def test_folders_that_do_not_fit_are_refused(folders, tmp_path):
    parts, cats = tmp_path / "parts", folders / "cat"
    shutil.copytree(folders, parts / "train")
    (parts / "test").mkdir()
    for where, words in (
        (parts, [str(parts / "test"), "no pictures in class folders"]),
        (cats, ["at least 2 class folders and holds 0"]),
        (tmp_path / "nowhere", ["nowhere", "folder per class"]),
    ):
        with refused(*words):
            load("images", where)
    (parts / "old").mkdir()
    with refused("old, test, train", "one folder each for train, val and test"):
        load("images", parts)
    shutil.rmtree(parts)
    with refused("at least 2 class folders and holds 1", f"give --data-dir {folders}"):
        load("images", tmp_path)
    for broken, words in (
        ("cat/3.PNG", [str(cats / "3.PNG")]),
        ("dog/0.bmp", ["2 pictures cannot be read, the first"]),
    ):
        (folders / broken).write_text("no picture")
        with refused(*words, str(cats / "3.PNG")):
            load("images", folders)
    (folders / "an empty one" / "1.heic").write_text("no picture")
    with refused(str(folders / "an empty one"), "(1 .heic) and no picture", "*.png"):
        load("images", folders)
