"""docs/derivations.md derives what layers and models say they compute."""

import importlib
import pkgutil
import re
from pathlib import Path

from manual_backprop import layers, models

DERIVATIONS = Path(__file__).parent.parent / "docs" / "derivations.md"


def test_every_label_of_a_layer_or_model_is_derived_in_the_documents_and_no_other():
    """BP, LI, CV, …: those in the docstrings, and those in bold in docs/derivations.md."""
    label = r"(?!BP)[A-Z]{2}\d"
    names = [f"{p.__name__}.{info.name}" for p in (layers, models) for info in pkgutil.iter_modules(p.__path__)]
    documents = [importlib.import_module(name).__doc__ or "" for name in names]
    used = {found for text in documents for found in re.findall(f"^ +({label})  ", text, re.MULTILINE)}
    derived = set(re.findall(rf"\*\*({label})\*\*", DERIVATIONS.read_text(encoding="utf-8")))
    assert used == derived
    assert len(used) > 20
