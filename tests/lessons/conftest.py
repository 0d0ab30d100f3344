"""The lessons' reports, each made once, and data and networks small enough for tests."""

import pytest

from lessons import one_example
from lessons.lesson import teach
from lessons.measure import new_network, train_to
from lessons.runs import first


@pytest.fixture(scope="session")
def taught(sample, tmp_path_factory):
    """Each lesson's report and directory; a lesson runs when it is first asked for."""
    parent, reports = tmp_path_factory.mktemp("lessons"), {}

    def report(name):
        if name not in reports:
            reports[name] = teach(name, sample, 0, parent / name)
        return reports[name], parent / name

    return report


@pytest.fixture
def few(sample):
    return first(sample, 200, 100)


@pytest.fixture
def network(sample):
    return new_network(first(sample, 1000, 100), seed=1)


@pytest.fixture
def settled(network):
    """One whose outputs are all near 0.1."""
    train_to(network, one_example.SETTLED, seed=1)
    return network
