"""The pytest plugin, in a pytest of its own."""

from pathlib import Path

import pytest
import torch  # noqa: F401  so that a pytest in this process finds it loaded, and does not load it twice

pytest_plugins = "pytester"

ROOT = Path(__file__).resolve().parents[2]
LAYER = """
import pytest
import torch
from torch import nn

def forward(x, W):
    return x @ W.T, (x, W)

def right(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x

def wrong(dz, cache):
    x, W = cache
    return dz @ W, 0.5 * dz.T @ x

def example(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in ((7, 5), (3, 5))]

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy * ctx.saved_tensors[0]

class WrongSquare(Square):
    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[0]

class Net(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.layer = nn.Linear(5, 3, dtype=torch.float64)
        self.layer.load_state_dict({"weight": example()[1], "bias": torch.ones(3, dtype=torch.float64)})
        self.factor = factor

    def forward(self, x):
        return self.factor * self.layer(x).tanh().mean()
"""


@pytest.fixture(autouse=True)
def _in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


OPTIONS = ("-p", "gradient_check.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers", "-W", "error")


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """pytest on what was written, with the plugin."""
    return pytester.runpytest_inprocess(*OPTIONS, *arguments)


@pytest.mark.slow
def test_right_ones_pass_and_add_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        LAYER
        + """
def calls(check, **keywords):
    cotangents = []

    def counting(dz, cache):
        cotangents.append(dz.clone())
        return right(dz, cache)

    assert check.backward(forward, counting, example(), **keywords).passed
    return len(cotangents), len({tuple(c.flatten().tolist()) for c in cotangents})

def test_without_marker(gradient_check):
    all_cases, fewest = calls(gradient_check), calls(gradient_check, cases=[])
    assert all_cases > fewest

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
        labels = {row.label for row in gradient_check.backward(forward, right, example()).rows}
        assert {"dW in float64", "dW in float32"} <= labels
        assert gradient_check.seeds == 1
        assert set(gradient_check.settings) == {"dtypes", "cases"}

@pytest.mark.gradient_check(seeds=2, dtypes=["float64", "float32"])
def test_the_others_take_what_they_know(gradient_check):
    gradient_check.function(Square.apply, example()[:1])
    gradient_check.gradients({"W": example()[1]}, {"W": example()[1].clone()})
    gradient_check.step(Net(1.0), Net(1.0), example()[:1])
"""
    )
    result = run(pytester, "-rA")
    result.assert_outcomes(passed=5)
    assert "Captured" not in result.stdout.str()


@pytest.mark.slow
def test_wrong_ones_fail_with_their_report(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        LAYER
        + """
@pytest.mark.gradient_check(seeds=3)
def test_backward(gradient_check):
    gradient_check.backward(forward, wrong, example())

def test_function(gradient_check):
    gradient_check.function(WrongSquare.apply, example()[:1])

def test_gradients(gradient_check):
    gradient_check.gradients({"W": example()[1], "b": example()[0]}, {"W": -example()[1], "b": example()[0]})

def test_step(gradient_check):
    gradient_check.step(Net(1.0), Net(2.0), example()[:1])

@pytest.mark.gradient_check(seeds=3)
def test_only_for_the_third_draw(gradient_check):
    seen = []

    def watched(dz, cache):
        seen.append(dz.clone())
        return right(dz, cache)

    def backward(dz, cache):
        return (wrong if torch.equal(dz, seen[0]) else right)(dz, cache)

    gradient_check.backward(forward, watched, example(), seed=2)
    gradient_check.backward(forward, backward, example())
"""
    )
    result = run(pytester)
    result.assert_outcomes(failed=5)
    out = result.stdout.str()
    assert "gradient_check/" not in out, "only the test's own lines are shown"
    result.stdout.re_match_lines_random(
        [
            r"> +gradient_check\.backward\(forward, wrong, example\(\)\)",
            r"E +dW .* WRONG",
            r"E +diagnosis: .*(½|half|1/2|2)",
            r"E +AssertionError: with seed=0",
            r"E +AssertionError: with seed=2",
            r"E +dx .* WRONG",
            r"E +W .* WRONG",
            r"E +loss .* WRONG",
        ]
    )


def test_markers_that_are_wrong_are_refused_in_a_sentence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
import pytest

@pytest.mark.gradient_check(3)
def test_positional(gradient_check): ...

@pytest.mark.gradient_check(seed_count=3)
def test_unknown(gradient_check): ...

@pytest.mark.gradient_check(seeds=0)
def test_none(gradient_check): ...

@pytest.mark.gradient_check(seeds="3")
def test_text(gradient_check): ...
"""
    )
    result = run(pytester)
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(
        [
            "the marker gradient_check takes keywords only, not 3: give seeds=… or another of *dtypes*",
            "the marker gradient_check has no keyword 'seed_count': give *, seeds, *",
            "the marker gradient_check has seeds=0, but it must be a whole number from 1",
            "the marker gradient_check has seeds='3', but it must be a whole number from 1",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert "pytest_plugin.py" not in result.stdout.str()


@pytest.mark.long
def test_torch_is_not_imported_unless_a_test_asks_for_the_fixture(pytester: pytest.Pytester) -> None:
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
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(passed=2)


def test_the_marker_and_the_fixture_are_documented(pytester: pytest.Pytester) -> None:
    run(pytester, "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.gradient_check(seeds=1, [*][*]keywords): settings *"]
    )
    run(pytester, "--fixtures").stdout.fnmatch_lines(["gradient_check -- *", "*Gradient checks as methods *"])
