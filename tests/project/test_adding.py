"""What is added is found by itself, and a part that was forgotten is named in one sentence."""

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import train
import verify
from manual_backprop import layers
from manual_backprop.losses import LOSSES, Quadratic
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import OPTIMIZERS, SGD
from reference import layers as reference_layers
from reference import mlp, optimizers
from reference.losses import LOSSES as REFERENCE_LOSSES
from tests.support.refusals import assert_refused, refused
from tests.support.running import Done, call
from training.families import FAMILIES
from training.learners import twins, verification

Capsys = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
SHORT = ("--dataset", "sample", "--examples", 200, "--max-steps", 2, "--impl", "both", "--lr", 0.1)


def assert_said(sentence: str, *done: Done) -> None:
    for one in done:
        assert_refused(one, sentence)


def trained(capsys: Capsys, run_dir: Path, *options: str) -> Done:
    return call(capsys, train.main, *SHORT, "--run-dir", run_dir, *options)


def verified_all(capsys: Capsys) -> Done:
    return call(capsys, verify.main, "--all", "--seeds", 1)


# What only one side has

OPTIONS = {"activation": "--activation", "cost": "--loss", "optimizer": "--optimizer"}
OF_TORCH = {"activation": "sigmoid", "cost": "quadratic", "optimizer": "sgd"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "by_hand", "here", "others", "there"), twins.REGISTRIES, ids=lambda v: str(v)[:20])
def test_what_only_one_side_has_is_named(
    kind: str, by_hand: Any, here: str, others: Any, there: str, monkeypatch: Patch, capsys: Capsys, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(by_hand, "mine", by_hand[OF_TORCH[kind]])
        sentence = f"the {kind} mine has no twin: {there} has to name it too"
        assert_said(sentence, verified_all(capsys), trained(capsys, tmp_path / "run", OPTIONS[kind], "mine"))
        patch.setitem(others, "mine", others[OF_TORCH[kind]])
        twins.require_twins()  # has nothing to say
    monkeypatch.setitem(others, "theirs", others[OF_TORCH[kind]])
    sentence = f"the {kind} theirs is not written by hand: {here} has to name it too"
    assert_said(sentence, verified_all(capsys), trained(capsys, tmp_path / "other"))


# A layer


def a_layer(monkeypatch: Patch, *without: str) -> None:
    """linear under another name, as the only file of manual_backprop/layers."""
    module = ModuleType("manual_backprop.layers.twice")
    vars(module).update({k: v for k, v in vars(layers.linear).items() if not k.startswith("__") and k not in without})
    found = [*layers.__path__]
    monkeypatch.setattr(verification.importlib, "import_module", lambda name, real=__import__: module)
    info = type("Info", (), {"name": "twice"})
    monkeypatch.setattr(verification.pkgutil, "iter_modules", lambda path: [info] if [*path] == found else [])


def test_a_layer_and_its_twin_are_found_by_their_name(monkeypatch: Patch, capsys: Capsys) -> None:
    a_layer(monkeypatch)
    sentence = "the layer twice has no twin: reference/layers.py has to define twice, of the same arguments"
    assert_said(sentence, verified_all(capsys))
    monkeypatch.setattr(reference_layers, "twice", reference_layers.linear, raising=False)
    (check,) = verification.verify_layers(torch.float64, [0])
    assert (check.title, check.passed) == ("twice", True)


@pytest.mark.parametrize("part", ["forward", "backward", "EQUATIONS", "examples"])
def test_a_layer_that_lacks_a_part_is_named(part: str, monkeypatch: Patch, capsys: Capsys) -> None:
    a_layer(monkeypatch, part)
    sentence = f"the layer twice has no {part}: manual_backprop/layers/twice.py has to define it (docs/adding.md)"
    assert_said(sentence, verified_all(capsys))


# A cost, an optimizer


@pytest.mark.sweep(4)
@pytest.mark.parametrize("part", ["from_logits", "formula", "forward", "backward"])
def test_a_cost_that_lacks_a_part_is_named(part: str, monkeypatch: Patch, capsys: Capsys, tmp_path: Path) -> None:
    body = {name: value for name, value in vars(Quadratic).items() if name != part and not name.startswith("__")}
    monkeypatch.setitem(LOSSES, "mine", type("Mine", (), body))
    monkeypatch.setitem(REFERENCE_LOSSES, "mine", REFERENCE_LOSSES["quadratic"])
    sentence = f"the cost mine has no {part}: manual_backprop/losses.py has to define it (docs/adding.md)"
    assert_said(sentence, trained(capsys, tmp_path / "run", "--loss", "mine"))
    with refused(sentence):
        next(verification.verify_costs(torch.float64, [0]))


@dataclass(frozen=True)
class WithRho(SGD):
    rho: float = 0.5


def nadam(module: nn.Module, **settings: object) -> torch.optim.Optimizer:
    return torch.optim.NAdam(module.parameters())


def without(part: str) -> Any:
    body = {name: getattr(SGD, name) for name in ("init", "update") if name != part}
    return make_dataclass("Mine", [], namespace=body, frozen=True)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("mine", "twin", "sentence"),
    [
        (
            without("init"),
            optimizers.sgd,
            "the optimizer mine has no init: manual_backprop/optimizers.py has to",
        ),
        (without("update"), optimizers.sgd, "the optimizer mine has no update: manual_backprop/optimizers.py has to"),
        (WithRho, optimizers.sgd, "the optimizer mine has a setting rho, and no option gives it: Learning in training"),
        (OPTIMIZERS["adam"], nadam, "the optimizer NAdam has no state: STATES of reference/optimizers.py has to name"),
    ],
    ids=["no init", "no update", "a setting without an option", "a state without names"],
)
def test_what_an_optimizer_lacks_is_named(
    mine: Any, twin: Any, sentence: str, monkeypatch: Patch, capsys: Capsys, tmp_path: Path
) -> None:
    monkeypatch.setitem(OPTIMIZERS, "mine", mine)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "mine", twin)
    assert_said(sentence, trained(capsys, tmp_path / "run", "--optimizer", "mine"))


# A model


class Unobserved(nn.Sequential):
    def __init__(self, sizes: tuple[int, ...], activations: tuple[str, ...], dropout: float = 0.0) -> None:
        super().__init__()


class OtherNames(Unobserved):
    def __init__(self, sizes: tuple[int, ...], activations: tuple[str, ...], dropout: float = 0.0) -> None:
        super().__init__(sizes, activations)
        self.other = nn.Linear(3, 2)

    def observed(self) -> dict[str, nn.Module]:
        return {}


@pytest.mark.parametrize(
    ("twin", "sentence"),
    [
        (Unobserved, "the twin of MLP has no observed: Unobserved has to map the name of each call to its module"),
        (OtherNames, "the twin of MLP differs from it: Error(s) in loading state_dict for OtherNames: Missing key(s)"),
    ],
)
def test_a_twin_that_is_not_the_same_network_is_named(
    twin: type[nn.Module], sentence: str, monkeypatch: Patch, capsys: Capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(mlp, "MLP", twin)
    assert_said(sentence, call(capsys, verify.main, "--seeds", 1), trained(capsys, tmp_path / "run"))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("part", ["shapes", "buffers", "forward", "backward"])
def test_a_model_that_lacks_a_part_is_named(part: str, monkeypatch: Patch, capsys: Capsys, tmp_path: Path) -> None:
    monkeypatch.delattr(MLP, part)
    sentence = f"the model MLP has no {part}: manual_backprop/models/mlp.py has to define it (docs/adding.md)"
    assert_said(sentence, call(capsys, verify.main, "--seeds", 1), trained(capsys, tmp_path / "run"))


def test_a_familys_name_may_have_a_hyphen(monkeypatch: Patch, capsys: Capsys) -> None:
    class Mine(type(FAMILIES["mlp"])):  # type: ignore[misc]
        name = "my-own"

    monkeypatch.setitem(FAMILIES, "mlp", Mine())
    shown = call(capsys, train.main, "--help")
    assert shown.status == 0
    assert "my-own options" in shown.out
