"""docs/derivations.md derives what layers and models say they compute."""

import importlib
import pkgutil
import re
from pathlib import Path

from manual_backprop import layers, models

PAGE = (Path(__file__).parents[2] / "docs" / "derivations.md").read_text(encoding="utf-8")
DERIVED = set(re.findall(r"\*\*((?!BP)[A-Z]{2}\d+)\*\*", PAGE))


def test_every_label_of_a_layer_or_model_is_derived_in_the_documents_and_no_other():
    """BP, LI, CV, …: those in the docstrings, and those in bold in docs/derivations.md."""
    names = [f"{p.__name__}.{info.name}" for p in (layers, models) for info in pkgutil.iter_modules(p.__path__)]
    documents = [importlib.import_module(name).__doc__ or "" for name in names]
    used = {found for text in documents for found in re.findall(r"^ +((?!BP)[A-Z]{2}\d+)  ", text, re.MULTILINE)}
    missing, unused = ", ".join(sorted(used - DERIVED)), ", ".join(sorted(DERIVED - used))
    assert not missing, f"{missing} stands in a docstring, and docs/derivations.md does not derive it, as **{missing}**"
    assert not unused, f"docs/derivations.md derives {unused}, which stands in no docstring of a layer or model"
    assert len(used) > 20
