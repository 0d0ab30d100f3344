"""A family of networks is one file: the rest of training asks it, and never looks at its name."""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from torch import nn

import train
import verify
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import OPTIMIZERS
from reference import mlp as reference
from tests.support.running import ROOT, Done, call, flags, learner_of, one_sentence, write_npz
from training.config import GROUPS, Config
from training.config.rules import COUNT, OneOf, Range, rules
from training.data import Dataset
from training.errors import UserError
from training.families import FAMILIES
from training.families import base as families_base
from training.families.advice import advice
from training.families.base import Family, Problem
from training.families.configure import configure, default_preset, from_mapping, load_preset, preset_names
from training.families.networks import make_model, make_twin

Capsys = pytest.CaptureFixture[str]


# A family of the tests' own: a file's worth of code


class Linear(MLP):
    """One affine map."""


@dataclass(frozen=True)
class Options:
    """Options of the affine map."""

    scale: Annotated[int, COUNT] = 1
    """Whole number that does nothing."""


@dataclass(frozen=True)
class LinearConfig(Options, Config):
    model: Annotated[str, OneOf(["linear"])] = "linear"


class Linears(Family):
    name, summary, preset = "linear", "a single affine map", "linear-start"
    config, options, model = LinearConfig, Options, Linear

    def make(self, config: LinearConfig, data: Dataset) -> Linear:
        return Linear((prod(data.shape), len(data.classes)), ("identity",))

    def twin(self, model: Linear) -> nn.Module:
        return reference.MLP(model.sizes, model.activations)

    def problems(self) -> Iterator[Problem]:
        model = Linear((5, 3), ("identity",))
        yield Problem("5-3", "softmax-cross-entropy", model, (5,), 3, "5-3, softmax-cross-entropy cost")


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the place of that of the presets, with copies of all."""
    own = tmp_path / "presets"
    own.mkdir()
    for path in families_base.PRESETS.glob("*.toml"):
        (own / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(families_base, "PRESETS", own)
    monkeypatch.setattr("training.families.configure.PRESETS", own)
    return own


@pytest.fixture
def linear(presets: Path, monkeypatch: pytest.MonkeyPatch) -> type[Family]:
    """The class of the family, which is registered and has its preset."""

    class Own(Linears):
        pass

    (presets / "linear-start.toml").write_text('model = "linear"\nloss = "softmax-cross-entropy"\nlr = 0.1\n')
    monkeypatch.setitem(FAMILIES, "linear", Own())
    return Own


@pytest.mark.slow
@pytest.mark.usefixtures("linear")
def test_a_new_family_is_its_file_a_preset_and_a_line(capsys: Capsys) -> None:
    assert call(capsys, train.main, "--model", "linear", "--optimizer", "adam", "--print-config").status == 0
    assert call(capsys, verify.main, "--model", "linear", "--seeds", 1).status == 0
    shown = call(capsys, train.main, "--model", "linear", "--help").out
    assert "--scale INT" in shown
    assert "linear, a single affine map" in " ".join(shown.replace("│", " ").split())
    assert "--hidden" not in shown


@pytest.mark.slow
@pytest.mark.usefixtures("linear")
def test_a_new_family_trains_and_is_resumed_and_verified(tmp_path: Path, capsys: Capsys) -> None:
    npz, run_dir = write_npz(tmp_path / "a.npz"), tmp_path / "run"
    options = {"model": "linear", "scale": 2, "dataset": "npz", "data_dir": npz, "epochs": 1, "impl": "both"}
    done = call(capsys, train.main, *flags(options | {"run_dir": run_dir}))
    assert (done.status, done.err) == (0, "")
    assert "agree" in done.out.splitlines()[-1]
    written = tomllib.loads((run_dir / "config.toml").read_text())
    assert (written["model"], written["scale"], written["lr"]) == ("linear", 2, 0.1)
    assert "hidden" not in written
    assert "activation" not in written
    assert call(capsys, train.main, "--resume", run_dir, "--epochs", 2).status == 0
    assert call(capsys, verify.main, "--checkpoint", run_dir, "--seeds", 1).status == 0


@pytest.mark.parametrize(
    "part", ["name", "summary", "preset", "config", "options", "model", "make", "twin", "problems"]
)
def test_a_forgotten_part_is_said_in_one_sentence(part: str, linear: Any, capsys: Capsys) -> None:
    setattr(linear, part, getattr(Family, part))
    said = f"the family linear has no {part}: its file in training/families has to define {part}"
    assert_refused("train.py", said, call(capsys, train.main, "--model", "linear", "--print-config"))
    assert_refused("verify.py", said, call(capsys, verify.main, "--model", "linear", "--seeds", 1))


def test_a_forgotten_preset_file_and_problems_that_are_none_are_too(linear: Any, presets: Path, capsys: Capsys) -> None:
    linear.problems = lambda self: iter(())
    said = "the family linear has no problems: its file in training/families has to yield at least one in problems"
    assert_refused("verify.py", said, call(capsys, verify.main, "--model", "linear", "--seeds", 1))
    (presets / "linear-start.toml").unlink()
    said = "the family linear has no preset: its file in training/families names 'linear-start', which is no file in"
    assert_refused("train.py", said, call(capsys, train.main, "--model", "linear", "--print-config"))


def assert_refused(script: str, said: str, done: Done) -> None:
    assert done.status == 2
    assert one_sentence(done.err).startswith(f"{script}: {said}")


def test_a_model_of_no_family_has_no_twin() -> None:
    class Stranger:
        pass

    with pytest.raises(UserError, match=f"Stranger is the model of no family.* there are {', '.join(FAMILIES)}$"):
        make_twin(Stranger())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_whole(name: str) -> None:
    family = FAMILIES[name]
    assert family.name == name == family.config.model == load_preset(default_preset(name)).model
    assert family.summary
    assert {field.name for field in fields(family.config)} == {
        field.name for kind in (*GROUPS, family.options) for field in fields(kind)
    }


def test_only_the_families_know_their_names() -> None:
    """No string of training's other code is a family's name; the default is named once."""
    found = []
    for path in sorted((ROOT / "training").rglob("*.py")):
        if "families" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in FAMILIES:
                found.append((path.name, node.value))
    assert found == [("groups.py", Config.model)]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_makes_a_network_of_its_family(name: str, sample: Dataset) -> None:
    config = load_preset(name)
    assert type(config) is FAMILIES[config.model].config
    if config.dataset not in ("points", "spiral"):
        assert type(make_model(config, sample)) is FAMILIES[config.model].model


# Options of other families

WITH_ACTIVATION = [name for name, family in FAMILIES.items() if hasattr(family.options, "activation")]
OF_ALL = {  # what a file from before held, whatever the model
    "hidden": [16, 16],
    "channels": [16, 32, 64],
    "blocks": 1,
    "activation": ["tanh"],
    "dropout": 0.0,
    "loss": "softmax-cross-entropy",
}


@pytest.mark.parametrize("model", WITH_ACTIVATION)
def test_a_file_with_the_options_of_every_family_is_read(model: str) -> None:
    config = from_mapping({**OF_ALL, "model": model})
    assert type(config) is FAMILIES[model].config
    assert vars(config)["activation"] == ("tanh",)
    for name in OF_ALL:
        assert hasattr(config, name) == (name in {field.name for field in fields(config)})


def goes_with(option: str, model: str) -> str:
    users = " and ".join(name for name, family in FAMILIES.items() if hasattr(family.options, option))
    return f"--{option} goes with --model {users}, not with {model}: leave it out, or the preset that sets it"


@pytest.mark.parametrize(
    ("model", "option"),
    [("mlp", {"channels": [3]}), ("lenet5", {"hidden": [5]}), ("lenet5", {"dropout": 0.5})],
    ids=str,
)
def test_a_file_with_an_option_of_another_family_is_refused(model: str, option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{goes_with(*option, model)}$"):
        from_mapping({**OF_ALL, "model": model, **option})


@pytest.mark.parametrize("line", ["--channels 3", "--channels=3", "--model mlp --channels 16 32 64", "--channels"])
def test_a_command_line_with_an_option_of_another_family_is_refused(line: str, capsys: Capsys) -> None:
    done = call(capsys, train.main, *line.split(), "--print-config")
    assert done.status == 2
    assert one_sentence(done.err) == f"train.py: {goes_with('channels', 'mlp')}"


def test_a_configuration_has_the_options_of_its_family_only() -> None:
    assert not hasattr(configure(), "channels")
    assert not hasattr(configure(model="cnn"), "hidden")
    said = rf"^model is 'cnnn' \(did you mean 'cnn'\?\), but it must be one of {', '.join(FAMILIES)}"
    with pytest.raises(UserError, match=said):
        configure(model="cnnn")


# Choices are written once


@pytest.mark.slow
def test_an_activation_that_is_added_is_a_choice(
    monkeypatch: pytest.MonkeyPatch, sample: Dataset, capsys: Capsys
) -> None:
    monkeypatch.setitem(ACTIVATIONS, "mine", ACTIVATIONS["tanh"])
    for model in WITH_ACTIVATION:
        assert "mine" in call(capsys, train.main, "--model", model, "--help").out
    config = train.parse(["--activation", "mine"]).config
    assert config == from_mapping({**vars_as_toml(config), "activation": ["mine"]})
    x, _ = sample.test.batch(torch.arange(3), torch.float32)
    assert learner_of(config, sample).outputs(x).shape == (3, 10)


@pytest.mark.slow
def test_an_optimizer_or_a_cost_that_is_added_needs_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "mine", OPTIMIZERS["sgd"])
    monkeypatch.setitem(LOSSES, "my-cost", LOSSES["quadratic"])
    for line, advised in (
        ("--optimizer mine", "a smaller --lr (not 0.5)"),
        ("--loss my-cost", "--loss quadratic --lr 10"),
    ):
        with pytest.raises(UserError, match=r"^no learning rate is known for .* with .*: give --lr$"):
            train.parse(line.split())
        request = train.parse([*line.split(), "--lr", "0.5"])
        assert request.config.lr == 0.5
        assert advised in advice(request.config, 5000)


def vars_as_toml(config: Config) -> dict[str, Any]:
    return tomllib.loads(config.to_toml())


def test_every_number_has_a_range() -> None:
    """A number that can be anything is a mistake that nobody notices."""
    for family in FAMILIES.values():
        for field in fields(family.config):
            numbers = field.default if isinstance(field.default, tuple) else (field.default,)
            if all(type(value) in (int, float) for value in numbers):
                kinds = rules(family.config).get(field.name, ())
                assert any(isinstance(rule, Range) for rule in kinds), field.name


# The help


@pytest.mark.parametrize("model", FAMILIES)
def test_each_group_of_the_help_fits_on_a_screen(model: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = call(capsys, train.main, "--model", model, "--help").out
    _, *groups = re.split(r"^\W+(?:([\w-]+) )?options\W*$", shown, flags=re.M)
    assert groups[::2] == [None, "start", "network", model, *(kind.__name__.lower() for kind in GROUPS[1:])]
    assert all(text.count("\n") <= 40 for text in groups[1::2])
    for field in fields(FAMILIES[model].config):
        assert len(re.findall(rf"^\W{{1,3}}--{field.name.replace('_', '-')} ", shown, re.M)) == 1, field.name


def test_help_follows_the_model_of_a_preset(capsys: Capsys) -> None:
    shown = call(capsys, train.main, "--preset", "small-cnn", "--help").out
    assert "--channels" in shown
    assert "--hidden" not in shown
