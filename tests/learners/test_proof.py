"""Lock step says at its end what it proved: how many steps agree, and the largest error of all, with its place."""

import re

import pytest

import train
from gradient_check import Report, Row
from tests.support import running
from tests.support.running import call, flags, write_npz
from training.interruption import Interruption
from training.learners.proof import Proof, power_of_ten

SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹"


@pytest.fixture
def run(tmp_path, capsys):
    """A run of 14 steps."""
    data = write_npz(tmp_path / "arrays.npz")
    defaults = {"dataset": "npz", "data_dir": data, "hidden": (4, 3), "batch_size": 30, "epochs": 2, "log_every": 3}

    def run(name="run", **options):
        done = call(capsys, train.main, *flags(defaults | {"run_dir": tmp_path / name} | options))
        assert done.status == 0
        return done.out.splitlines()

    return run


@pytest.mark.slow
def test_the_last_line_of_lock_step(run, tmp_path):
    last = run(impl="both", dtype="float64")[-1]
    form = rf"14 of 14 steps agree; largest error (\d\.\d)·10⁻¹([{SUPERSCRIPT}]) \((.*)\)"
    found = re.fullmatch(form, last)
    assert found, last
    assert re.search(r"(layer \d|the cost C|∂C/∂output)", found[3])
    errors = running.values(tmp_path / "run", "gradient_check/max_relative_error").values()
    assert float(f"{found[1]}e-1{SUPERSCRIPT.index(found[2])}") >= float(f"{max(errors):.1e}"), "of all steps"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"check_every": 5}, "2 of 2 steps agree (one in 5 was compared); largest error "),
        ({"check_every": 20}, "no step was compared: the run took 14, and one in 20 is compared"),
        ({"impl": "manual"}, "test accuracy"),
    ],
    ids=str,
)
def test_the_last_line_says_what_was_compared(options, said, run):
    out = run(**options)
    assert out[-1].startswith(said)
    assert ("agree" in "".join(out)) == ("agree" in said)


@pytest.mark.slow
def test_all_parts_of_a_resumed_run_count(run, tmp_path, capsys):
    whole = run("whole", impl="both", max_steps=9)[-1]
    first = run("parts", impl="both", max_steps=4, schedule="constant")[-1]
    second, again = (
        call(capsys, train.main, "--resume", tmp_path / "parts", "--max-steps", 9).out.splitlines() for _ in range(2)
    )
    for last, steps in ((whole, 9), (first, 4), (second[-1], 9)):
        assert last.startswith(f"{steps} of {steps} steps agree; ")
    assert any("this run is finished" in line for line in again)
    assert again[-1] == second[-1]


@pytest.mark.slow
def test_a_run_that_was_stopped_says_how_far_it_agreed(run, monkeypatch):
    polls = iter([False] * 5)  # two before and in the first evaluation, then one for every few steps
    monkeypatch.setattr(Interruption, "__call__", lambda self: next(polls, True))
    out = "\n".join(run(impl="both"))
    assert "stopped at step" in out
    ((agree, steps),) = re.findall(r"^(\d+) of (\d+) steps agree; ", out, re.M)
    assert agree == steps != "14"


def report(**errors):
    return Report(tuple(Row(label, label, (3,), True, relative_error=error) for label, error in errors.items()))


def test_the_largest_error_keeps_its_label_and_steps_that_were_due_and_not_compared_show():
    proof = Proof()
    proof.add(report(a=1e-16, b=3e-16), report(c=2e-16))
    proof.add(report(d=2.9e-16), report(e=0.0))
    assert proof.after(2) == "2 of 2 steps agree; largest error 3.0·10⁻¹⁶ (b)"
    proof = Proof(every=10)
    proof.add(report(a=0.0))
    assert proof.after(39) == "1 of 3 steps agree (one in 10 was compared); largest error 0"
    spelled = [power_of_ten(value) for value in (0.0, 3.14e-16, 1e-5, 0.25, 2.0, 7e12)]
    assert spelled == ["0", "3.1·10⁻¹⁶", "1.0·10⁻⁵", "2.5·10⁻¹", "2.0·10⁰", "7.0·10¹²"]
