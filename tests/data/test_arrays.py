"""Arrays of one's own, --dataset npz: what is clear is read and said, what is not is asked for."""

import numpy as np
import pytest
import torch

from tests.support.refusals import refused
from training.data import load
from training.data.roles import role_of

X, Y = np.arange(60, dtype=np.float32).reshape(10, 2, 3) - 0.5, np.arange(10) % 4
WITH_NAN = np.where(X == 27.5, np.float32("nan"), X)  # in row 4
BYTES, DIGITS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8), np.arange(12) % 3
BYTES[:, 0, 0] = 255


@pytest.fixture
def npz(tmp_path):
    def save(*unnamed, **arrays):
        np.savez(tmp_path / "arrays.npz", *unnamed, **arrays)
        return tmp_path / "arrays.npz"

    return save


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("x X xs train_images trainX XTrain xtrain data images features train_set_x Training-Data", ("train", "x")),
        ("y Y_train labels TARGET trainLabels ytrain", ("train", "y")),
        ("x_val val_images XValid dev_x", ("val", "x")),
        ("y_test TEST_LABELS Ytest teY", ("test", "y")),
        ("target_names arr_0 x_mean fine_labels x_y train", None),
    ],
)
def test_names_say_what_an_array_is(names, role):
    assert {name: role_of(name) for name in names.split()} == dict.fromkeys(names.split(), role)


def test_parts_are_found_by_their_names_or_their_order(npz):
    plain = load("npz", npz(x=BYTES, y=DIGITS)).train.x
    assert torch.equal(load("npz", npz(BYTES, DIGITS)).train.x, plain)
    wide = BYTES[:, 1:]
    scikit = npz(data=wide.reshape(12, -1), images=wide, target=DIGITS, target_names=np.array(list("abc")))
    assert load("npz", scikit).shape == (7, 8)
    parts = {"train_images": BYTES[:6], "train_labels": DIGITS[:6], "val_images": BYTES[6:9], "val_labels": DIGITS[6:9]}
    for tested, held_out in (({}, 0), ({"test_images": BYTES[9:], "test_labels": DIGITS[9:]}, 3)):
        data = load("npz", npz(**parts, **tested), validation=held_out)
        assert torch.equal(data.test.x.view(3, 8, 8), torch.tensor(BYTES[6:9])), "tested or held out are those"


UNIT, LARGE, SIXTEENTHS = BYTES / 255, BYTES[:, 0, :5].astype(int), np.rint(BYTES / 255 * 16)
TWO = [BYTES, BYTES // 2]
SAVED = {  # what is saved, what the network reads, how it is kept, and what is said of it
    "bytes": (BYTES, UNIT, "uint8", ""),
    "floats": (BYTES.astype("f4"), UNIT, "uint8", "pixels 0 to 255 (float32) are divided by 255"),
    "big-endian doubles": (BYTES.astype(">f8"), UNIT, "uint8", "pixels 0 to 255 (float64) are divided by 255"),
    "16 bits": (BYTES.astype("u2") * 257, UNIT, "float32", "pixels 0 to 65535 (uint16) are divided by 65,535"),
    "4 bits": (SIXTEENTHS, SIXTEENTHS / 16, "float64", "pixels 0 to 16 (float64) are divided by 16"),
    "bits": (BYTES > 99, BYTES > 99, "uint8", ""),
    "interpolated": (
        BYTES * 1.04 - 3,
        UNIT * 1.04 - 3 / 255,
        "float64",
        "pixels -3 to 262.2 (float64) are divided by 255",
    ),
    "fractions": (UNIT.astype("f4"), UNIT, "float32", ""),
    "standardized": (UNIT * 5 - 2, UNIT * 5 - 2, "float64", "values from -2 to 3 are taken as they are"),
    "half precision": (X[:, 0].astype("f2"), X[:, 0], "float32", "values from -0.5 to 55.5 are taken as they are, but"),
    "features": (LARGE, LARGE, "float32", "values from 10 to 255 are taken as they are, but networks learn better"),
    "flat": (BYTES.reshape(12, 64), UNIT, "uint8", "rows of 64 are taken as 8×8 pictures"),
    "one channel": (BYTES[:, None], UNIT, "uint8", ""),
    "one channel, last": (BYTES[..., None], UNIT, "uint8", ""),
    "channels last": (np.stack(TWO, 3), np.stack(TWO, 1) / 255, "uint8", "the 2 channels are moved to the front"),
}


@pytest.mark.parametrize(("saved", "read", "kept", "said"), SAVED.values(), ids=SAVED)
def test_examples_are_read_however_they_are_saved(saved, read, kept, said, npz):
    y = np.arange(len(saved)) % 3
    data = load("npz", npz(x=saved, y=y, x_test=saved, y_test=y))
    assert (data.shape, str(data.test.x.dtype)) == (read.shape[1:], f"torch.{kept}")
    assert f"classes; {said}" in data.source if said else data.source.endswith("classes")
    x, _ = data.test.batch(torch.arange(len(saved)), torch.float64)
    torch.testing.assert_close(x, torch.tensor(read, dtype=torch.float64).flatten(1), rtol=0, atol=1e-7)


LABELS = {  # those of 0, 1 and 2, the names of the three classes, and what is said of them
    "floats": ([0.0, 1.0, 2.0], "0 1 2", ""),
    "a column": ([[0], [1], [2]], "0 1 2", ""),
    "from 1": ([1, 2, 3], "1 2 3", "labels 1 to 3 are taken as 3 classes"),
    "with gaps": ([2, 0, 7], "2 0 7", "labels 0, 2, 7 are taken as 3 classes"),
    "signs": ([-1, 1, 1], "-1 1 1", "labels -1, 1 are taken as 2 classes"),
    "bools": ([False, True, True], "False True True", "labels False, True are taken as 2 classes"),
    "one-hot": (np.eye(4)[:3], "0 1 2", "one-hot rows of 4 are taken as 4 classes"),
    "names": (["b", "c", "a"], "b c a", "labels a, b, c are taken as 3 classes"),
    "bytes": ([b"b", b"c", b"a"], "b c a", "labels a, b, c are taken as 3 classes"),
    "numerals": (["2", "10", "1"], "2 10 1", "labels 1, 2, 10 are taken as 3 classes"),
}


@pytest.mark.parametrize(("labels", "names", "said"), LABELS.values(), ids=LABELS)
def test_labels_are_classes_however_they_are_saved(labels, names, said, npz):
    saved = np.array(labels)[DIGITS]
    data = load("npz", npz(x=BYTES, y=saved, x_test=BYTES, y_test=saved))
    assert [data.classes[k] for k in data.test.y.tolist()] == names.split() * 4
    assert said in data.source if said else data.source.endswith("classes")


def test_rows_that_stand_class_by_class_are_divided_and_shuffled(npz):
    x, y = np.arange(79.0).reshape(79, 1) - 9, np.repeat([0, 1, 2, 3], [50, 25, 3, 1])
    data, again = (load("npz", npz(x=x, y=y)) for _ in range(2))
    assert (data.train.y.bincount().tolist(), data.test.y.bincount().tolist()) == ([40, 20, 2, 1], [10, 5, 1])
    assert sorted(torch.cat([data.train.x, data.test.x]).flatten().tolist()) == x.flatten().tolist()
    assert "; a fifth of each class, drawn with seed 0, is for testing; no test example is of class 3" in data.source
    assert torch.equal(data.test.x, again.test.x)
    held_out = load("npz", npz(x=x, y=y, x_test=x[:3], y_test=np.array([0, 7, 1], dtype=np.uint8)), validation=30)
    assert {0, 1} <= set(held_out.test.y.tolist())
    assert torch.equal(held_out.test.y, torch.tensor(y)[(held_out.test.x.flatten() + 9).long()])
    unseen = "no training example is of class 7, so 1 of the test examples cannot be classified correctly"
    assert (
        f"stand class by class are shuffled with seed 0; {unseen}; no test example is of class 2, 3" in held_out.source
    )


def with_test_set(x, y):
    return dict(x=X, y=Y, x_test=x, y_test=y)


BAD_ARRAYS = {
    "no y": (dict(x=X, foo=Y), ["no labels for training (y or y_train); it holds x, foo; save it"]),
    "no names": (dict(a=X, b=Y), ["no examples for training (x or x_train); it holds a, b"]),
    "half a test set": (dict(x=X, y=Y, x_test=X), ["no labels for testing (y_test)"]),
    "two of a kind": (dict(x=X, data=-X, y=Y), ["both x and data could be the examples for training"]),
    "lengths differ": (dict(x=X, y=Y[:9]), ["(9,)", "10 rows", "one label a row"]),
    "fractions": (dict(x=X, y=Y + 0.5), ["y has 0.5 in row 0, which is no class"]),
    "a label is nan": (dict(x=X, y=np.where(Y == 2, np.nan, Y)), ["nan in row 2"]),
    "quantities": (dict(x=X, y=np.arange(10)), ["no two examples of any class"]),
    "probabilities": (dict(x=X, y=np.full((10, 2), 0.5)), ["2 columns", "row 0 is (0.5, 0.5)", "not one-hot"]),
    "unlabelled rows": (dict(x=X, y=Y - 1), ["3 labels of -1 beside labels up to 2; leave these rows out"]),
    "one class": (dict(x=X, y=Y * 0), ["1 different labels (0)"]),
    "other classes for testing": (with_test_set(X, Y + 9), ["no training example of the classes that are tested"]),
    "names for testing": (with_test_set(X, Y.astype(str)), ["numbers in y and names in y_test"]),
    "another scale": (dict(x=BYTES, y=DIGITS, x_test=UNIT, y_test=DIGITS), ["up to 255, and x_test up to 1;"]),
    "another shape for testing": (with_test_set(X[:, :1], Y), ["(1, 3)", "(2, 3)"]),
    "not finite": (with_test_set(WITH_NAN, Y), ["x_test has a value that is not finite in row 4"]),
    "complex": (dict(x=X.astype(complex), y=Y), ["complex128", "uint8"]),
    "no rows": (dict(x=X[:0], y=Y[:0]), ["(0, 2, 3)"]),
    "objects": (dict(x=X, y=np.array(["a"] * 10, dtype=object)), ["y holds Python objects", "y.astype(str)"]),
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
    with refused(str(tmp_path / name), "(it is not a zip file)" if name == "text.npz" else "npz"):
        load("npz", tmp_path / name)
