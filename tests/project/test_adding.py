"""What is added is found by itself, and a part that was forgotten is named in one sentence."""

from dataclasses import dataclass, make_dataclass
from types import ModuleType

import pytest
import torch

import train
import verify
from gallery.parts import OtherNames, Unobserved
from manual_backprop import layers
from manual_backprop.losses import LOSSES, Quadratic
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import OPTIMIZERS, SGD
from reference import layers as reference_layers
from reference import mlp, optimizers
from reference.losses import LOSSES as REFERENCE_LOSSES
from tests.support.refusals import assert_refused, refused
from tests.support.running import call
from training.families import FAMILIES
from training.learners import twins, verification

SHORT = ("--dataset", "sample", "--examples", 200, "--max-steps", 2, "--impl", "both", "--lr", 0.1)


@pytest.fixture
def trained(capsys, tmp_path):
    return lambda *options: call(capsys, train.main, *SHORT, "--run-dir", tmp_path / "run", *options)


@pytest.fixture
def verified(capsys):
    return lambda *options: call(capsys, verify.main, "--seeds", 1, *options)


def without(part, whole):
    """What a class or module defines, but for one part."""
    return {name: value for name, value in vars(whole).items() if name != part and not name.startswith("__")}


OPTIONS = {"activation": "--activation", "cost": "--loss", "optimizer": "--optimizer"}
OF_TORCH = {"activation": "sigmoid", "cost": "quadratic", "optimizer": "sgd"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "by_hand", "here", "others", "there"), twins.REGISTRIES, ids=lambda v: str(v)[:20])
def test_what_only_one_side_has_is_named(kind, by_hand, here, others, there, monkeypatch, trained, verified):
    with monkeypatch.context() as patch:
        patch.setitem(by_hand, "mine", by_hand[OF_TORCH[kind]])
        for done in (verified("--all"), trained(OPTIONS[kind], "mine")):
            assert_refused(done, f"the {kind} mine has no twin: {there} has to name it too")
        patch.setitem(others, "mine", others[OF_TORCH[kind]])
        twins.require_twins()  # has nothing to say
    monkeypatch.setitem(others, "theirs", others[OF_TORCH[kind]])
    for done in (verified("--all"), trained()):
        assert_refused(done, f"the {kind} theirs is not written by hand: {here} has to name it too")


def a_layer(monkeypatch, lacks=""):
    """linear under another name, as the only file of manual_backprop/layers."""
    module, found = ModuleType("manual_backprop.layers.twice"), [*layers.__path__]
    vars(module).update(without(lacks, layers.linear))
    monkeypatch.setattr(verification.importlib, "import_module", lambda name, real=__import__: module)
    info = type("Info", (), {"name": "twice"})
    monkeypatch.setattr(verification.pkgutil, "iter_modules", lambda path: [info] if [*path] == found else [])


def test_a_layer_and_its_twin_are_found_by_their_name(monkeypatch, verified):
    a_layer(monkeypatch)
    sentence = "the layer twice has no twin: reference/layers.py has to define twice, of the same arguments"
    assert_refused(verified("--all"), sentence)
    monkeypatch.setattr(reference_layers, "twice", reference_layers.linear, raising=False)
    (check,) = verification.verify_layers(torch.float64, [0])
    assert (check.title, check.passed) == ("twice", True)


@pytest.mark.parametrize("part", ["forward", "backward", "EQUATIONS", "examples"])
def test_a_layer_that_lacks_a_part_is_named(part, monkeypatch, verified):
    a_layer(monkeypatch, part)
    sentence = f"the layer twice has no {part}: manual_backprop/layers/twice.py has to define it (docs/adding.md)"
    assert_refused(verified("--all"), sentence)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("part", ["from_logits", "formula", "forward", "backward"])
def test_a_cost_that_lacks_a_part_is_named(part, monkeypatch, trained):
    monkeypatch.setitem(LOSSES, "mine", type("Mine", (), without(part, Quadratic)))
    monkeypatch.setitem(REFERENCE_LOSSES, "mine", REFERENCE_LOSSES["quadratic"])
    sentence = f"the cost mine has no {part}: manual_backprop/losses.py has to define it (docs/adding.md)"
    assert_refused(trained("--loss", "mine"), sentence)
    with refused(sentence):
        next(verification.verify_costs(torch.float64, [0]))


@dataclass(frozen=True)
class WithRho(SGD):
    rho: float = 0.5


def nadam(module, **settings):
    return torch.optim.NAdam(module.parameters())


def sgd_with_only(part):
    return make_dataclass("Mine", [], namespace={part: getattr(SGD, part)}, frozen=True)


LACKING = {
    "the optimizer mine has no init: manual_backprop/optimizers.py has to": (sgd_with_only("update"), optimizers.sgd),
    "the optimizer mine has no update: manual_backprop/optimizers.py has to": (sgd_with_only("init"), optimizers.sgd),
    "the optimizer mine has a setting rho, and no option gives it: Learning in training": (WithRho, optimizers.sgd),
    "the optimizer NAdam has no state: STATES of reference/optimizers.py has to": (OPTIMIZERS["adam"], nadam),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("sentence", LACKING)
def test_what_an_optimizer_lacks_is_named(sentence, monkeypatch, trained):
    mine, twin = LACKING[sentence]
    monkeypatch.setitem(OPTIMIZERS, "mine", mine)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "mine", twin)
    assert_refused(trained("--optimizer", "mine"), sentence)


@pytest.mark.parametrize(
    ("twin", "sentence"),
    [
        (Unobserved, "the twin of MLP has no observed: Unobserved has to map the name of each call to its module"),
        (OtherNames, "the twin of MLP differs from it: Error(s) in loading state_dict for OtherNames: Missing key(s)"),
    ],
)
def test_a_twin_that_is_not_the_same_network_is_named(twin, sentence, monkeypatch, trained, verified):
    monkeypatch.setattr(mlp, "MLP", twin)
    for done in (verified(), trained()):
        assert_refused(done, sentence)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("part", ["shapes", "buffers", "forward", "backward"])
def test_a_model_that_lacks_a_part_is_named(part, monkeypatch, trained, verified):
    monkeypatch.delattr(MLP, part)
    for done in (verified(), trained()):
        assert_refused(
            done, f"the model MLP has no {part}: manual_backprop/models/mlp.py has to define it (docs/adding"
        )


def test_a_familys_name_may_have_a_hyphen(monkeypatch, capsys):
    mine = type("Mine", (type(FAMILIES["mlp"]),), {"name": "my-own"})
    monkeypatch.setitem(FAMILIES, "mlp", mine())
    shown = call(capsys, train.main, "--help")
    assert shown.status == 0
    assert "my-own options" in shown.out
