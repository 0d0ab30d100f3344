"""What a subject of the trial is."""

from collections.abc import Callable
from dataclasses import dataclass

from gradient_check import Report


@dataclass(frozen=True)
class Subject:
    """A backward pass, wrong or right, and how it is asked for."""

    name: str
    what: str  # one sentence: what is wrong; of a right one, why it is delicate
    ask: Callable[[bool], Report]  # of whether to give the reference: asked as a user would, with defaults
    wrong: bool
    reference: bool = False  # whether there is one to give
    true: tuple[
        str, ...
    ] = ()  # regular expressions: a diagnosis (its kind, a colon, its text) that is true matches one
