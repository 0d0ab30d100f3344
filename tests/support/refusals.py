"""How the tests see that something is refused: with one sentence for the user, or by a script with status 2."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.running import Done, one_sentence
from training.errors import UserError


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """The block has to end with a UserError of one sentence in which all of the words stand."""
    with pytest.raises(UserError) as error:
        yield
    sentence = str(error.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == [], sentence


def assert_refused(done: Done, *words: str, status: int = 2) -> None:
    """A script said one sentence on stderr in which all of the words stand."""
    assert done.status == status, done.err
    sentence = one_sentence(done.err)
    assert [word for word in words if word not in sentence] == [], sentence


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
