"""The one kind of error that a user is meant to read."""

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake of the user's that one sentence explains; scripts print it and exit with status 2."""


def listed(values: Sequence[object]) -> str:
    """The values in a sentence, at most twelve of them."""
    return ", ".join(map(str, values[:12])) + (", …" if len(values) > 12 else "")
