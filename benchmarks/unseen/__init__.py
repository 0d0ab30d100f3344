"""Backward passes, wrong and right, that were written before the gradient check was last changed, and not shown to it.

No change of the check may be made for the sake of one of them: what fails here is mended by its kind, and other
subjects of that kind judge the mending.
"""

from benchmarks.unseen import (
    right,
    right_2,
    right_3,
    wrong_functions,
    wrong_functions_2,
    wrong_functions_3,
    wrong_pairs,
    wrong_pairs_2,
)
from benchmarks.unseen.subject import Subject

PARTS = (wrong_pairs, wrong_pairs_2, wrong_functions, wrong_functions_2, wrong_functions_3, right, right_2, right_3)
SUBJECTS: list[Subject] = [subject for part in PARTS for subject in part.SUBJECTS]
