"""The mutation score: the mistakes that it makes, and what it says of survivors."""

import json
import os
import subprocess
import sys
import tomllib

import pytest

cst = pytest.importorskip("libcst", reason="mutmut and its libcst come with requirements-dev.txt")

from benchmarks.mutate import OPERATORS  # noqa: E402
from benchmarks.mutation import NEEDED, PAGE, ROOT, Mutant, complaints, page, read_arguments, score  # noqa: E402

RIGHT = Mutant("layer.py", "backward", "return dz @ W", "return W @ dz")
LEFT = Mutant("layer.py", "forward", "return z", "return None")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("da * s", {"da", "s"}),
        ("p - Y", {"p", "Y", "Y - p"}),
        ("(p - Y)", {"(p)", "(Y)", "(Y - p)"}),
        ("dC / count", {"dC", "count", "count / dC"}),
        ("delta @ W", {"delta", "W", "W @ delta"}),
        ("a + b - c", {"a + b", "c", "c - (a + b)"}),
        ("(a - b) / c", {"(a - b)", "c", "c / (a - b)"}),
        ("z > 0", {"0 > z"}),
        ("0 < a + b", {"(a + b) < 0"}),
        ("0 < z < 1", set()),
        ("z == 0", set()),
        ("delta.T", {"delta"}),
        ("delta.shape", set()),
        ("torch.exp(-z)", {"(-z)"}),
        ("torch.where(z > 0, z, a)", set()),
        ("sqrt(2)", {"2"}),
        ("f(x=1)", set()),
        ("f(*z)", set()),
        ("z.exp()", {"z"}),
        ("delta.sum(dim=0)", {"delta", "delta.mean(dim=0)"}),
        ("theta.sub_(lr * v)", {"theta", "theta.add_(lr * v)"}),
    ],
)
def test_the_mistakes_of_a_derivation(code, expected):
    node = cst.parse_expression(code)
    mutants = [mutant for kind, operator in OPERATORS if isinstance(node, kind) for mutant in operator(node)]
    codes = [cst.Module([]).code_for_node(mutant) for mutant in mutants]
    assert sorted(codes) == sorted(expected)


def test_every_argument_is_about_a_line_that_is_there_and_stands_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("```diff") == len(read_arguments())
    for mutant, why in read_arguments().items():
        lines = [line.strip() for line in (ROOT / mutant.file).read_text(encoding="utf-8").splitlines()]
        assert mutant.before in lines, f"{mutant.file} has no line {mutant.before}: remove the argument"
        assert f"- {mutant.before}\n+ {mutant.after}\n```\n\n{why}" in text


def test_the_tests_that_are_to_notice_are_there():
    """A file that was renamed would stop mutmut before the first mutant."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    listed = [*settings["pytest_add_cli_args_test_selection"], *settings["source_paths"], *settings["also_copy"]]
    assert [path for path in listed if not (ROOT / path).exists()] == []
    assert all(path.split("/")[0] in NEEDED for path in listed)


@pytest.mark.parametrize(
    ("status", "arguments", "complete", "expected"),
    [
        ("killed", {}, True, []),
        ("timeout", {}, True, []),
        ("survived", {RIGHT: "equal"}, True, []),
        ("survived", {}, True, [f"survived: {RIGHT}"]),
        ("survived", {LEFT: "another"}, False, [f"survived: {RIGHT}"]),
        ("no tests", {}, False, [f"no tests: {RIGHT}"]),
        ("segfault", {}, True, [f"segfault: {RIGHT}"]),
        ("killed", {RIGHT: "equal"}, True, [f"no longer survives: {RIGHT}"]),
        ("killed", {RIGHT: "equal"}, False, []),
    ],
)
def test_what_is_complained_of(status, arguments, complete, expected):
    assert complaints([(RIGHT, status)], arguments, complete=complete) == expected


def test_a_page():
    fates = [(RIGHT, "survived"), (LEFT, "killed"), (LEFT, "timeout"), (LEFT, "killed")]
    assert score(fates) == "3 of 4 mutants noticed (75.0%)"
    text = page(fates, {}, "12 s")
    assert "| `layer.py` | 4 | 2 | 1 | 1 |" in text
    assert "- return dz @ W\n+ return W @ dz\n```\n\nWants a test." in text
    assert "Because." in page(fates, {RIGHT: "Because."}, "12 s")


@pytest.mark.long
def test_a_weak_test_lets_mistakes_through(tmp_path):
    for path, text in {
        "cube/__init__.py": "def slope(z):\n    return 3 * z * z\n",
        "tests/test_cube.py": "from cube import slope\n\ndef test_slope():\n    assert slope(1) > 2 > slope(0) == 0\n",
        "pyproject.toml": '[tool.mutmut]\nsource_paths = ["cube"]\n',
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.mutate", str(results)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    fates = {mutant["after"]: mutant["status"] for mutant in json.loads(results.read_text(encoding="utf-8"))}
    killed = ("return z", "return 3 * z / z", "return 3 / z * z", "return z * z")
    assert fates == {"return 3 * z": "survived", "return 4 * z * z": "survived", **dict.fromkeys(killed, "killed")}
