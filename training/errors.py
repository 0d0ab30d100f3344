"""The one kind of error that a user is meant to read."""


class UserError(ValueError):
    """A mistake of the user's that one sentence explains; scripts print it and exit with status 2."""
