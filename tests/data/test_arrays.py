"""Arrays of one's own, --dataset npz: what is clear is read and said, what is not is asked for."""

import numpy as np
import pytest
import torch

from tests.support.refusals import refused
from training.data import load
from training.data.roles import role_of

X, Y = np.arange(60, dtype=np.float32).reshape(10, 2, 3) - 0.5, np.arange(10) % 4
BYTES = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
BYTES[::3, 0, 0] = 255
DIGITS = np.arange(12) % 3  # their labels
WORDS = np.array(["b", "c", "a"])[DIGITS]
WITH_NAN = np.where(np.arange(60).reshape(10, 2, 3) == 28, np.float32("nan"), X)  # in row 4


@pytest.fixture
def npz(tmp_path):
    def save(*unnamed, **arrays):
        np.savez(tmp_path / "arrays.npz", *unnamed, **arrays)
        return tmp_path / "arrays.npz"

    return save


ROLES = {
    ("train", "x"): "x X xs train_images trainX XTrain xtrain data images features train_set_x training-data",
    ("train", "y"): "y Y_train labels TARGET trainLabels ytrain",
    ("val", "x"): "x_val val_images XValid dev_x",
    ("test", "x"): "x_test X_TEST testImages images_test teX",
    ("test", "y"): "y_test test_labels Ytest",
    None: "target_names arr_0 x_mean fine_labels x_y train",
}


@pytest.mark.parametrize(("role", "names"), ROLES.items(), ids=str)
def test_names_say_what_an_array_is(role, names):
    assert {name: role_of(name) for name in names.split()} == dict.fromkeys(names.split(), role)


def test_arrays_are_read_by_their_names_or_their_order(npz):
    plain = load("npz", npz(x=BYTES, y=DIGITS))
    for other in (
        npz(BYTES, DIGITS),
        npz(data=BYTES.reshape(12, -1), images=BYTES, target=DIGITS, target_names=np.array(list("abc"))),
    ):
        assert torch.equal(load("npz", other).train.x, plain.train.x)
    parts = {"train_images": BYTES[:6], "val_images": BYTES[6:9], "test_images": BYTES[9:]}
    parts |= {"train_labels": DIGITS[:6], "val_labels": DIGITS[6:9], "test_labels": DIGITS[9:]}
    dataset = load("npz", npz(**parts), validation=3)
    assert torch.equal(dataset.test.x.view(3, 8, 8), torch.tensor(BYTES[6:9])), "held out are those for validation"
    del parts["test_images"], parts["test_labels"]
    assert torch.equal(load("npz", npz(**parts)).test.x, dataset.test.x), "which else are the test set"


PIXELS = {  # as they are saved, what the network reads of them, what is said
    "bytes": (BYTES, torch.uint8, ""),
    "floats to 255": (BYTES.astype(np.float32), torch.uint8, "pixels 0 to 255 (float32) are divided by 255"),
    "doubles to 255": (BYTES.astype(">f8"), torch.uint8, "divided by 255"),
    "integers": (BYTES.astype(np.int64), torch.uint8, "(int64) are divided by 255"),
    "16 bits": (BYTES.astype(np.uint16) * 257, torch.float32, "pixels 0 to 65535 (uint16) are divided by 65,535"),
    "fractions": (BYTES / np.float32(255), torch.float32, ""),
    "flat": (BYTES.reshape(12, 64), torch.uint8, "rows of 64 are taken as 8×8 pictures"),
    "one channel, last": (BYTES[..., None], torch.uint8, ""),
    "one channel, first": (BYTES[:, None], torch.uint8, ""),
}


@pytest.mark.parametrize(("saved", "dtype", "said"), PIXELS.values(), ids=PIXELS)
def test_pixels_are_the_same_however_they_are_saved(saved, dtype, said, npz):
    plain, data = load("npz", npz(x=BYTES, y=DIGITS)), load("npz", npz(x=saved, y=DIGITS))
    assert (data.shape, data.train.x.dtype) == ((8, 8), dtype)
    assert said in data.source if said else data.source.count(";") == 1
    x, expected = (d.train.batch(torch.arange(5), torch.float64)[0] for d in (data, plain))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-7)


FEATURES = BYTES[:, 0, :5].astype(int)
OTHERS = {
    "channels last": (np.repeat(BYTES[..., None], 3, axis=3), (3, 8, 8), 1, "the 3 channels are moved to the front"),
    "bits": (BYTES > 99, (8, 8), 1, "pixels 0 and 1 are taken as black and white"),
    "interpolated": (BYTES * 0.9, (8, 8), 0.9, "pixels 0 to 229.5 (float64) are divided by 255"),
    "digits of scikit-learn": (np.rint(BYTES.reshape(12, 64) / 255 * 16), (8, 8), 1, "(float64) are divided by 16"),
    "standardized": (BYTES / 51.0 - 2, (8, 8), 3, "values from -2 to 3 are taken as they are;"),
    "features": (FEATURES, (5,), FEATURES.max(), "as they are, although networks learn better from about -1 to 1"),
}


@pytest.mark.parametrize(("x", "shape", "largest", "said"), OTHERS.values(), ids=OTHERS)
def test_other_numbers_are_scaled_or_left_as_they_are(x, shape, largest, said, npz):
    data = load("npz", npz(x=x, y=DIGITS, x_test=x, y_test=DIGITS))
    assert data.shape == shape
    assert said in data.source + ";"
    assert data.train.batch(torch.arange(12), torch.float64)[0].max() == pytest.approx(largest)


@pytest.mark.parametrize(("saved", "kept"), [("float16", torch.float32), (">f4", torch.float32), ("f8", torch.float64)])
def test_doubles_are_kept(saved, kept, npz):
    x = load("npz", npz(x=X.astype(saved), y=Y, x_test=X.astype(saved), y_test=Y)).train.x
    assert x.dtype == kept
    assert x[7].tolist() == [41.5, 42.5, 43.5, 44.5, 45.5, 46.5]


LABELS = {
    "indices": (DIGITS, "0 1 2", ""),
    "a column": (DIGITS[:, None].astype(np.uint8), "0 1 2", ""),
    "whole floats": (DIGITS.astype(float), "0 1 2", ""),
    "from 1": (DIGITS + 1, "1 2 3", "labels 1 to 3 are taken as 3 classes"),
    "with gaps": (np.array([2, 0, 7])[DIGITS], "0 2 7", "labels 0, 2, 7 are taken as 3 classes"),
    "signs": (np.where(DIGITS > 1, 1, -1), "-1 1", "labels -1, 1 are taken as 2 classes"),
    "bools": (DIGITS == 2, "False True", "labels False, True are taken as 2 classes"),
    "one-hot": (np.eye(4)[DIGITS], "0 1 2 3", "one-hot rows of 4 are taken as 4 classes"),
    "names": (WORDS, "a b c", "labels a, b, c are taken as 3 classes"),
    "bytes": (WORDS.astype("S"), "a b c", "labels a, b, c are taken as 3 classes"),
    "numerals": (np.array(["2", "10", "1"])[DIGITS], "1 2 10", "labels 1, 2, 10 are taken as 3 classes"),
}


@pytest.mark.parametrize(("saved", "classes", "said"), LABELS.values(), ids=LABELS)
def test_labels_are_classes_however_they_are_saved(saved, classes, said, npz):
    data = load("npz", npz(x=BYTES, y=saved, x_test=BYTES, y_test=saved))
    assert data.classes == tuple(classes.split())
    assert said in data.source if said else ";" not in data.source
    meant = saved.argmax(1) if said.startswith("one-hot") else saved.ravel()
    names = [label.decode() if isinstance(label, bytes) else label for label in meant.tolist()]
    assert [data.classes[k] for k in data.test.y.tolist()] == [
        f"{n:g}" if isinstance(n, float) else str(n) for n in names
    ]


def test_a_fifth_of_each_class_is_drawn_for_testing_where_no_test_set_is(npz):
    y = np.repeat([0, 1, 2, 3], [50, 25, 3, 1])  # class by class
    data = load("npz", npz(x=np.arange(79.0).reshape(79, 1) - 9, y=y))
    assert (data.train.y.bincount().tolist(), data.test.y.bincount().tolist()) == ([40, 20, 2, 1], [10, 5, 1])
    assert sorted(torch.cat([data.train.x, data.test.x]).flatten().tolist()) == [row - 9 for row in range(79)]
    assert {0, 1} <= set(data.train.y[-20:].tolist()), "the last ones may be held out"
    assert data.source.endswith(
        "a fifth of each class, drawn with seed 0, is for testing; no test example is of class 3"
    )
    assert torch.equal(load("npz", npz(x=np.arange(79.0).reshape(79, 1) - 9, y=y)).test.x, data.test.x)


def test_training_examples_that_stand_class_by_class_are_shuffled(npz):
    x, y = np.arange(40.0).reshape(40, 1) - 9, np.repeat([0, 1], 20)
    data = load("npz", npz(x=x, y=y, x_test=x, y_test=y), validation=10)
    assert 2 <= data.test.y.sum() <= 8
    assert "stand class by class are shuffled" in data.source
    assert torch.equal(data.test.y, (data.test.x.flatten() >= 11).long())


def test_classes_that_training_never_sees_are_named(npz):
    dataset = load("npz", npz(x=X, y=Y, x_test=X[:3], y_test=np.array([0, 6, 1], dtype=np.uint8)))
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (10, 3, ("0", "1", "2", "3", "6"))
    assert "no training example is of class 6, so 1 test examples cannot be classified correctly" in dataset.source


ALONE = dict(x_train=X, y_train=Y)
BAD_ARRAYS = {
    "no y": (dict(x=X, foo=Y), ["no labels for training (y or y_train)", "it holds x, foo"]),
    "no x": (dict(y=Y), ["no examples for training (x or x_train)", "it holds y"]),
    "no names": (dict(a=X, b=Y), ["no examples for training", "it holds a, b"]),
    "nothing": ({}, ["it is empty"]),
    "half a test set": (dict(x=X, y=Y, x_test=X), ["no labels for testing (y_test)"]),
    "two of a kind": (dict(x=X, data=-X, y=Y), ["both x and data could be the examples for training"]),
    "lengths differ": (dict(x=X, y=Y[:9]), ["(9,)", "10 rows", "one label a row"]),
    "labels are fractions": (dict(x=X, y=Y + 0.5), ["y has 0.5 in row 0, which is no class"]),
    "labels are missing": (dict(x=X, y=np.where(Y == 2, np.nan, Y)), ["nan in row 2"]),
    "labels are empty": (dict(x=X, y=np.where(Y == 2, "", "a")), ["no label in row 2"]),
    "labels are dates": (dict(x=X, y=Y.astype("M8[D]")), ["datetime64[D]"]),
    "quantities": (dict(x=X, y=np.arange(10)), ["no two examples of any class"]),
    "probabilities": (dict(x=X, y=np.full((10, 2), 0.5)), ["2 columns", "row 0 is (0.5, 0.5)", "not one-hot"]),
    "negative label": (dict(x=X, y=Y - 1), ["3 labels of -1 beside labels up to 2", "leave these rows out"]),
    "one class": (dict(x=X, y=Y * 0), ["1 different label"]),
    "giant labels": (dict(x=X, y=Y * 1e300), ["1e+300"]),
    "other classes for testing": (ALONE | dict(x_test=X, y_test=Y + 9), ["no training example of the classes"]),
    "other labels for testing": (
        ALONE | dict(x_test=X, y_test=Y.astype(str)),
        ["numbers in y_train and names in y_test"],
    ),
    "other scale for testing": (
        dict(x=BYTES, y=DIGITS, x_test=BYTES / 255, y_test=DIGITS),
        ["x has values up to 255, and x_test up to 1; scale both alike"],
    ),
    "not finite": (dict(x=WITH_NAN, y=Y), ["not finite in row 4"]),
    "not finite for testing": (dict(x=X, y=Y, x_test=WITH_NAN, y_test=Y), ["x_test", "row 4"]),
    "x is complex": (dict(x=X.astype(complex), y=Y), ["complex128", "uint8"]),
    "x is flat": (dict(x=X.ravel()[:10], y=Y), ["(10,)"]),
    "no features": (dict(x=X[:, :0], y=Y), ["(10, 0, 3)"]),
    "no rows": (dict(x=X[:0], y=Y[:0]), ["(0, 2, 3)"]),
    "another shape for testing": (dict(x=X, y=Y, x_test=X[:, :1], y_test=Y), ["(1, 3)", "(2, 3)"]),
    "pickled objects": (dict(x=X, y=np.array(["a"] * 10, dtype=object)), ["y holds Python objects", "y.astype(str)"]),
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
