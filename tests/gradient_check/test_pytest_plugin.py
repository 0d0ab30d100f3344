"""The pytest plugin, in a pytest of its own."""

import pytest
import torch  # noqa: F401  so that a pytest in this process finds it loaded, and does not load it twice

from tests.support.running import ROOT

pytest_plugins = "pytester"
LAYER = """
import pytest
import torch

from gallery.affine import LINEAR
from gradient_check import Step
from tests.support.checking import MISTAKES, function_of

forward, right = LINEAR.forward, LINEAR.backward
wrong = MISTAKES["weight: divided by the batch again"].pair(right=False)[1]
x, W, b = example = LINEAR.arguments(0)

def square(factor):
    return function_of(lambda x: (x * x, x), lambda dy, x: factor * dy * x)

def step(factor):
    return lambda x: Step(factor * x.sum(), {"w": factor * x})

def watched(seen):
    return lambda dz, cache: seen.append(dz.clone()) or right(dz, cache)
"""


@pytest.fixture(autouse=True)
def _in_reach(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


OPTIONS = ("-p", "gradient_check.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers", "-W", "error")


def run(pytester, *arguments):
    """pytest on what was written, with the plugin."""
    return pytester.runpytest_inprocess(*OPTIONS, *arguments)


@pytest.mark.slow
def test_right_ones_pass_and_add_nothing(pytester):
    pytester.makepyfile(
        LAYER
        + """
def calls(check, **keywords):
    seen = []
    assert check.backward(forward, watched(seen), example, **keywords).passed
    return len(seen), len({tuple(dz.flatten().tolist()) for dz in seen})

def test_without_marker(gradient_check):
    assert calls(gradient_check) > calls(gradient_check, cases=[])

@pytest.mark.gradient_check(seeds=3, cases=[])
def test_seeds_are_draws_of_cotangents(gradient_check):
    one, three = calls(gradient_check, seed=0), calls(gradient_check)
    assert three == (3 * one[0], 3 * one[1])

@pytest.mark.gradient_check(cases=[])
def test_the_call_has_the_last_word(gradient_check):
    assert calls(gradient_check, cases=["layouts"]) > calls(gradient_check)

@pytest.mark.gradient_check(seeds=2, dtypes=["float64", "float32"])
class TestTheNearestMarkerWins:
    @pytest.mark.gradient_check(seeds=1, cases=[])
    def test_for_what_it_sets(self, gradient_check):
        labels = {row.label for row in gradient_check.backward(forward, right, example).rows}
        assert {"dW in float64", "dW in float32"} <= labels
        assert gradient_check.seeds == 1
        assert set(gradient_check.settings) == {"dtypes", "cases"}

@pytest.mark.gradient_check(seeds=2, dtypes=["float64", "float32"])
def test_the_others_take_what_they_know(gradient_check):
    gradient_check.function(square(2), [x])
    gradient_check.gradients({"W": W}, {"W": W.clone()})
    gradient_check.step(step(1), step(1), [x])
"""
    )
    result = run(pytester, "-rA")
    result.assert_outcomes(passed=5)
    assert "Captured" not in result.stdout.str()


@pytest.mark.slow
def test_wrong_ones_fail_with_their_report(pytester):
    pytester.makepyfile(
        LAYER
        + """
@pytest.mark.gradient_check(seeds=3)
def test_backward(gradient_check):
    gradient_check.backward(forward, wrong, example)

def test_function(gradient_check):
    gradient_check.function(square(1), [x])

def test_gradients(gradient_check):
    gradient_check.gradients({"W": W, "b": b}, {"W": -W, "b": b})

def test_step(gradient_check):
    gradient_check.step(step(1), step(2), [x])

@pytest.mark.gradient_check(seeds=3)
def test_only_for_the_third_draw(gradient_check):
    seen = []

    def backward(dz, cache):
        return (wrong if torch.equal(dz, seen[0]) else right)(dz, cache)

    gradient_check.backward(forward, watched(seen), example, seed=2)
    gradient_check.backward(forward, backward, example)
"""
    )
    result = run(pytester)
    result.assert_outcomes(failed=5)
    out = result.stdout.str()
    assert "gradient_check/" not in out, "only the test's own lines are shown"
    said = [rf"E +{name} .* WRONG" for name in ("dW", "dx", "W", "loss")]
    said += ["E +diagnosis: this is 1/7 times", *(f"E +AssertionError: with seed={seed}" for seed in (0, 2))]
    result.stdout.re_match_lines_random([*said, r"> +gradient_check\.backward\(forward, wrong, example\)"])


def test_markers_that_are_wrong_are_refused_in_a_sentence(pytester):
    markers = ("3", "seed_count=3", "seeds=0", "seeds='3'")
    tests = [f"@pytest.mark.gradient_check({m})\ndef test_{i}(gradient_check): ..." for i, m in enumerate(markers)]
    pytester.makepyfile("\n".join(["import pytest", *tests]))
    result = run(pytester)
    result.assert_outcomes(errors=4)
    said = (
        "takes keywords only, not 3: give seeds=… or another of *dtypes*",
        "has no keyword 'seed_count': give *, seeds, *",
        *(f"has seeds={seeds}, but it must be a whole number from 1" for seeds in ("0", "'3'")),
    )
    result.stdout.fnmatch_lines([f"the marker gradient_check {sentence}" for sentence in said])
    assert [word for word in ("Traceback", "pytest_plugin.py") if word in result.stdout.str()] == []


@pytest.mark.long
def test_torch_is_not_imported_unless_a_test_asks_for_the_fixture(pytester):
    pytester.makepyfile(
        """
import sys

import pytest

@pytest.mark.gradient_check(seeds=3)
def test_without_the_fixture(request):
    assert request.config.pluginmanager.has_plugin("gradient_check.pytest_plugin")
    assert "gradient_check" in sys.modules
    assert "torch" not in sys.modules

def test_with_the_fixture(gradient_check):
    assert "torch" in sys.modules
"""
    )
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=2)


def test_the_marker_and_the_fixture_are_documented(pytester):
    line = "@pytest.mark.gradient_check(seeds=1, [*][*]keywords): settings *"
    run(pytester, "--markers").stdout.fnmatch_lines([line])
    run(pytester, "--fixtures").stdout.fnmatch_lines(["gradient_check -- *", "*Gradient checks as methods *"])
