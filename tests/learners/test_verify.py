"""verify.py as a user runs it."""

import json
import re
import shutil
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train
import verify
from gradient_check import Report, Row
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES
from manual_backprop.parameters import Parameters
from tests.support import running
from tests.support.lockstep import NAMES, TEXTS
from tests.support.running import call, flags, write_npz
from training import checkpoint
from training.families import FAMILIES
from training.families.base import Problem
from training.families.mlp import Perceptrons
from training.learners import verification

Capsys = pytest.CaptureFixture[str]
LABELS = ["the cost C", "∂C/∂output", "∂C/∂output, layer 3, ∂C/∂a", "BP1, layer 3, δ"]
LABELS += [f"BP2, layer {l}, {what}" for l in (2, 1) for what in ("∂C/∂a", "δ")]
LABELS += [
    f"{equation}, layer {l}, ∂C/∂{tensor}" for l in (3, 2, 1) for equation, tensor in (("BP3", "b"), ("BP4", "W"))
]
LAYERS = list(dict.fromkeys(title for title, *_ in verification.layer_examples(seed=0)))
DEPTHS = [1, 2, 3, 4]
FEW_LAYERS = ("linear", "gelu")
COSTS = [*LOSSES, "smoothed softmax-cross-entropy"]
LIMITS = {"float64": 1e-14, "float32": 1e-5, "bfloat16": 0.1, "float16": 0.02}
# Batch norm's gradient is what is left of dy without its mean and its part along x̂, every layer of it on the way down
# leaves a little more rounding in a little less: 2e-14 in 20 draws of these networks, where others stay below 4e-15.
CNN_LIMITS = {"float64": 1e-13, "float32": 1e-5}


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the terminal, whatever the tests are run in."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(autouse=True)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless all is asked for: of the perceptrons the lesson's and those of one layer, and of the layers two."""
    if hasattr(request.node, "callspec") and request.node.callspec.params.get("whole"):
        return
    problems, examples = perceptrons([1]), verification.layer_examples
    monkeypatch.setattr(Perceptrons, "problems", lambda self: iter(problems))
    monkeypatch.setattr(verification, "layer_examples", lambda seed: (e for e in examples(seed) if e[0] in FEW_LAYERS))


def perceptrons(depths: Container[int]) -> list[Problem]:
    """The lesson's network, and those of so many layers."""
    lesson, *others = FAMILIES["mlp"].problems()
    return [lesson, *(problem for problem in others if len(problem.model.activations) in depths)]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 21 steps on arrays that lie beside it."""
    directory = tmp_path_factory.mktemp("trained")
    options = {"dataset": "npz", "data_dir": write_npz(directory / "arrays.npz"), "hidden": (4,), "activation": "tanh"}
    options |= {"loss": "softmax-cross-entropy", "label_smoothing": 0.1, "lr": 0.5, "batch_size": 30, "epochs": 3}
    assert train.main(list(flags(options | {"run_dir": directory / "run"}))) == 0
    return directory


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def rows(out: str) -> list[list[str]]:
    """The cells of all tables."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


def in_json(done: running.Done) -> dict[str, Any]:
    """All of stdout as one object of strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(done.out, parse_constant=refuse)


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, **wrong: Any) -> None:
    """Put a wrong activation in the place of the right one; its twin stays."""
    activation = replace(ACTIVATIONS[name], **wrong)
    monkeypatch.setitem(ACTIVATIONS, name, activation)


@pytest.mark.parametrize(
    ("dtype", "whole"),
    [("float64", False), *(pytest.param(dtype, True, marks=pytest.mark.slow) for dtype in LIMITS)],
)
def test_all_agree(dtype: str, whole: bool, capsys: Capsys) -> None:
    depths = DEPTHS if whole else [1]
    done = call(capsys, verify.main, "--model", "mlp", "--dtype", dtype, "--seeds", 1)
    assert (done.status, done.err) == (0, "")
    table = rows(done.out)
    assert [row[0] for row in table[: len(LABELS)]] == LABELS
    assert [row[1] for row in table[:4]] == ["()", "(11, 10)", "(11, 10)", "(11, 10)"]
    table, networks = table[: len(LABELS)], table[len(LABELS) :]
    assert table[-1][1] == "(16, 784)"
    assert all(row[-1] == "ok" for row in table)
    assert all(cell.endswith(" ok") for row in networks for cell in row[1:])
    if dtype != "float64":  # judged against float64, where no result of lower precision is exact
        exact = [row[0] for row in table if float(row[2]) < 1e-9]
        assert exact == ["∂C/∂output, layer 3, ∂C/∂a"]  # all propagate the hand-written one back
    assert [row[0] for row in networks] == list(ACTIVATIONS)
    assert all(len(row) == 1 + len(LOSSES) for row in networks)
    # of every activation, cost and depth: C, ∂C/∂output and 4 tensors a layer
    compared = len(LABELS) + len(ACTIVATIONS) * len(LOSSES) * sum(2 + 4 * depth for depth in depths)
    last = done.out.splitlines()[-1]
    found = re.fullmatch(
        rf"all {compared:,} comparisons agree in {dtype}; largest relative error (\S+) \((BP\d|the|∂).*\)", last
    )
    assert found, last
    assert 0 < float(found[1]) < LIMITS[dtype]


@pytest.mark.sweep(5)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_agrees(name: str, dtype: str, capsys: Capsys) -> None:
    done = call(capsys, verify.main, "--model", name, "--seeds", 1, "--dtype", dtype)
    assert (done.status, done.err) == (0, "")
    assert f"comparisons agree in {dtype}; largest relative error " in done.out.splitlines()[-1]


@pytest.mark.slow
def test_another_seed_is_another_draw(capsys: Capsys) -> None:
    outs = [call(capsys, verify.main, "--seeds", 1, "--seed", seed).out for seed in (0, 0, 1)]
    assert outs[0] == outs[1] != outs[2]


def test_nothing_that_is_drawn_is_at_a_default() -> None:
    params = Parameters({"norm.weight": (5,), "norm.bias": (5,), "layer1.weight": (300, 40)}, dtype=torch.float64)
    verification.randomize(params, torch.Generator().manual_seed(0))
    assert len(params.theta.unique()) == len(params.theta)
    assert params["layer1.weight"].std().item() == pytest.approx(40**-0.5, rel=0.02)


def test_what_is_shown_of_several_draws() -> None:
    """Of each comparison the draw nearest to its limit; the largest error by an exact oracle, in the example itself."""

    def row(error: float, allowed: float, oracle: str = "autograd", case: str = "") -> Row:
        return Row(
            "dx", "dx", (5,), error <= allowed, relative_error=error, tolerance=allowed, oracle=oracle, case=case
        )

    draws = [[row(3e-16, 1e-12)], [row(2e-16, 3e-16)], [row(1e-16, 1e-12)]]
    others = [row(1e-9, 1e-8, oracle="differences"), row(1e-10, 1e-9, case="x ±1e4")]
    check = verification.Check("layers", "cube", reports=[Report((*rows, *others)) for rows in draws])
    assert check.nearest.rows == (draws[1][0], *others)
    assert check.largest == draws[0][0]
    assert check.passed
    check.reports.append(Report((row(2e-15, 1e-15), row(0.0, 1e-12))))
    assert check.nearest.rows[0].relative_error == 2e-15
    assert not check.passed


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ["gelu", "sigmoid"])
def test_a_wrong_derivative_is_found(name: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ACTIVATIONS[name]
    spoil(monkeypatch, name, derivative=lambda z, a: right.derivative(z, a) + 1e-9)
    done = call(capsys, verify.main, "--seeds", 1)
    assert done.status == 1
    table = rows(done.out)
    assert {row[0] for row in table[len(LABELS) :] if "WRONG" in row[1]} == {name}, (
        "with the quadratic cost only this one"
    )
    assert any(row[-1] == "WRONG" for row in table[: len(LABELS)]) == (name == "sigmoid")
    sentence = running.one_sentence(done.err)
    assert "differ; the first is BP" in sentence
    assert f", {name}, quadratic cost: " in sentence
    assert "of the norm (allowed 1.0e-12)" in sentence
    assert "agree" not in done.out


@pytest.mark.slow
def test_a_wrong_cost_is_found(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost itself is right, its gradient is twice as large."""

    class Doubled(LOSSES["squared-error"]):  # type: ignore[misc]
        def backward(self, dC: float, cache: object) -> object:
            return 2 * super().backward(dC, cache)

    monkeypatch.setitem(LOSSES, "squared-error", Doubled)
    done = call(capsys, verify.main, "--seeds", 1)
    assert done.status == 1
    assert "the first is ∂C/∂output of " in running.one_sentence(done.err)
    assert "twice" in done.out or "2" in done.out
    assert all(
        ["WRONG" in cell for cell in row[1:]] == [False, True, False, False] for row in rows(done.out)[len(LABELS) :]
    )
    (check,) = (c for c in verification.verify_costs(torch.float64, [0]) if not c.passed)
    assert check.title == "squared-error"


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["few", "whole"])
def test_all_is_every_model_layer_and_cost(whole: bool, capsys: Capsys) -> None:
    done = call(capsys, verify.main, "--all", "--seeds", 2, "--json")
    assert (done.status, done.err) == (0, "")
    result = in_json(done)
    parts: dict[str, list[dict[str, Any]]] = {}
    for check in result["checks"]:
        parts.setdefault(check["part"], []).append(check)
    assert list(parts) == ["layers", "costs", *FAMILIES]
    for name, family in FAMILIES.items():
        assert [check["title"] for check in parts[name]] == [problem.title for problem in family.problems()]
    assert sum(check["comparisons"] for check in parts["mlp"]) == 2 * sum(
        2 + 4 * len(problem.model.activations) for problem in perceptrons(DEPTHS if whole else [1])
    )
    for name in ("lenet5", "cnn"):
        assert [check["comparisons"] for check in parts[name]] == [2 * n for n in compared(name)]
    assert [check["title"] for check in parts["layers"]] == [name for name in LAYERS if whole or name in FEW_LAYERS]
    assert [check["title"] for check in parts["costs"]] == COSTS
    for check in parts["layers"] + parts["costs"]:
        assert {"reference", "autograd", "dot product", "differences"} <= {row["oracle"] for row in check["rows"]}
    assert (result["passed"], result["dtype"], result["seeds"]) == (True, "float64", [0, 1])
    assert result["comparisons"] == sum(check["comparisons"] for check in result["checks"])
    assert result["largest_relative_error"] == max(check["largest_relative_error"] for check in result["checks"])
    largest = {part: max(check["largest_relative_error"] for check in checks) for part, checks in parts.items()}
    assert 0 < largest.pop("cnn") < CNN_LIMITS["float64"]
    assert 0 < min(largest.values()) <= max(largest.values()) < LIMITS["float64"]


def compared(name: str) -> list[int]:
    """Of each network: C, ∂C/∂output, and a δ a layer call, a gradient a parameter and the running statistics."""
    models = [problem.model for problem in FAMILIES[name].problems()]
    if name == "lenet5":
        return [2 + 7 + 4 + 10 for _ in models]
    norms = [len(m.channels) * (1 + 2 * m.blocks) for m in models]  # type: ignore[attr-defined]
    calls = [3 * n + len(m.channels) + 2 for n, m in zip(norms, models, strict=True)]  # type: ignore[attr-defined]
    return [2 + c + 3 * n + 2 + 2 * n for c, n in zip(calls, norms, strict=True)]


@pytest.mark.slow
def test_as_tables_too(capsys: Capsys) -> None:
    done = call(capsys, verify.main, "--all", "--seeds", 1)
    assert (done.status, done.err) == (0, "")
    lines = [row for row in rows(done.out) if len(row) == 4 and row[-1]]  # a long title goes on in a line of its own
    expected = [*(name for name in LAYERS if name in FEW_LAYERS), *COSTS]
    assert [row[0] for row in lines[: len(expected)]] == expected
    pictures = [problem for name in ("lenet5", "cnn") for problem in FAMILIES[name].problems()]
    assert len(lines) >= len(expected) + len(pictures)
    assert {row[-1] for row in lines} == {"ok"}


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "whole"), [("float32", True), ("bfloat16", True), ("float16", True)])
def test_all_in_lower_precision(dtype: str, whole: bool, capsys: Capsys) -> None:
    result = in_json(call(capsys, verify.main, "--all", "--seeds", 3, "--json", "--dtype", dtype))
    assert result["passed"]
    largest = {"cnn": 0.0, "others": 0.0}
    for check in result["checks"]:
        which = "cnn" if check["part"] == "cnn" else "others"
        largest[which] = max(largest[which], check["largest_relative_error"])
    assert LIMITS["float64"] < largest["others"] < LIMITS[dtype]
    # in 16 bits pixels tie that do not in truth, and max pooling sends a whole δ elsewhere: then only `passed` counts
    assert LIMITS["float64"] < largest["cnn"] < CNN_LIMITS.get(dtype, float("inf"))


def test_a_wrong_layer_with_its_own_right_derivative_is_found(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """gelu by its tanh approximation, which autograd through the same forward cannot object to."""

    def inner(z: torch.Tensor) -> torch.Tensor:
        return (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)

    def derivative(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        t = inner(z).tanh()
        return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * (2 / torch.pi) ** 0.5 * (1 + 3 * 0.044715 * z**2)

    spoil(monkeypatch, "gelu", value=lambda z: 0.5 * z * (1 + inner(z).tanh()), derivative=derivative)
    checks = {check.title: check for check in verification.verify_layers(torch.float64, [0])}
    assert [title for title, check in checks.items() if not check.passed] == ["gelu"]
    wrong = {(row.name, row.oracle) for row in checks["gelu"].rows if not row.passed and not row.case}
    assert ("output", "reference") in wrong
    assert {oracle for _, oracle in wrong} == {"reference"}


def test_failures_in_json(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "tanh", derivative=lambda z, a: torch.full_like(z, torch.nan))
    done = call(capsys, verify.main, "--seeds", 1, "--json")
    assert done.status == 1
    assert "differ" in running.one_sentence(done.err)
    result = in_json(done)
    assert not result["passed"]
    assert result["largest_relative_error"] is None
    wrong = [check for check in result["checks"] if not check["passed"]]
    assert {check["title"].split(", ")[1] for check in wrong} == {"tanh"}
    assert all(row["reason"] for check in wrong for row in check["rows"] if row["verdict"] == "WRONG")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LIMITS)
def test_a_trained_network(dtype: str, trained: Path, capsys: Capsys) -> None:
    done = call(capsys, verify.main, "--checkpoint", trained / "run", "--dtype", dtype, "--seeds", 4)
    assert (done.status, done.err) == (0, "")
    assert "mlp after 21 steps, npz, 4 draws" in done.out
    assert [row[1] for row in rows(done.out)][:4] == ["()", "(30, 3)", "(30, 3)", "(30, 3)"]
    assert f"all 40 comparisons agree in {dtype}" in done.out.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_a_network_trained_on_text(name: str, tmp_path: Path, capsys: Capsys) -> None:
    options = {"model": name, "data_dir": running.ROOT / "LICENSE", "max_steps": 4, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    done = call(capsys, verify.main, "--checkpoint", tmp_path / "run", "--seeds", 2)
    assert (done.status, done.err) == (0, "")
    assert "comparisons agree in float64; largest relative error " in done.out.splitlines()[-1]


@pytest.mark.slow
def test_a_trained_network_whose_data_have_moved(run_dir: Path, trained: Path, tmp_path: Path, capsys: Capsys) -> None:
    moved = shutil.move(trained / "arrays.npz", tmp_path / "elsewhere.npz")
    try:
        lost = call(capsys, verify.main, "--checkpoint", run_dir, "--seeds", 1)
        found = call(capsys, verify.main, "--checkpoint", run_dir, "--seeds", 1, "--data-dir", moved)
    finally:
        shutil.move(moved, trained / "arrays.npz")
    assert lost.status == 2
    assert "arrays.npz" in running.one_sentence(lost.err)
    assert (found.status, found.err) == (0, "")
    other = call(capsys, verify.main, "--checkpoint", run_dir, "--data-dir", write_npz(tmp_path / "4.npz", classes=4))
    assert other.status == 2
    assert "classes 0, 1, 2, 3" in running.one_sentence(other.err)


def test_a_trained_network_that_overflows_in_this_format(run_dir: Path, capsys: Capsys) -> None:
    saved = checkpoint.load(run_dir)
    for name, tensor in saved["model"].items():
        saved["model"][name] = tensor * 1e6
    checkpoint.save(saved, run_dir / "last.pt")
    done = call(capsys, verify.main, "--checkpoint", run_dir, "--seeds", 1, "--dtype", "float16")
    assert done.status == 2
    assert "overflows in float16: give a wider --dtype" in running.one_sentence(done.err)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--all", "--model", "mlp"], "exclude each other"),
        (["--all", "--checkpoint", "runs/x"], "exclude each other"),
        (["--model", "mpl"], f"must be one of {', '.join(FAMILIES)}"),
        (["--data-dir", "data"], "goes with --checkpoint"),
        (["--seeds", "0"], "a whole number from 1"),
        (["--dtype", "float128"], "float64"),
    ],
)
def test_wrong_orders(arguments: list[str], named: str, capsys: Capsys) -> None:
    done = call(capsys, verify.main, *arguments)
    assert done.status == 2
    assert done.out == ""
    assert named in running.one_sentence(done.err)


@pytest.mark.long
def test_as_a_process() -> None:
    done = running.run("verify.py", "--model", "mlp", "--seeds", 1)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("all ")
