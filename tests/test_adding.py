"""docs/adding.md: what is added is found by itself, and a part that was forgotten is named in one sentence."""

import re
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from running import ROOT, Done, call, one_sentence
from torch import nn

import train
import verify
from manual_backprop import layers
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES, Quadratic
from manual_backprop.optimizers import OPTIMIZERS, SGD
from reference import layers as reference_layers
from reference import mlp, optimizers
from reference.losses import LOSSES as REFERENCE_LOSSES
from training.families import FAMILIES
from training.learners import twins, verification

Capsys = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
SHORT = ("--dataset", "sample", "--examples", 200, "--max-steps", 2, "--impl", "both", "--lr", 0.1)


def assert_said(sentence: str, *done: Done) -> None:
    for one in done:
        assert one.status == 2
        assert sentence in one_sentence(one.err)


def trained(capsys: Capsys, run_dir: Path, *options: str) -> Done:
    return call(capsys, train.main, *SHORT, "--run-dir", run_dir, *options)


# What only one side has


@pytest.mark.parametrize(("kind", "by_hand", "here", "others", "there"), twins.REGISTRIES, ids=lambda v: str(v)[:20])
def test_what_only_one_side_has_is_named(
    kind: str, by_hand: Any, here: str, others: Any, there: str, monkeypatch: Patch, capsys: Capsys, tmp_path: Path
) -> None:
    own = next(iter(by_hand))
    with monkeypatch.context() as patch:
        patch.setitem(by_hand, "mine", by_hand[own])
        option = {"activation": "--activation", "cost": "--loss", "optimizer": "--optimizer"}[kind]
        assert_said(
            f"the {kind} mine has no twin: {there} has to name it too",
            call(capsys, verify.main, "--all", "--seeds", 1),
            call(capsys, verify.main, "--model", "lenet5", "--seeds", 1),
            trained(capsys, tmp_path / "run", option, "mine"),
        )
        patch.setitem(others, "mine", others[own])
        assert trained(capsys, tmp_path / "both", option, "mine").status == 0
    monkeypatch.setitem(others, "theirs", others[own])
    sentence = f"the {kind} theirs is not written by hand: {here} has to name it too"
    assert_said(sentence, call(capsys, verify.main, "--all", "--seeds", 1), trained(capsys, tmp_path / "other"))


# A layer


def a_layer(monkeypatch: Patch, *without: str) -> ModuleType:
    """linear under another name, as a file of manual_backprop/layers."""
    module = ModuleType("manual_backprop.layers.twice")
    vars(module).update({k: v for k, v in vars(layers.linear).items() if not k.startswith("__") and k not in without})
    found = [*layers.__path__]
    monkeypatch.setattr(verification.importlib, "import_module", lambda name, real=__import__: module)
    info = type("Info", (), {"name": "twice"})
    monkeypatch.setattr(verification.pkgutil, "iter_modules", lambda path: [info] if [*path] == found else [])
    return module


def test_a_layer_and_its_twin_are_found_by_their_name(monkeypatch: Patch) -> None:
    a_layer(monkeypatch)
    monkeypatch.setattr(reference_layers, "twice", reference_layers.linear, raising=False)
    (check,) = verification.verify_layers(torch.float64, [0])
    assert (check.title, check.passed) == ("twice", True)


def test_a_layer_without_a_twin_is_named(monkeypatch: Patch, capsys: Capsys) -> None:
    a_layer(monkeypatch)
    sentence = "the layer twice has no twin: reference/layers.py has to define twice, of the same arguments"
    assert_said(sentence, call(capsys, verify.main, "--all", "--seeds", 1))


@pytest.mark.parametrize("part", ["forward", "backward", "EQUATIONS", "examples"])
def test_a_layer_that_lacks_a_part_is_named(part: str, monkeypatch: Patch, capsys: Capsys) -> None:
    a_layer(monkeypatch, part)
    sentence = f"the layer twice has no {part}: manual_backprop/layers/twice.py has to define it (docs/adding.md)"
    assert_said(sentence, call(capsys, verify.main, "--all", "--seeds", 1))


# A cost, an optimizer


@pytest.mark.parametrize("part", ["from_logits", "formula", "forward", "backward"])
def test_a_cost_that_lacks_a_part_is_named(part: str, monkeypatch: Patch, capsys: Capsys, tmp_path: Path) -> None:
    body = {name: value for name, value in vars(Quadratic).items() if name != part and not name.startswith("__")}
    monkeypatch.setitem(LOSSES, "mine", type("Mine", (), body))
    monkeypatch.setitem(REFERENCE_LOSSES, "mine", REFERENCE_LOSSES["quadratic"])
    sentence = f"the cost mine has no {part}: manual_backprop/losses.py has to define it (docs/adding.md)"
    assert_said(
        sentence, call(capsys, verify.main, "--all", "--seeds", 1), trained(capsys, tmp_path / "run", "--loss", "mine")
    )


@pytest.mark.parametrize("part", ["init", "update"])
def test_an_optimizer_that_lacks_a_part_is_named(part: str, monkeypatch: Patch, capsys: Capsys, tmp_path: Path) -> None:
    body = {name: getattr(SGD, name) for name in ("init", "update") if name != part}
    monkeypatch.setitem(OPTIMIZERS, "mine", make_dataclass("Mine", [], namespace=body, frozen=True))
    monkeypatch.setitem(optimizers.OPTIMIZERS, "mine", optimizers.sgd)
    sentence = f"the optimizer mine has no {part}: manual_backprop/optimizers.py has to define it (docs/adding.md)"
    assert_said(sentence, trained(capsys, tmp_path / "run", "--optimizer", "mine"))


def test_a_setting_of_an_optimizer_that_no_option_gives_is_named(
    monkeypatch: Patch, capsys: Capsys, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Mine(SGD):
        rho: float = 0.5

    monkeypatch.setitem(OPTIMIZERS, "mine", Mine)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "mine", optimizers.sgd)
    sentence = "the optimizer mine has a setting rho, and no option gives it: Learning in training/config/groups.py"
    assert_said(sentence, trained(capsys, tmp_path / "run", "--optimizer", "mine"))


def test_an_optimizer_whose_state_has_no_names_is_named(monkeypatch: Patch, capsys: Capsys, tmp_path: Path) -> None:
    monkeypatch.setitem(OPTIMIZERS, "mine", OPTIMIZERS["adam"])
    monkeypatch.setitem(optimizers.OPTIMIZERS, "mine", lambda module, **settings: torch.optim.NAdam(module.parameters()))
    sentence = "STATES of reference/optimizers.py has to name the tensors that NAdam remembers"
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


def test_a_familys_name_may_have_a_hyphen(monkeypatch: Patch, capsys: Capsys) -> None:
    class Mine(type(FAMILIES["mlp"])):  # type: ignore[misc]
        name = "my-own"

    monkeypatch.setitem(FAMILIES, "mlp", Mine())
    shown = call(capsys, train.main, "--help")
    assert shown.status == 0
    assert "my-own options" in shown.out


# The page


def test_every_file_that_the_page_names_is_there() -> None:
    """But those of its examples, whose names have `swish`, `tiny` or `verse` in them."""
    for path in re.findall(r"`((?:\w+/)+[\w.-]*)`", PAGE):
        assert "tiny" in path or (ROOT / path).exists(), path


def test_every_command_of_the_page_has_options_that_there_are(capsys: Capsys) -> None:
    commands = re.findall(r"python (\w+)\.py (--[^`\n]*)", PAGE)
    assert len(commands) >= 7
    shown = {name: call(capsys, main.main, "--help").out for name, main in (("train", train), ("verify", verify))}
    for script, options in commands:
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown[script], (script, option)


def test_every_test_that_the_page_runs_is_there() -> None:
    files = re.findall(r"tests/test_\w+\.py", PAGE)
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_activations_of_both_sides_are_the_same() -> None:
    assert ACTIVATIONS.keys() == mlp.ACTIVATIONS.keys()
