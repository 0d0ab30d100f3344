"""docs/derivations.md derives what layers and models say they compute."""

import importlib
import pkgutil
import re
from math import prod
from pathlib import Path

import torch

from manual_backprop import layers, models
from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.tape import Tape

DERIVATIONS = Path(__file__).parents[2] / "docs" / "derivations.md"


def test_every_label_of_a_layer_or_model_is_derived_in_the_documents_and_no_other():
    """BP, LI, CV, …: those in the docstrings, and those in bold in docs/derivations.md."""
    label = r"(?!BP)[A-Z]{2}\d"
    names = [f"{p.__name__}.{info.name}" for p in (layers, models) for info in pkgutil.iter_modules(p.__path__)]
    documents = [importlib.import_module(name).__doc__ or "" for name in names]
    used = {found for text in documents for found in re.findall(f"^ +({label})  ", text, re.MULTILINE)}
    derived = set(re.findall(rf"\*\*({label})\*\*", DERIVATIONS.read_text(encoding="utf-8")))
    missing, unused = ", ".join(sorted(used - derived)), ", ".join(sorted(derived - used))
    assert not missing, f"{missing} stands in a docstring, and docs/derivations.md does not derive it, as **{missing}**"
    assert not unused, f"docs/derivations.md derives {unused}, which stands in no docstring of a layer or model"
    assert len(used) > 20


def labels_of(model: CNN | LeNet5, training: bool) -> set[str]:
    """Of all δs and gradients of one pass, on random numbers."""
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.randn(shape, generator=generator) for name, shape in model.shapes.items()}
    tape = Tape(
        training=training, buffers=model.buffers(), noise=lambda call, shape, keep: torch.ones(shape), observes=True
    )
    output = model.forward(params, torch.randn(3, prod(model.shape), generator=generator), tape)
    model.backward(params, torch.randn(output.shape, generator=generator), {}, tape)
    return set(tape.labels.values()) | {label for label, _ in tape.equations(params).values()}


def test_every_equation_that_a_convolutional_network_names_is_derived():
    derived = set(re.findall(r"\*\*([A-Z]{2}\d)\*\*", DERIVATIONS.read_text(encoding="utf-8")))
    residual, lenet5 = CNN((2, 9, 7), 3, (5, 4), 1, dropout=0.3), LeNet5((1, 28, 28), 4)
    affine, of_blocks = {"LI1", "LI2", "LI3", "CV1", "CV2"}, {"BN1", "BN2", "MP1", "AA1", "RS1"}
    expected = affine | {"AC1", "∂C/∂output"}
    assert labels_of(residual, training=True) == expected | of_blocks | {"BN3", "DO1"}
    assert labels_of(residual, training=False) == expected | of_blocks | {"BN4"}
    assert labels_of(lenet5, training=True) == expected | {"CV3", "AP1"}
    assert expected | of_blocks | {"BN3", "BN4", "DO1", "CV3", "AP1"} <= derived | {"∂C/∂output"}
