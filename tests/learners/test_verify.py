"""verify.py as a user runs it, and the README's table of what it says."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

import train
import verify
from benchmarks import readme
from benchmarks import verification as benchmark
from gallery.parts import TwiceTheGradient, gelu_by_tanh
from gradient_check import Report, Row
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES
from manual_backprop.parameters import Parameters
from tests.support import running
from tests.support.lockstep import NAMES
from tests.support.running import call, flags, write_npz
from training import checkpoint
from training.families import FAMILIES
from training.families.mlp import Perceptrons
from training.learners import verification

LABELS = ["the cost C", "∂C/∂output", "∂C/∂output, layer 3, ∂C/∂a", "BP1, layer 3, δ"]
LABELS += [f"BP2, layer {l}, {what}" for l in (2, 1) for what in ("∂C/∂a", "δ")]
LABELS += [f"{label}, layer {l}, ∂C/∂{tensor}" for l in (3, 2, 1) for label, tensor in (("BP3", "b"), ("BP4", "W"))]
LAYERS = list(dict.fromkeys(title for title, *_ in verification.layer_examples(seed=0)))
SHIPPED = list(FAMILIES)  # here, before the tests add theirs
FEW_LAYERS = ("linear", "gelu")
COSTS = [*LOSSES, "smoothed softmax-cross-entropy"]
LIMITS = {"float64": 1e-14, "float32": 1e-5, "bfloat16": 0.1, "float16": 0.02}
# Batch norm's gradient is what is left of dy without its mean and its part along x̂, every layer of it on the way down
# leaves a little more rounding in a little less: 2e-14 in 20 draws of these networks, where others stay below 4e-15.
CNN_LIMITS = {"float64": 1e-13, "float32": 1e-5}


@pytest.fixture(autouse=True)
def few(request, monkeypatch):
    """Unless all is asked for: of the perceptrons the lesson's and those of one layer, and of the layers two."""
    monkeypatch.setenv("COLUMNS", "80")  # the terminal's width, whatever the tests are run in
    if hasattr(request.node, "callspec") and request.node.callspec.params.get("whole"):
        return
    lesson, *others = FAMILIES["mlp"].problems()
    problems = [lesson, *(problem for problem in others if len(problem.model.activations) == 1)]
    examples = verification.layer_examples
    monkeypatch.setattr(Perceptrons, "problems", lambda self: iter(problems))
    monkeypatch.setattr(verification, "layer_examples", lambda seed: (e for e in examples(seed) if e[0] in FEW_LAYERS))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 21 steps on arrays that lie beside it."""
    directory = tmp_path_factory.mktemp("trained")
    options = {"dataset": "npz", "data_dir": write_npz(directory / "arrays.npz"), "hidden": (4,), "activation": "tanh"}
    options |= {"loss": "softmax-cross-entropy", "label_smoothing": 0.1, "lr": 0.5, "batch_size": 30, "epochs": 3}
    assert train.main(list(flags(options | {"run_dir": directory / "run"}))) == 0
    return directory


@pytest.fixture
def ask(capsys):
    """Runs verify.py, which says nothing on stderr where all agree, and else one sentence."""

    def ask(*arguments, status=0):
        done = call(capsys, verify.main, *arguments)
        assert done.status == status
        assert status or not done.err
        return done._replace(err=running.one_sentence(done.err)) if status else done

    return ask


def rows(out):
    """The cells of all tables."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


def in_json(done):
    """All of stdout as one object of strict JSON."""
    return json.loads(done.out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def spoil(monkeypatch, name, derivative):
    """Put a wrong activation in the place of the right one; its twin stays."""
    monkeypatch.setitem(ACTIVATIONS, name, replace(ACTIVATIONS[name], derivative=derivative))


@pytest.mark.parametrize(
    ("dtype", "whole"),
    [("float64", False), pytest.param("float32", True, marks=pytest.mark.slow)],
)
def test_all_agree(dtype, whole, ask):
    done = ask("--model", "mlp", "--dtype", dtype, "--seeds", 1)
    table, networks = rows(done.out)[: len(LABELS)], rows(done.out)[len(LABELS) :]
    assert [row[0] for row in table] == LABELS
    assert [row[1] for row in table[:4]] == ["()", "(11, 10)", "(11, 10)", "(11, 10)"]
    assert table[-1][1] == "(16, 784)"
    assert all(row[-1] == "ok" for row in table)
    assert all(cell.endswith(" ok") for row in networks for cell in row[1:])
    if dtype != "float64":  # judged against float64, where no result of lower precision is exact
        exact = [row[0] for row in table if float(row[2]) < 1e-9]
        assert exact == ["∂C/∂output, layer 3, ∂C/∂a"]  # all propagate the hand-written one back
    assert [row[0] for row in networks] == list(ACTIVATIONS)
    assert all(len(row) == 1 + len(LOSSES) for row in networks)
    # of every activation, cost and depth: C, ∂C/∂output and 4 tensors a layer
    depths = [1, 2, 3, 4] if whole else [1]
    compared = len(LABELS) + len(ACTIVATIONS) * len(LOSSES) * sum(2 + 4 * depth for depth in depths)
    last = done.out.splitlines()[-1]
    form = rf"all {compared:,} comparisons agree in {dtype}; largest relative error (\S+) \((BP\d|the|∂).*\)"
    found = re.fullmatch(form, last)
    assert found, last
    assert 0 < float(found[1]) < LIMITS[dtype]


@pytest.mark.sweep(5)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_agrees(name, dtype, ask):
    done = ask("--model", name, "--seeds", 1, "--dtype", dtype)
    assert f"comparisons agree in {dtype}; largest relative error " in done.out.splitlines()[-1]


@pytest.mark.slow
def test_another_seed_is_another_draw(ask):
    outs = [ask("--seeds", 1, "--seed", seed).out for seed in (0, 0, 1)]
    assert outs[0] == outs[1] != outs[2]


def test_nothing_that_is_drawn_is_at_a_default():
    params = Parameters({"norm.weight": (5,), "norm.bias": (5,), "layer1.weight": (300, 40)}, dtype=torch.float64)
    verification.randomize(params, torch.Generator().manual_seed(0))
    assert len(params.theta.unique()) == len(params.theta)
    assert params["layer1.weight"].std().item() == pytest.approx(40**-0.5, rel=0.02)


def test_what_is_shown_of_several_draws():
    """Of each comparison the draw nearest to its limit; the largest error by an exact oracle, in the example itself."""

    def row(error, allowed, oracle="autograd", case=""):
        sizes = {"relative_error": error, "tolerance": allowed}
        return Row("dx", "dx", (5,), error <= allowed, oracle=oracle, case=case, **sizes)

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
def test_a_wrong_derivative_is_found(name, ask, monkeypatch):
    right = ACTIVATIONS[name].derivative
    spoil(monkeypatch, name, lambda z, a: right(z, a) + 1e-9)
    done = ask("--seeds", 1, status=1)
    lesson, networks = rows(done.out)[: len(LABELS)], rows(done.out)[len(LABELS) :]
    assert {row[0] for row in networks if "WRONG" in row[1]} == {name}, "with the quadratic cost only this one"
    assert any(row[-1] == "WRONG" for row in lesson) == (name == "sigmoid")
    for said in ("differ; the first is BP", f", {name}, quadratic cost: ", "of the norm (allowed 1.0e-12)"):
        assert said in done.err
    assert "agree" not in done.out


@pytest.mark.slow
def test_a_wrong_cost_is_found(ask, monkeypatch):
    monkeypatch.setitem(LOSSES, "squared-error", TwiceTheGradient)
    done = ask("--seeds", 1, status=1)
    assert "the first is ∂C/∂output of " in done.err
    for row in rows(done.out)[len(LABELS) :]:
        assert ["WRONG" in cell for cell in row[1:]] == [False, True, False, False]
    (check,) = (c for c in verification.verify_costs(torch.float64, [0]) if not c.passed)
    assert check.title == "squared-error"


def test_a_wrong_layer_with_its_own_right_derivative_is_found(monkeypatch):
    """To which autograd through the same forward cannot object."""
    monkeypatch.setitem(ACTIVATIONS, "gelu", gelu_by_tanh())
    checks = {check.title: check for check in verification.verify_layers(torch.float64, [0])}
    assert [title for title, check in checks.items() if not check.passed] == ["gelu"]
    wrong = {(row.name, row.oracle) for row in checks["gelu"].rows if not row.passed and not row.case}
    assert ("output", "reference") in wrong
    assert {oracle for _, oracle in wrong} == {"reference"}


def test_failures_in_json(ask, monkeypatch):
    spoil(monkeypatch, "tanh", lambda z, a: torch.full_like(z, torch.nan))
    done = ask("--seeds", 1, "--json", status=1)
    assert "differ" in done.err
    result = in_json(done)
    assert not result["passed"]
    assert result["largest_relative_error"] is None
    wrong = [check for check in result["checks"] if not check["passed"]]
    assert {check["title"].split(", ")[1] for check in wrong} == {"tanh"}
    assert all(row["reason"] for check in wrong for row in check["rows"] if row["verdict"] == "WRONG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "whole"),
    [("float64", False), *(pytest.param(dtype, True, marks=pytest.mark.long) for dtype in LIMITS)],
)
def test_all_is_every_model_layer_and_cost(dtype, whole, ask):
    seeds = 1 if whole else 2
    result, parts = in_json(ask("--all", "--seeds", seeds, "--json", "--dtype", dtype)), {}
    for check in result["checks"]:
        parts.setdefault(check["part"], []).append(check)
    assert list(parts) == ["layers", "costs", *FAMILIES]
    for name, family in FAMILIES.items():
        assert [check["title"] for check in parts[name]] == [problem.title for problem in family.problems()]
    for name in ("mlp", "lenet5", "cnn"):
        assert [check["comparisons"] for check in parts[name]] == [seeds * n for n in compared(name)]
    assert [check["title"] for check in parts["layers"]] == [name for name in LAYERS if whole or name in FEW_LAYERS]
    assert [check["title"] for check in parts["costs"]] == COSTS
    for check in parts["layers"] + parts["costs"]:
        assert {"reference", "autograd", "dot product", "differences"} <= {row["oracle"] for row in check["rows"]}
    assert (result["passed"], result["dtype"], result["seeds"]) == (True, dtype, [0, seeds - 1])
    assert result["comparisons"] == sum(check["comparisons"] for check in result["checks"])
    assert result["largest_relative_error"] == max(check["largest_relative_error"] for check in result["checks"])
    largest = {part: max(check["largest_relative_error"] for check in checks) for part, checks in parts.items()}
    of_cnn, least = largest.pop("cnn"), 0 if dtype == "float64" else LIMITS["float64"]
    assert least < min(largest.values()) <= max(largest.values()) < LIMITS[dtype]
    # in 16 bits pixels tie that do not in truth, and max pooling sends a whole δ elsewhere: then only `passed` counts
    assert least < of_cnn < CNN_LIMITS.get(dtype, float("inf"))


def compared(name):
    """Of each network: C, ∂C/∂output, and a δ a layer call, a gradient a parameter and the running statistics."""
    models = [problem.model for problem in FAMILIES[name].problems()]
    if name != "cnn":
        return [2 + 4 * len(m.activations) if name == "mlp" else 2 + 7 + 4 + 10 for m in models]
    norms = [len(m.channels) * (1 + 2 * m.blocks) for m in models]
    calls = [3 * n + len(m.channels) + 2 for n, m in zip(norms, models, strict=True)]
    return [2 + c + 3 * n + 2 + 2 * n for c, n in zip(calls, norms, strict=True)]


@pytest.mark.slow
def test_as_tables_too(ask):
    lines = [
        row for row in rows(ask("--all", "--seeds", 1).out) if len(row) == 4 and row[-1]
    ]  # the rest of long titles
    expected = [*(name for name in LAYERS if name in FEW_LAYERS), *COSTS]
    assert [row[0] for row in lines[: len(expected)]] == expected
    pictures = [problem for name in ("lenet5", "cnn") for problem in FAMILIES[name].problems()]
    assert len(lines) >= len(expected) + len(pictures)
    assert {row[-1] for row in lines} == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LIMITS)
def test_a_trained_network(dtype, trained, ask):
    done = ask("--checkpoint", trained / "run", "--dtype", dtype, "--seeds", 4)
    assert "mlp after 21 steps, npz, 4 draws" in done.out
    assert [row[1] for row in rows(done.out)][:4] == ["()", "(30, 3)", "(30, 3)", "(30, 3)"]
    assert f"all 40 comparisons agree in {dtype}" in done.out.splitlines()[-1]


@pytest.mark.slow
def test_a_trained_network_whose_data_have_moved(trained, tmp_path, ask):
    run_dir = trained / "run"
    moved = shutil.move(trained / "arrays.npz", tmp_path / "elsewhere.npz")
    try:
        assert "arrays.npz" in ask("--checkpoint", run_dir, "--seeds", 1, status=2).err
        ask("--checkpoint", run_dir, "--seeds", 1, "--data-dir", moved)
    finally:
        shutil.move(moved, trained / "arrays.npz")
    other = ask("--checkpoint", run_dir, "--data-dir", write_npz(tmp_path / "4.npz", classes=4), status=2)
    assert "classes 0, 1, 2, 3" in other.err


def test_a_trained_network_that_overflows_in_this_format(trained, tmp_path, ask):
    run_dir = shutil.copytree(trained / "run", tmp_path / "run")
    saved = checkpoint.load(run_dir)
    for name, tensor in saved["model"].items():
        saved["model"][name] = tensor * 1e6
    checkpoint.save(saved, run_dir / "last.pt")
    done = ask("--checkpoint", run_dir, "--seeds", 1, "--dtype", "float16", status=2)
    assert "overflows in float16: give a wider --dtype" in done.err


ORDERS = {
    "--all --model mlp": "exclude each other",
    "--all --checkpoint runs/x": "exclude each other",
    "--model mpl": f"must be one of {', '.join(FAMILIES)}",
    "--data-dir data": "goes with --checkpoint",
    "--seeds 0": "a whole number from 1",
    "--seed -1": "every seed must be from 0",
    f"--seeds {2**63 + 1}": f"--seed is 0 and --seeds {2**63 + 1}, but every seed must be from 0 to 2⁶³ − 1",
    "--dtype float128": "float64",
}


@pytest.mark.parametrize(("arguments", "named"), ORDERS.items())
def test_wrong_orders(arguments, named, ask):
    done = ask(*arguments.split(), status=2)
    assert done.out == ""
    assert named in done.err


@pytest.mark.long
def test_the_table_is_made_of_what_verify_says(ask, monkeypatch):
    examples = list(verification.layer_examples(seed=0))
    monkeypatch.setattr(verification, "layer_examples", lambda seed: examples[-1:])
    asked = {dtype: ask("--all", "--seeds", 1, "--json", "--dtype", dtype) for dtype in ("float64", "float32")}
    results = {dtype: in_json(done) for dtype, done in asked.items()}
    made = [line.strip("| ").split(" | ") for line in benchmark.table(results).splitlines()[2:]]
    networks = [f"`{name}`, {len(list(family.problems()))} networks" for name, family in FAMILIES.items()]
    assert [row[0] for row in made] == ["1 layers", f"{len(COSTS)} costs", *networks]
    assert sum(int(row[1].replace(",", "")) for row in made) == sum(r["comparisons"] for r in results.values())
    for column, result in enumerate(results.values(), start=2):
        assert max(float(row[column]) for row in made) == pytest.approx(result["largest_relative_error"], rel=0.05)


def test_the_readme_is_not_written_where_something_differs(tmp_path, monkeypatch):
    (tmp_path / "verify.py").write_text("raise SystemExit(1)")
    (tmp_path / "README.md").write_text("<!-- verify -->\nold\n<!-- end of verify -->\n")
    monkeypatch.setattr(benchmark, "SCRIPT", tmp_path / "verify.py")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    with pytest.raises(SystemExit, match="1"):
        benchmark.main()
    assert "old" in (tmp_path / "README.md").read_text()


def test_the_table_in_the_readme_holds_every_part():
    _, _, after = readme.README.read_text(encoding="utf-8").partition("<!-- verify -->\n")
    lines = [line for line in after.partition("<!-- end of verify -->")[0].splitlines() if line.startswith("| ")]
    for name in SHIPPED:
        assert any(f"`{name}`" in line for line in lines), f"the README's table lacks {name}: `make verify` writes it"
    assert len(lines) == 1 + 2 + len(SHIPPED)
    for line in lines[1:]:
        exact, single = line.strip("| ").split(" | ")[2:]
        assert float(exact) < (1e-13 if "`cnn`" in line else 1e-14)
        assert 1e-14 < float(single) < 1e-5
