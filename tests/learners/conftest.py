"""The text families stand beside those of the registry in every test of the learners."""

from pathlib import Path

import pytest

from tests.support.text.families import register


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the presets, theirs among them."""
    presets = tmp_path_factory.mktemp("presets")
    register(monkeypatch, presets)
    return presets
