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
AGREE = ("An activation", "A layer", "A cost", "A model and its family")
SAID = {**dict.fromkeys(AGREE, "agree"), "An optimizer": "steps agree"}


@pytest.fixture
def project(tmp_path):
    ignored = shutil.ignore_patterns(".*", "__pycache__", "data", "runs", "mutants", "*.png", "*.egg-info")
    copy = shutil.copytree(ROOT, tmp_path / "project", ignore=ignored)
    shutil.copytree(ROOT / "training" / "data", copy / "training" / "data")
    return copy


def do(title, project):
    for file, code in steps(title):
        take(file, code, project)
    if title in IMPORTS:
        file, before, added = IMPORTS[title]
        text = (project / file).read_text(encoding="utf-8")
        assert before in text
        new = before.replace("import ", added, 1) if before.startswith("import cnn") else added + before
        (project / file).write_text(text.replace(before, new, 1), encoding="utf-8")


def run(project, command):
    program, *arguments = command.split()
    start = [sys.executable, *(["-m", "pytest", "-q", "-m", "not slow"] if program == "pytest" else [])]
    return subprocess.run([*start, *arguments], cwd=project, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("title", SAID)
def test_who_follows_the_page_adds_a_part(title, project):
    do(title, project)
    assert len(commands(title)) >= 2
    for command in commands(title):
        done = run(project, command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        if command.startswith("python"):
            assert SAID[title] in done.stdout.splitlines()[-1], command


@pytest.mark.long
def test_who_follows_the_page_adds_a_data_set(project):
    do("A data set", project)
    (project / "poem.txt").write_text("the quick brown fox\n" * 50, encoding="utf-8")
    done = run(project, "python train.py --dataset verse --data-dir poem.txt --model mlp")
    sentence = "--model mlp is for classification, and the data set verse is for prediction of the next token"
    assert sentence in one_sentence(done.stderr)


def test_every_file_that_the_page_names_is_there_or_made_by_it():
    made = {file for title in (*SAID, "A data set") for file, _ in steps(title)}
    for path in re.findall(r"`((?:\w+/)+[\w.-]*)`", PAGE):
        assert path in made or (ROOT / path).exists(), path


def test_every_command_of_the_page_has_options_that_there_are(capsys):
    shown = {name: call(capsys, main.main, "--help").out for name, main in (("train", train), ("verify", verify))}
    lines = re.findall(r"python (\w+)\.py (--[^`\n]*)", PAGE)
    assert len(lines) >= 10
    for script, options in lines:
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown[script], (script, option)
