"""docs/adding.md: what is added is found by itself, and a part that was forgotten is named in one sentence."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from textwrap import dedent
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
from tests.support.running import ROOT, Done, call, one_sentence
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
    monkeypatch.setitem(
        optimizers.OPTIMIZERS, "mine", lambda module, **settings: torch.optim.NAdam(module.parameters())
    )
    sentence = "the optimizer NAdam has no state: STATES of reference/optimizers.py has to name what it remembers"
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


# The page


@dataclass(frozen=True)
class Step:
    file: str
    code: str  # what the page shows for it

    def take(self, project: Path) -> None:
        """A new file is the code. In an old one each part after `…` is a line of a table, and the rest goes before the
        first table, or else to the end."""
        path = project / self.file
        if not path.exists():
            path.write_text(self.code, encoding="utf-8")
            return
        text = path.read_text(encoding="utf-8")
        body, *lines = re.split(r"^…\n", self.code, flags=re.MULTILINE)
        if not lines:
            text += f"\n\n{body}"
        for line in lines:
            table = re.search(r"# in (\w+)", line)
            assert table, f"which table of {self.file} does {line} go into?"
            found = re.search(rf"^{table[1]}\b[^\n]*\{{\n.*?(?=^}})", text, re.MULTILINE | re.DOTALL)
            assert found, f"{self.file} has no {table[1]}"
            before = f"{body}\n\n" if body else ""
            text = f"{text[: found.start()]}{before}{found[0]}{line.rstrip()}\n{text[found.end() :]}"
            body = ""
        path.write_text(text, encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0].partition("\n### ")[0]


def steps(title: str) -> list[Step]:
    """The numbered ones of a section."""
    found = re.findall(r"^\d\. `([\w./-]+)`:(.*?)(?=^\d\. |^\w|\Z)", section(title), re.MULTILINE | re.DOTALL)
    codes = [re.search(r"^   ```\w+\n(.*?)^   ```", text, re.MULTILINE | re.DOTALL) for _, text in found]
    assert all(codes), title
    return [Step(file, dedent(code[1])) for (file, _), code in zip(found, codes, strict=True) if code]


def commands(title: str) -> list[str]:
    return re.findall(r"`((?:python|pytest) [^`…]+)`", section(title).partition("\nProof: ")[2])


IMPORTS = {  # which the page says in words
    "A cost": ("reference/losses.py", "import torch.nn.functional as F\n", "import math\n"),
    "A layer": ("reference/layers.py", "from torch import Tensor\n", "import torch\n"),
    "A model and its family": ("training/families/__init__.py", "import cnn, lenet5, mlp", "import tiny_conv, "),
    "A data set": ("training/data/__init__.py", "from training.errors", "from training.data.verse import load_verse\n"),
}
SAID = {
    "An activation": "agree",
    "A layer": "agree",
    "A cost": "agree",
    "An optimizer": "steps agree",
    "A model and its family": "agree",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns(".*", "__pycache__", "data", "runs", "mutants", "*.png", "*.egg-info")
    copy = tmp_path / "project"
    shutil.copytree(ROOT, copy, ignore=ignored)
    shutil.copytree(ROOT / "training" / "data", copy / "training" / "data")
    return copy


def do(title: str, project: Path) -> None:
    for step in steps(title):
        step.take(project)
    if title in IMPORTS:
        file, before, added = IMPORTS[title]
        path = project / file
        text = path.read_text(encoding="utf-8")
        assert before in text
        new = before.replace("import ", added, 1) if before.startswith("import cnn") else added + before
        path.write_text(text.replace(before, new, 1), encoding="utf-8")


def run(project: Path, command: str) -> subprocess.CompletedProcess[str]:
    program, *arguments = command.split()
    start = [sys.executable, *(["-m", "pytest", "-q", "-m", "not slow"] if program == "pytest" else [])]
    return subprocess.run([*start, *arguments], cwd=project, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("title", SAID)
def test_who_follows_the_page_adds_a_part(title: str, project: Path) -> None:
    do(title, project)
    assert len(commands(title)) >= 2
    for command in commands(title):
        done = run(project, command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        if command.startswith("python"):
            assert SAID[title] in done.stdout.splitlines()[-1], command


@pytest.mark.slow
def test_who_follows_the_page_adds_a_data_set(project: Path) -> None:
    do("A data set", project)
    (project / "poem.txt").write_text("the quick brown fox\n" * 50, encoding="utf-8")
    done = run(project, "python train.py --dataset verse --data-dir poem.txt --model mlp")
    sentence = "--model mlp is for classification, and the data set verse is for prediction of the next token"
    assert sentence in one_sentence(done.stderr)


def test_every_file_that_the_page_names_is_there_or_made_by_it() -> None:
    made = {step.file for title in (*SAID, "A data set") for step in steps(title)}
    for path in re.findall(r"`((?:\w+/)+[\w.-]*)`", PAGE):
        assert path in made or (ROOT / path).exists(), path


def test_every_command_of_the_page_has_options_that_there_are(capsys: Capsys) -> None:
    shown = {name: call(capsys, main.main, "--help").out for name, main in (("train", train), ("verify", verify))}
    lines = re.findall(r"python (\w+)\.py (--[^`\n]*)", PAGE)
    assert len(lines) >= 10
    for script, options in lines:
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown[script], (script, option)
