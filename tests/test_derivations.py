"""docs/derivations.md derives what layers and models say they compute."""

import importlib
import pkgutil
import re
from pathlib import Path

from cnn_problems import PROBLEMS

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


def test_every_equation_that_a_convolutional_network_names_is_derived():
    derived = set(re.findall(r"\*\*([A-Z]{2}\d)\*\*", DERIVATIONS.read_text(encoding="utf-8")))
    used = set()
    for problem in PROBLEMS.values():
        deltas = [name.removeprefix("δ ") for name in problem.by_hand() if name.startswith("δ ")]
        deltas.remove("output")
        used |= {problem.model.equation(name) for name in (*problem.model.shapes, *deltas)}
    assert used == {"∂C/∂output", "AC1", "BN1", "BN2", "BN3", "CV1", "CV2", "CV3", "LI1", "LI2", "LI3", "MP1"}
    assert used <= derived | {"∂C/∂output"}
