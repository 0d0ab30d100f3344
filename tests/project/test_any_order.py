"""No test can tell which ran before it."""

import signal
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.conftest import shared_state


def assert_fresh():
    assert torch.get_num_threads() == 1
    assert torch.equal(torch.rand(5), torch.rand(5, generator=torch.Generator().manual_seed(0)))
    assert torch.is_warn_always_enabled()
    torch.set_num_threads(2)


@pytest.mark.parametrize("time", ["once", "again"])
def test_threads_and_random_numbers_are_the_same_whatever_the_test_before_did(time):
    """Whichever of the two runs last finds what the other left."""
    assert_fresh()


@pytest.fixture(scope="module")
def shared_by_tests():
    assert_fresh()


@pytest.mark.parametrize("time", ["once", "again"])
def test_so_they_are_in_what_tests_share_and_after_it_was_made(time, shared_by_tests):
    assert_fresh()


@contextmanager
def switched(switch, there, back):
    switch(there)
    try:
        yield
    finally:
        switch(back)


CHANGES = {
    "grad mode": torch.no_grad,
    "inference mode": torch.inference_mode,
    "default dtype": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "warn always": lambda: switched(torch.set_warn_always, False, True),
    "signal handlers": lambda: switched(
        partial(signal.signal, signal.SIGINT), signal.SIG_IGN, signal.default_int_handler
    ),
    "directory": lambda: chdir(Path("/")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_test_leaves_to_the_others_is_seen(name):
    before = shared_state()
    with CHANGES[name]():
        assert shared_state()[name] != before[name]
    assert shared_state() == before
