"""Compare a hand-written backward pass with its oracles. Needs torch and nothing else of this project.

Names are imported when they are first used, so that a test run which loads the pytest plugin does not load torch.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradient_check.check import assert_backward, assert_function, check_backward, check_function
    from gradient_check.compare import assert_gradients, compare_gradients
    from gradient_check.differences import central_differences
    from gradient_check.marks import checked
    from gradient_check.oracles import autograd_gradients, directional_derivative
    from gradient_check.report import Diagnosis, Report, Row
    from gradient_check.step import Step, assert_step, check_step

warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)  # torch works without it, and so do we

_HOMES = {
    "assert_backward": "check",
    "assert_function": "check",
    "check_backward": "check",
    "check_function": "check",
    "checked": "marks",
    "assert_gradients": "compare",
    "compare_gradients": "compare",
    "central_differences": "differences",
    "autograd_gradients": "oracles",
    "directional_derivative": "oracles",
    "Diagnosis": "report",
    "Report": "report",
    "Row": "report",
    "Step": "step",
    "assert_step": "step",
    "check_step": "step",
}

__all__ = [
    "Diagnosis",
    "Report",
    "Row",
    "Step",
    "assert_backward",
    "assert_function",
    "assert_gradients",
    "assert_step",
    "autograd_gradients",
    "central_differences",
    "check_backward",
    "check_function",
    "check_step",
    "checked",
    "compare_gradients",
    "directional_derivative",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradient_check' has no attribute {name!r}")
    return getattr(import_module(f"gradient_check.{_HOMES[name]}"), name)
