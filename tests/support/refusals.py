"""How the tests see that something is refused: with one sentence for the user, or by a script with status 2."""

from contextlib import contextmanager

import pytest

from tests.support.running import one_sentence
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


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}
