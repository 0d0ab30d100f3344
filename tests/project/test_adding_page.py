"""docs/adding.md: who follows it adds a part."""

import re
import shutil
import subprocess
import sys
from textwrap import dedent

import pytest

import train
import verify
from tests.support.running import ROOT, call, one_sentence

PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")


def take(file, code, project):
    """One step: a new file is the code. In an old one each part after `…` is a line of a table, and the rest goes
    before the first table, or else to the end."""
    path = project / file
    if not path.exists():
        path.write_text(code, encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    body, *lines = re.split(r"^…\n", code, flags=re.MULTILINE)
    if not lines:
        text += f"\n\n{body}"
    for line in lines:
        table = re.search(r"# in (\w+)", line)
        assert table, f"which table of {file} does {line} go into?"
        found = re.search(rf"^{table[1]}\b[^\n]*\{{\n.*?(?=^}})", text, re.MULTILINE | re.DOTALL)
        assert found, f"{file} has no {table[1]}"
        before = f"{body}\n\n" if body else ""
        text = f"{text[: found.start()]}{before}{found[0]}{line.rstrip()}\n{text[found.end() :]}"
        body = ""
    path.write_text(text, encoding="utf-8")


def section(title):
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0].partition("\n### ")[0]


def steps(title):
    """(file, what the page shows for it) of the numbered ones of a section."""
    found = re.findall(r"^\d\. `([\w./-]+)`:(.*?)(?=^\d\. |^\w|\Z)", section(title), re.MULTILINE | re.DOTALL)
    codes = [re.search(r"^   ```\w+\n(.*?)^   ```", text, re.MULTILINE | re.DOTALL) for _, text in found]
    assert all(codes), title
    return [(file, dedent(code[1])) for (file, _), code in zip(found, codes, strict=True)]


def commands(title):
    return re.findall(r"`((?:python|pytest) [^`…]+)`", section(title).partition("\nProof: ")[2])


IMPORTS = {  # which the page says in words
    "A cost": ("reference/losses.py", "import torch.nn.functional as F\n", "import math\n"),
    "A layer": ("reference/layers.py", "from torch import Tensor\n", "import torch\n"),
    "A model and its family": ("training/families/__init__.py", "import cnn, lenet5, mlp", "import tiny_conv, "),
    "A data set": ("training/data/__init__.py", "from training.errors", "from training.data.verse import load_verse\n"),
}
PARTS = ("An activation", "A layer", "A cost", "An optimizer", "A model and its family")
PROOFS = {command: None for title in PARTS for command in commands(title)}
TESTED = {file: None for command in PROOFS if command.startswith("pytest ") for file in command.split()[1:]}


def do(title, project):
    for file, code in steps(title):
        take(file, code, project)
    if title in IMPORTS:
        file, before, added = IMPORTS[title]
        text = (project / file).read_text(encoding="utf-8")
        assert before in text
        new = before.replace("import ", added, 1) if before.startswith("import cnn") else added + before
        (project / file).write_text(text.replace(before, new, 1), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy to which all that the page shows was added."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "data", "runs", "mutants", "*.png", "*.egg-info")
    copy = shutil.copytree(ROOT, tmp_path_factory.mktemp("adding") / "project", ignore=ignored)
    shutil.copytree(ROOT / "training" / "data", copy / "training" / "data")
    for title in (*PARTS, "A data set"):
        do(title, copy)
    return copy


def run(project, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=project, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("command", [command for command in PROOFS if command.startswith("python ")])
def test_who_follows_the_page_adds_parts_that_agree(command, project):
    done = run(project, *command.split()[1:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "agree" in done.stdout.splitlines()[-1]


@pytest.mark.long
def test_who_follows_the_page_adds_parts_that_pass_the_tests(project):
    done = run(project, "-m", "pytest", "-n", "0", "-q", "-m", "not slow", *TESTED)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.mark.long
def test_who_follows_the_page_adds_a_data_set(project):
    (project / "poem.txt").write_text("the quick brown fox\n" * 50, encoding="utf-8")
    done = run(project, "train.py", "--dataset", "verse", "--data-dir", "poem.txt", "--model", "mlp")
    sentence = "--model mlp is for classification, and the data set verse is for prediction of the next token"
    assert sentence in one_sentence(done.stderr)


def test_every_part_has_its_proof_and_every_file_is_there_or_made_by_the_page():
    assert all(len(commands(title)) >= 2 for title in PARTS)
    made = {file for title in (*PARTS, "A data set") for file, _ in steps(title)}
    for path in re.findall(r"`((?:\w+/)+[\w.-]*)`", PAGE):
        assert path in made or (ROOT / path).exists(), path


def test_every_command_of_the_page_has_options_that_there_are(capsys):
    shown = {name: call(capsys, main.main, "--help").out for name, main in (("train", train), ("verify", verify))}
    lines = re.findall(r"python (\w+)\.py (--[^`\n]*)", PAGE)
    assert len(lines) >= 10
    for script, options in lines:
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown[script], (script, option)
