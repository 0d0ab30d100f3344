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

PAGE = (Path(__file__).parents[2] / "docs" / "derivations.md").read_text(encoding="utf-8")
DERIVED = set(re.findall(r"\*\*((?!BP)[A-Z]{2}\d)\*\*", PAGE))


def test_every_label_of_a_layer_or_model_is_derived_in_the_documents_and_no_other():
    """BP, LI, CV, …: those in the docstrings, and those in bold in docs/derivations.md."""
    names = [f"{p.__name__}.{info.name}" for p in (layers, models) for info in pkgutil.iter_modules(p.__path__)]
    documents = [importlib.import_module(name).__doc__ or "" for name in names]
    used = {found for text in documents for found in re.findall(r"^ +((?!BP)[A-Z]{2}\d)  ", text, re.MULTILINE)}
    missing, unused = ", ".join(sorted(used - DERIVED)), ", ".join(sorted(DERIVED - used))
    assert not missing, f"{missing} stands in a docstring, and docs/derivations.md does not derive it, as **{missing}**"
    assert not unused, f"docs/derivations.md derives {unused}, which stands in no docstring of a layer or model"
    assert len(used) > 20


def labels_of(model, training):
    """Of all δs and gradients of one pass, on random numbers."""
    params = {name: torch.randn(shape) for name, shape in model.shapes.items()}
    noise = lambda call, shape, keep: torch.ones(shape)  # noqa: E731
    tape = Tape(training=training, buffers=model.buffers(), noise=noise, observes=True)
    output = model.forward(params, torch.randn(3, prod(model.shape)), tape)
    model.backward(params, torch.randn_like(output), {}, tape)
    return set(tape.labels.values()) | {label for label, _ in tape.equations(params).values()}


def test_every_equation_that_a_convolutional_network_names_is_derived():
    residual, lenet5 = CNN((2, 9, 7), 3, (5, 4), 1, dropout=0.3), LeNet5((1, 28, 28), 4)
    affine = {"LI1", "LI2", "LI3", "CV1", "CV2", "AC1", "∂C/∂output"}
    of_blocks = affine | {"BN1", "BN2", "MP1", "AA1", "RS1"}
    assert labels_of(residual, training=True) == of_blocks | {"BN3", "DO1"}
    assert labels_of(residual, training=False) == of_blocks | {"BN4"}
    assert labels_of(lenet5, training=True) == affine | {"CV3", "AP1"}
    assert of_blocks | {"BN3", "BN4", "DO1", "CV3", "AP1"} <= DERIVED | {"∂C/∂output"}
