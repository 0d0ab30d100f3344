"""Lock step says at its end what it proved: how many steps agree, and the largest error of all, with its place."""

import re
from pathlib import Path

import pytest

import train
from gradient_check import Report, Row
from tests.support import running
from tests.support.running import call, flags, write_npz
from training.interruption import Interruption
from training.learners.proof import Proof, power_of_ten

Capsys = pytest.CaptureFixture[str]
SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def small(tmp_path: Path, run_dir: Path, **options: object) -> list[str]:
    """A command line for a run of 14 steps."""
    data = tmp_path / "arrays.npz"
    if not data.exists():
        write_npz(data)
    defaults = {"dataset": "npz", "data_dir": data, "hidden": (4, 3), "batch_size": 30, "epochs": 2, "log_every": 3}
    return list(flags(defaults | {"run_dir": run_dir} | options))


def report(*errors: tuple[str, float]) -> Report:
    return Report(tuple(Row(label, label, (3,), True, relative_error=error) for label, error in errors))


@pytest.mark.slow
def test_the_last_line_of_lock_step(tmp_path: Path, capsys: Capsys) -> None:
    done = call(capsys, train.main, *small(tmp_path, tmp_path / "run", impl="both", dtype="float64"))
    assert done.status == 0
    last = done.out.splitlines()[-1]
    form = rf"14 of 14 steps agree; largest error (\d\.\d)·10⁻¹([{SUPERSCRIPT}]) \((.*)\)"
    found = re.fullmatch(form, last)
    assert found, last
    assert re.search(r"(layer \d|the cost C|∂C/∂output)", found[3])
    errors = running.values(tmp_path / "run", "gradient_check/max_relative_error").values()
    assert float(f"{found[1]}e-1{SUPERSCRIPT.index(found[2])}") >= float(f"{max(errors):.1e}"), "of all steps"


LAST_LINES: dict[str, tuple[dict[str, object], str]] = {
    "every step": ({"check_every": 1}, "14 of 14 steps agree; largest error "),
    "every fifth": ({"check_every": 5}, "2 of 2 steps agree (one in 5 was compared); largest error "),
    "none": ({"check_every": 20}, "no step was compared: the run took 14, and one in 20 is compared"),
    "by hand alone": ({"impl": "manual"}, "test accuracy"),
    "by autograd alone": ({"impl": "reference"}, "test accuracy"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "said"), LAST_LINES.values(), ids=LAST_LINES)
def test_the_last_line_says_what_was_compared(
    options: dict[str, object], said: str, tmp_path: Path, capsys: Capsys
) -> None:
    done = call(capsys, train.main, *small(tmp_path, tmp_path / "run", **options))
    assert done.status == 0
    assert done.out.splitlines()[-1].startswith(said)
    assert ("agree" in done.out) == ("agree" in said)


@pytest.mark.slow
def test_all_parts_of_a_resumed_run_count(tmp_path: Path, capsys: Capsys) -> None:
    whole = call(capsys, train.main, *small(tmp_path, tmp_path / "whole", impl="both", max_steps=9))
    first = call(
        capsys, train.main, *small(tmp_path, tmp_path / "parts", impl="both", max_steps=4, schedule="constant")
    )
    assert first.out.splitlines()[-1].startswith("4 of 4 steps agree; ")
    second = call(capsys, train.main, "--resume", tmp_path / "parts", "--max-steps", 9)
    assert second.out.splitlines()[-1].startswith("9 of 9 steps agree; ")
    assert whole.out.splitlines()[-1].startswith("9 of 9 steps agree; ")
    again = call(capsys, train.main, "--resume", tmp_path / "parts", "--max-steps", 9)
    assert "this run is finished" in again.out
    assert again.out.splitlines()[-1] == second.out.splitlines()[-1]


@pytest.mark.slow
def test_a_run_that_was_stopped_says_how_far_it_agreed(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = iter([False] * 5)  # two before and in the first evaluation, then one for every few steps
    monkeypatch.setattr(Interruption, "__call__", lambda self: next(polls, True))
    done = call(capsys, train.main, *small(tmp_path, tmp_path / "run", impl="both"))
    assert "stopped at step" in done.out
    steps = re.findall(r"^(\d+) of (\d+) steps agree; ", done.out, re.M)
    assert len(steps) == 1
    assert steps[0][0] == steps[0][1] != "14"


def test_the_largest_error_of_all_steps_keeps_its_own_label() -> None:
    proof = Proof()
    proof.add(report(("a", 1e-16), ("b", 3e-16)), report(("c", 2e-16)))
    proof.add(report(("d", 2.9e-16)), report(("e", 0.0)))
    assert proof.after(2) == "2 of 2 steps agree; largest error 3.0·10⁻¹⁶ (b)"


def test_steps_that_were_due_and_not_compared_show() -> None:
    proof = Proof(every=10)
    proof.add(report(("a", 0.0)))
    assert proof.after(39) == "1 of 3 steps agree (one in 10 was compared); largest error 0"


def test_powers_of_ten_are_spelled_like_mathematics() -> None:
    spelled = [power_of_ten(value) for value in (0.0, 3.14e-16, 1e-5, 0.25, 2.0, 7e12)]
    assert spelled == ["0", "3.1·10⁻¹⁶", "1.0·10⁻⁵", "2.5·10⁻¹", "2.0·10⁰", "7.0·10¹²"]
