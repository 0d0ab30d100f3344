"""How the tests see that something is refused: with one sentence for the user, or by a script with status 2."""

from contextlib import contextmanager

import pytest

import train
from tests.support.running import flags, one_sentence, write_npz
from training.errors import UserError


@contextmanager
def refused(*words):
    """The block has to end with a UserError of one sentence in which all of the words stand."""
    with pytest.raises(UserError) as error:
        yield
    sentence = str(error.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == [], sentence


def assert_refused(done, *words, status=2):
    """A script said one sentence on stderr in which all of the words stand."""
    assert done.status == status, done.err
    sentence = one_sentence(done.err)
    assert [word for word in words if word not in sentence] == [], sentence


def small_run(folder):
    """A finished run of ten steps on arrays, which lie beside it."""
    npz = write_npz(folder / "arrays.npz")
    options = {"dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 10, "run_dir": folder / "run"}
    assert train.main(list(flags(options))) == 0
    return folder / "run"


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}
