"""Arrays of --dataset npz: what is loaded is what is meant, and what does not fit is told in one sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.refusals import refused
from training.data import load

X, Y = np.arange(60, dtype=np.float32).reshape(10, 2, 3), np.arange(10) % 4
WITH_NAN = np.where(np.arange(60).reshape(10, 2, 3) == 28, np.float32("nan"), X)  # in row 4
Save = Callable[..., Path]


@pytest.fixture
def npz(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "arrays.npz", **arrays)
        return tmp_path / "arrays.npz"

    return save


def test_npz_without_a_test_set_tests_on_the_last_fifth(npz):
    dataset = load("npz", npz(x=X, y=Y))
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (8, 2, (2, 3))
    assert dataset.classes == ("0", "1", "2", "3")
    assert torch.equal(torch.cat([dataset.train.x, dataset.test.x]), torch.arange(60.0).view(10, 6))
    assert torch.cat([dataset.train.y, dataset.test.y]).tolist() == Y.tolist()
    assert len(load("npz", npz(x=np.ones((19, 1)), y=np.arange(19) % 2)).test) == 3
    assert len(load("npz", npz(x=np.ones((3, 1)), y=np.arange(3))).test) == 1


def test_npz_with_a_test_set_counts_its_classes_too(npz):
    dataset = load("npz", npz(x=X, y=Y, x_test=X[:3], y_test=np.array([0, 6, 1], dtype=np.uint8)))
    assert (len(dataset.train), len(dataset.test), len(dataset.classes)) == (10, 3, 7)
    assert dataset.test.y.tolist() == [0, 6, 1]


@pytest.mark.parametrize(
    ("saved", "kept"),
    [("uint8", torch.uint8), ("float16", torch.float32), (">f4", torch.float32), ("float64", torch.float64)],
)
def test_npz_keeps_bytes_and_doubles(saved, kept, npz):
    x = load("npz", npz(x=X.astype(saved), y=Y)).train.x
    assert x.dtype == kept
    assert x[7].tolist() == [42, 43, 44, 45, 46, 47]


BAD_ARRAYS = {
    "no y": (dict(x=X), ["no array 'y'"]),
    "no x": (dict(y=Y), ["no array 'x'"]),
    "half a test set": (dict(x=X, y=Y, x_test=X), ["only one of x_test and y_test"]),
    "lengths differ": (dict(x=X, y=Y[:9]), ["(9,)", "10 rows", "one label a row"]),
    "labels in columns": (dict(x=X, y=Y[:, None]), ["(10, 1)"]),
    "labels are floats": (dict(x=X, y=Y.astype(float)), ["float64", "int64"]),
    "labels are bools": (dict(x=X, y=Y > 1), ["bool"]),
    "negative label": (dict(x=X, y=Y - 1), ["label -1 at row 0"]),
    "one class": (dict(x=X, y=Y * 0), ["1 class"]),
    "a giant label": (dict(x=X, y=np.array([2**64 - 1] * 10, dtype=np.uint64)), ["10,000"]),
    "not finite": (dict(x=WITH_NAN, y=Y), ["not finite in row 4"]),
    "not finite for testing": (dict(x=X, y=Y, x_test=WITH_NAN, y_test=Y), ["x_test", "row 4"]),
    "x is int64": (dict(x=X.astype(np.int64), y=Y), ["int64", "uint8"]),
    "x is flat": (dict(x=X.ravel()[:10], y=Y), ["(10,)"]),
    "no features": (dict(x=X[:, :0], y=Y), ["(10, 0, 3)"]),
    "no rows": (dict(x=X[:0], y=Y[:0]), ["(0, 2, 3)"]),
    "one row": (dict(x=X[:1], y=Y[1:2]), ["1 example"]),
    "another shape for testing": (dict(x=X, y=Y, x_test=X[:, :1], y_test=Y), ["(1, 3)", "(2, 3)"]),
    "pickled objects": (dict(x=np.array([{}] * 10), y=Y), ["plain arrays"]),
}


@pytest.mark.parametrize(("arrays", "words"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(arrays, words, npz):
    path = npz(**arrays)
    with refused(str(path), *words):
        load("npz", path)


@pytest.mark.parametrize("name", ["single.npy", "text.npz", "empty.npz", "cut.npz", "missing.npz", "."])
def test_files_that_are_no_npz_are_refused(name, tmp_path, npz):
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "text.npz").write_text("x, y")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(npz(x=X, y=Y).read_bytes()[:-50])
    with refused(str(tmp_path / name), "npz"):
        load("npz", tmp_path / name)
