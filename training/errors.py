"""The one kind of error that a user is meant to read."""

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake of the user's that one sentence explains; scripts print it and exit with status 2."""


def listed(values: Sequence[object]) -> str:
    """The values in a sentence, at most twelve; what does not show, such as a line end, as Python writes it."""
    shown = [text if text.isprintable() and text.strip() else repr(text) for text in map(str, values[:12])]
    return ", ".join(shown) + (", …" if len(values) > 12 else "")
