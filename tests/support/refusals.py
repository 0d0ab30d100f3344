"""How the tests see that something is refused: with one sentence for the user, or by a script with status 2."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from training.errors import UserError


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """The block has to end with a UserError of one sentence in which all of the words stand."""
    with pytest.raises(UserError) as error:
        yield
    sentence = str(error.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == [], sentence
