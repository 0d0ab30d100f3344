"""The text families stand beside those of the registry in every test of the learners."""

import pytest


@pytest.fixture(autouse=True)
def _registered(registered): ...
