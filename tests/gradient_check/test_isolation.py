"""In isolation, what kills the process is a row that fails."""

import os
import signal
from functools import wraps

import pytest
import torch

from gallery.affine import LINEAR
from gradient_check import check_backward
from gradient_check.isolation import run_in_child

EXAMPLE = LINEAR.arguments(0)
linear, linear_backward = LINEAR.forward, LINEAR.backward
DEATHS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit status 3": lambda: os._exit(3),
}


def dying(function, rows, how):
    @wraps(function)
    def dies(first, *rest):
        if len(first) == rows:
            DEATHS[how]()
        return function(first, *rest)

    return dies


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_death_names_its_case_and_the_other_cases_go_on(where, how):
    pair = {"forward": linear, "backward": linear_backward}
    pair[where] = dying(pair[where], 1, how)
    report = check_backward(**pair, example=EXAMPLE, isolate=True)
    (row,) = report.failures
    assert (row.case, row.diagnosis.kind) == ("one example", "died")
    assert row.reason == f"the process died in {where} ({how}), case: one example"
    alive = check_backward(linear, linear_backward, EXAMPLE, isolate=True)
    missing = {row.case for row in alive.rows} - {row.case for row in report.rows}
    assert missing <= {"cotangents in float32"}, "which are fed where all passed"


def test_a_death_in_the_example_ends_the_check():
    report = check_backward(linear, dying(linear_backward, len(EXAMPLE[0]), "SIGKILL"), EXAMPLE, isolate=True)
    assert [row.reason for row in report.rows] == ["the process died in backward (SIGKILL), case: the example"]


def test_a_child_works_on_one_thread_after_a_parent_on_many_and_raises_what_it_raises():
    torch.ones(500, 500) @ torch.ones(500, 500)
    values = run_in_child(lambda tell: (os.getpid(), torch.get_num_threads(), torch.arange(3).tolist()))
    assert (values[0] != os.getpid(), values[1:]) == (True, (1, [0, 1, 2]))
    with pytest.raises(ValueError, match="x is -inf at"):
        check_backward(linear, linear_backward, [EXAMPLE[0] / 0, *EXAMPLE[1:]], isolate=True)


def test_isolation_without_a_fork_is_refused(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ValueError, match="`python -m gradient_check --isolate"):
        check_backward(linear, linear_backward, EXAMPLE, isolate=True)
