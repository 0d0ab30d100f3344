"""Compare a hand-written backward pass with its oracles. Needs torch and nothing else of this project."""

from gradient_check.check import check_backward
from gradient_check.compare import Report, Row, compare_gradients
from gradient_check.oracles import autograd_gradients, central_differences, directional_derivative

__all__ = [
    "Report",
    "Row",
    "autograd_gradients",
    "central_differences",
    "check_backward",
    "compare_gradients",
    "directional_derivative",
]
