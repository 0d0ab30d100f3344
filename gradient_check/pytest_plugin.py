"""The gradient check in pytest: the fixture `gradient_check`, whose settings come from a marker of the same name.

    @pytest.mark.gradient_check(seeds=3, dtypes=["float64", "float32"])
    def test_linear(gradient_check):
        gradient_check.backward(forward, backward, (x, W, b))

Installing the package is all that is needed. torch is imported when a test asks for the fixture, not before.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from gradient_check.report import Report

CHECKS = {
    "backward": "check_backward",
    "function": "check_function",
    "gradients": "compare_gradients",
    "step": "check_step",
}


class GradientCheck:
    """The checks of this package; each fails the test, with its report as the message, unless all is well.

    `settings` stand in for what a call leaves out, in those methods that know such a keyword. Where a method takes a
    seed and the call gives none, it checks with the seeds 0 … `seeds` − 1.
    """

    def __init__(self, seeds: int = 1, **settings: Any) -> None:
        self.seeds, self.settings = seeds, settings

    def backward(self, forward: Any, backward: Any, example: Any, **keywords: Any) -> Report:
        """As `check_backward`: a hand-written pair of functions."""
        __tracebackhide__ = True
        return self._check("backward", (forward, backward, example), keywords)

    def function(self, function: Any, example: Any, **keywords: Any) -> Report:
        """As `check_function`: an autograd.Function, a custom operator, an nn.Module."""
        __tracebackhide__ = True
        return self._check("function", (function, example), keywords)

    def gradients(self, actual: Any, expected: Any, **keywords: Any) -> Report:
        """As `compare_gradients`: two named sets of tensors."""
        __tracebackhide__ = True
        return self._check("gradients", (actual, expected), keywords)

    def step(self, step_a: Any, step_b: Any, batch: Any, **keywords: Any) -> Report:
        """As `check_step`: two implementations of one training step."""
        __tracebackhide__ = True
        return self._check("step", (step_a, step_b, batch), keywords)

    def _check(self, method: str, subjects: tuple[Any, ...], keywords: dict[str, Any]) -> Report:
        """The report of the last seed."""
        __tracebackhide__ = True
        import gradient_check

        check, known = getattr(gradient_check, CHECKS[method]), _keywords(CHECKS[method])
        keywords = {name: value for name, value in self.settings.items() if name in known} | keywords
        if "seed" in keywords or "seed" not in known:
            return _passed(check(*subjects, **keywords))
        for seed in range(self.seeds):
            report = _passed(check(*subjects, seed=seed, **keywords), f"with seed={seed}")
        return report


@pytest.fixture(name="gradient_check")
def gradient_check_fixture(request: pytest.FixtureRequest) -> GradientCheck:
    """Gradient checks as methods (backward, function, gradients, step) with the settings of the test's marker."""
    allowed = {"seeds"}.union(*map(_keywords, CHECKS.values()))
    settings: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("gradient_check"))):  # the nearest to the test comes last
        if marker.args:
            _refuse(f"takes keywords only, not {marker.args[0]!r}: give seeds=… or another of {_listed(allowed)}")
        settings |= marker.kwargs
    for name in sorted(settings.keys() - allowed):
        _refuse(f"has no keyword {name!r}: give {_listed(allowed)}")
    seeds = settings.get("seeds", 1)
    if type(seeds) is not int or seeds < 1:
        _refuse(f"has seeds={seeds!r}, but it must be a whole number from 1")
    return GradientCheck(**settings)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "filterwarnings", "ignore:Failed to initialize NumPy:UserWarning"
    )  # which torch can do without
    config.addinivalue_line(
        "markers",
        "gradient_check(seeds=1, **keywords): settings of the fixture gradient_check: how many draws of cotangents, "
        "and what its calls leave out (dtypes, oracles, cases, …)",
    )


def _keywords(check: str) -> set[str]:
    """What may be given by name to one of this package's checks."""
    import gradient_check
    from gradient_check.options import KEYWORDS

    parameters = signature(getattr(gradient_check, check)).parameters.values()
    known = {parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY}
    return known.union(KEYWORDS) if any(p.kind is Parameter.VAR_KEYWORD for p in parameters) else known


def _passed(report: Report, drawn: str = "") -> Report:
    __tracebackhide__ = True
    if not report.passed:
        raise AssertionError(f"{drawn}\n{report}")
    return report


def _refuse(sentence: str) -> NoReturn:
    __tracebackhide__ = True
    pytest.fail(f"the marker gradient_check {sentence}", pytrace=False)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
