"""The text families stand beside those of the registry in every test of the learners."""

import pytest

from tests.support.text.families import register


@pytest.fixture(autouse=True)
def registered(monkeypatch, tmp_path_factory):
    """The directory of the presets, theirs among them."""
    presets = tmp_path_factory.mktemp("presets")
    register(monkeypatch, presets)
    return presets
