"""A family of networks is one file: the rest of training asks it, and never looks at its name."""

import ast
import re
import tomllib
from dataclasses import fields

import pytest
import torch

import train
import verify
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES
from manual_backprop.optimizers import OPTIMIZERS
from tests.support.running import ROOT, call, learner_of, one_sentence
from tests.support.text.families import Recurrents, register
from training.config import GROUPS, Config
from training.config.rules import Range, rules
from training.errors import UserError
from training.families import FAMILIES
from training.families.advice import advice
from training.families.base import Family
from training.families.configure import default_preset, from_mapping, load_preset, preset_names
from training.families.networks import make_model, make_twin

# A family that is added: one of the tests' own, which test_runs.py trains, resumes and verifies


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """A directory in the place of that of the presets, with copies of all and the family's."""
    (tmp_path / "presets").mkdir()
    register(monkeypatch, tmp_path / "presets")
    return tmp_path / "presets"


@pytest.fixture
def cell(presets, monkeypatch):
    """The class of the family, which is registered and has its preset."""
    own = type("Own", (Recurrents,), {})
    monkeypatch.setitem(FAMILIES, "cell", own())
    return own


@pytest.mark.slow
@pytest.mark.usefixtures("cell")
def test_a_new_family_is_its_file_a_preset_and_a_line(capsys):
    printed = call(capsys, train.main, *["--model", "cell", "--optimizer", "sgd", "--context", "3", "--print-config"])
    config = tomllib.loads(printed.out)
    assert (config["model"], config["context"], config["init"]) == ("cell", 3, "xavier")
    assert not {"hidden", "activation"} & config.keys()
    shown = call(capsys, train.main, "--model", "cell", "--help").out
    assert "--context INT" in shown
    assert "cell, a recurrent network" in " ".join(shown.replace("│", " ").split())
    assert "--hidden" not in shown


ASKED = {
    "train.py": (train.main, "--model", "cell", "--print-config"),
    "verify.py": (verify.main, "--model", "cell", "--seeds", 1),
}
PARTS = ["name", "summary", "preset", "config", "options", "model", "make", "twin", "problems"]


def assert_refuses(script, capsys, said):
    done = call(capsys, *ASKED[script])
    assert done.status == 2
    assert one_sentence(done.err).startswith(f"{script}: the family cell has no {said}")


@pytest.mark.parametrize("part", PARTS)
def test_a_forgotten_part_is_said_in_one_sentence(part, cell, capsys):
    setattr(cell, part, getattr(Family, part))
    for script in ASKED:
        assert_refuses(script, capsys, f"{part}: its file in training/families has to define {part}")


def test_a_forgotten_preset_file_and_problems_that_are_none_are_too(cell, presets, capsys):
    cell.problems = lambda self: iter(())
    said = "problems: its file in training/families has to yield at least one in problems"
    assert_refuses("verify.py", capsys, said)
    (presets / "cell.toml").unlink()
    assert_refuses("train.py", capsys, "preset: its file in training/families names 'cell', which is no file in")


def test_a_model_of_no_family_has_no_twin():
    with pytest.raises(UserError, match=f"object is the model of no family.* there are {', '.join(FAMILIES)}$"):
        make_twin(object())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_whole(name):
    family = FAMILIES[name]
    assert family.name == name == family.config.model == load_preset(default_preset(name)).model
    assert family.summary
    own = {field.name for kind in (*GROUPS, family.options) for field in fields(kind)}
    assert {field.name for field in fields(family.config)} == own
    for field in fields(family.config):
        numbers = field.default if isinstance(field.default, tuple) else (field.default,)
        if all(type(value) in (int, float) for value in numbers):
            kinds = rules(family.config).get(field.name, ())
            assert any(isinstance(rule, Range) for rule in kinds), f"{field.name} can be anything: who sees a mistake?"


def test_only_the_families_know_their_names():
    """No string of training's other code is a family's name; the default is named once."""
    found = []
    for path in sorted((ROOT / "training").rglob("*.py")):
        if "families" not in path.parts:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            strings = [node.value for node in nodes if isinstance(node, ast.Constant)]
            found += [(path.name, value) for value in strings if value in FAMILIES]
    assert found == [("groups.py", Config.model)]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_makes_a_network_of_its_family(name, sample):
    config = load_preset(name)
    assert type(config) is FAMILIES[config.model].config
    if config.dataset not in ("points", "spiral"):
        assert type(make_model(config, sample)) is FAMILIES[config.model].model


WITH_ACTIVATION = [name for name, family in FAMILIES.items() if hasattr(family.options, "activation")]
OF_ALL = {  # what a file from before held, whatever the model
    **{"hidden": [16, 16], "channels": [16, 32, 64], "blocks": 1, "activation": ["tanh"], "dropout": 0.0},
    "loss": "softmax-cross-entropy",
}


@pytest.mark.parametrize("model", WITH_ACTIVATION)
def test_a_file_with_the_options_of_every_family_is_read(model):
    config = from_mapping({**OF_ALL, "model": model})
    assert type(config) is FAMILIES[model].config
    assert vars(config)["activation"] == ("tanh",)
    for name in OF_ALL:
        assert hasattr(config, name) == (name in {field.name for field in fields(config)})


def goes_with(option, model):
    users = " and ".join(name for name, family in FAMILIES.items() if hasattr(family.options, option))
    return f"--{option} goes with --model {users}, not with {model}: leave it out, or the preset that sets it"


@pytest.mark.parametrize(
    ("model", "option"), [("mlp", {"channels": [3]}), ("lenet5", {"hidden": [5]}), ("lenet5", {"dropout": 0.5})]
)
def test_a_file_with_an_option_of_another_family_is_refused(model, option):
    with pytest.raises(UserError, match=f"^{goes_with(*option, model)}$"):
        from_mapping({**OF_ALL, "model": model, **option})


@pytest.mark.parametrize("line", ["--channels 3", "--channels=3", "--model mlp --channels 16 32 64", "--channels"])
def test_a_command_line_with_an_option_of_another_family_is_refused(line, capsys):
    done = call(capsys, train.main, *line.split(), "--print-config")
    assert done.status == 2
    assert one_sentence(done.err) == f"train.py: {goes_with('channels', 'mlp')}"


@pytest.mark.slow
def test_an_activation_that_is_added_is_a_choice(monkeypatch, sample, capsys):
    monkeypatch.setitem(ACTIVATIONS, "mine", ACTIVATIONS["tanh"])
    for model in {*WITH_ACTIVATION} - {"recurrent"}:  # whose cells have their own
        assert "mine" in call(capsys, train.main, "--model", model, "--help").out
    config = train.parse(["--activation", "mine"]).config
    assert config == from_mapping({**tomllib.loads(config.to_toml()), "activation": ["mine"]})
    x, _ = sample.test.batch(torch.arange(3), torch.float32)
    assert learner_of(config, sample).outputs(x).shape == (3, 10)


@pytest.mark.slow
def test_an_optimizer_or_a_cost_that_is_added_needs_a_rate(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "mine", OPTIMIZERS["sgd"])
    monkeypatch.setitem(LOSSES, "my-cost", LOSSES["quadratic"])
    lines = {"--optimizer mine": "a smaller --lr (not 0.5)", "--loss my-cost": "--loss quadratic --lr 10"}
    for line, advised in lines.items():
        with pytest.raises(UserError, match=r"^no learning rate is known for .* with .*: give --lr$"):
            train.parse(line.split())
        config = train.parse([*line.split(), "--lr", "0.5"]).config
        assert config.lr == 0.5
        assert advised in advice(config, 5000)


@pytest.mark.parametrize("model", FAMILIES)
def test_each_group_of_the_help_fits_on_a_screen_and_follows_the_model_of_a_preset(model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    own = [field.name.replace("_", "-") for field in fields(FAMILIES[model].config)]
    for asked in (("--model", model), ("--preset", default_preset(model))):
        shown = call(capsys, train.main, *asked, "--help").out
        _, *groups = re.split(r"^\W+(?:([\w-]+) )?options\W*$", shown, flags=re.M)
        assert groups[::2] == [None, "start", "network", model, *(kind.__name__.lower() for kind in GROUPS[1:])]
        assert all(text.count("\n") <= 40 for text in groups[1::2])
        for name in (*own, "preset", "run-dir", "resume", "print-config"):
            assert len(re.findall(rf"^\W{{1,3}}--{name} ", shown, re.M)) == 1, name
