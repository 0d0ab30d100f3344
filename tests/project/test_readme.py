"""What the README says is so."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import readme
from training.families.configure import preset_names

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_lines_quoted_for_each_equation_are_in_mlp_py_under_its_label():
    lines = (ROOT / "manual_backprop/models/mlp.py").read_text(encoding="utf-8").splitlines()
    rows = re.findall(r"^\| (BP\d) \| .* \| `(.*)`.* \|$", TEXT, re.MULTILINE)
    assert [label for label, _ in rows] == ["BP1", "BP2", "BP3", "BP4"]
    for label, code in rows:
        assert any(line.strip().startswith(code) and label in line.partition("#")[2] for line in lines), (label, code)


def test_the_library_example_runs_and_its_gradient_is_right():
    exec(PYTHON[0], names := {})
    assert names["params"].theta.numel() == 13_002
    z3, a3, rows = names["tape"].outputs["layer3"], names["output"], torch.eye(10)[names["y"]]
    expected = (a3 - rows) / 100 * z3.sigmoid() * (1 - z3.sigmoid())
    assert (names["tape"].deltas["layer3"] - expected).norm() < 1e-6 * expected.norm()


def test_the_gradient_check_prints_what_the_readme_shows(capsys):
    exec(PYTHON[1], {})
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("dx  7×5  autograd")
    numbers = re.compile(r"-?\d\S*")  # rounding differs from machine to machine
    assert numbers.sub("#", said) in numbers.sub("#", TEXT)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_local_link_leads_somewhere(document):
    prose = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_first_hundred_words_say_what_it_is_set_up_with_two_commands_train_and_the_rest_stands_below():
    first, after = " ".join(TEXT.split()[:100]), TEXT.partition("```\n")[2]
    assert all(command in first for command in ("pip install -r", "python train.py --impl manual", "``` pytest ```"))
    assert len(after.partition("```")[0].splitlines()) == 2
    below = TEXT.partition("\n```\npytest\n```\n")[2].partition("\n![")[0]
    assert re.search(r"That takes (about )?\d+ minutes", below)
    for words in (r".venv\Scripts\activate", "macOS", "https://pytorch.org/get-started/locally/", "5.9 GB"):
        assert words in below


def test_every_target_of_make_has_a_line_that_works_without_it():
    out = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| target |")[2].partition("\n\n")[0]
    by_hand = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {line.split()[0] for line in out.splitlines()} - {"help"} == by_hand


def test_generated_sections_are_written_between_their_markers(tmp_path, monkeypatch):
    copy = tmp_path / "README.md"
    copy.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n", encoding="utf-8")
    monkeypatch.setattr(readme, "README", copy)
    readme.write_section("x", "new")
    assert copy.read_text(encoding="utf-8") == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb\n"
    with pytest.raises(SystemExit, match="no section"):
        readme.write_section("y", "new")


def test_every_dependency_is_imported_somewhere_and_ci_tests_the_oldest_version_allowed():
    modules = {"pillow": "PIL", "docstring-parser": "docstring_parser"}
    requirements, versions = (ROOT / "requirements.txt").read_text(), (ROOT / ".ci" / "oldest.txt").read_text()
    names = {*re.findall(r"^([a-z-]+)", requirements, re.MULTILINE)}
    names.remove("pytest-xdist")  # which is pytest's -n, in pyproject.toml
    source = "".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if ".venv" not in path.parts)
    for name in names:
        module = modules.get(name, name)
        assert re.search(rf"(^\s*(import|from) |importorskip\(\"){module}\b", source, re.MULTILINE), name
    oldest = dict(re.findall(r"^([a-z-]+)==([\d.]+)", versions, re.MULTILINE))
    for name, version in re.findall(r"^([a-z-]+)>=([\d.]+)", requirements, re.MULTILINE):
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", oldest[name]), name


def test_presets_named_in_the_readme_are_there():
    assert set() < set(re.findall(r"--preset ([\w-]+)", TEXT)) <= set(preset_names())
