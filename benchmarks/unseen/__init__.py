"""Backward passes, wrong and right, that were written before the gradient check was last changed, and not shown to it.

No change of the check may be made for the sake of one of them: what fails here is mended by its kind, and other
subjects of that kind judge the mending.
"""

from benchmarks.unseen import right, wrong
from benchmarks.unseen.subject import SUBJECTS, Subject

__all__ = ["SUBJECTS", "Subject", "right", "wrong"]
