"""What lock step has shown of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradient_check import Report

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass
class Proof:
    """How many steps were compared and agree, and the largest relative error of all comparisons, with its label.

    Every `every`-th step is due to be compared.
    """

    every: int = 1
    steps: int = 0
    largest_error: float = 0.0
    label: str = ""

    def add(self, *reports: Report) -> None:
        """One more step, in which all of these comparisons passed."""
        self.steps += 1
        for report in reports:
            for row in report.rows:
                if row.relative_error > self.largest_error:
                    self.largest_error, self.label = row.relative_error, row.label

    def load(self, state: Mapping[str, Any]) -> "Proof":
        """Go on from the fields of an earlier one, as a checkpoint has them."""
        vars(self).update(state)
        return self

    def after(self, steps: int) -> str:
        """Of a run of so many steps: "1,000 of 1,000 steps agree; largest error 3.1·10⁻¹⁶ (BP4, layer 1, ∂C/∂W)"."""
        due = steps // self.every
        if not due:
            return f"no step was compared: the run took {steps:,}, and one in {self.every:,} is compared"
        some = f" (one in {self.every:,} was compared)" if self.every > 1 else ""
        where = f" ({self.label})" if self.label else ""
        return f"{self.steps:,} of {due:,} steps agree{some}; largest error {power_of_ten(self.largest_error)}{where}"


def power_of_ten(value: float) -> str:
    """3.1·10⁻¹⁶"""
    if not value:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}·10{str(int(exponent)).translate(SUPERSCRIPTS)}"
