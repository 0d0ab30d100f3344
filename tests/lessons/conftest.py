"""The lessons' reports, each made once, and data and networks small enough for tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lessons import one_example
from lessons.lesson import Report, teach
from lessons.measure import new_network, train_to
from lessons.runs import first
from training.data import Dataset
from training.learners.manual import ManualLearner

Taught = Callable[[str], tuple[Report, Path]]


@pytest.fixture(scope="session")
def taught(sample: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """Each lesson's report and directory; a lesson runs when it is first asked for."""
    parent, reports = tmp_path_factory.mktemp("lessons"), {}

    def report(name: str) -> tuple[Report, Path]:
        if name not in reports:
            reports[name] = teach(name, sample, 0, parent / name)
        return reports[name], parent / name

    return report


@pytest.fixture
def few(sample: Dataset) -> Dataset:
    return first(sample, 200, 100)


@pytest.fixture
def network(sample: Dataset) -> ManualLearner:
    return new_network(first(sample, 1000, 100), seed=1)


@pytest.fixture
def settled(network: ManualLearner) -> ManualLearner:
    """One whose outputs are all near 0.1."""
    train_to(network, one_example.SETTLED, seed=1)
    return network
