"""verify.py as a user runs it."""

import re
from pathlib import Path

import pytest
import running
from running import call, flags, write_npz

import train
import verify
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES

Capsys = pytest.CaptureFixture[str]
LABELS = ["the cost C", "∂C/∂output", "BP1, layer 3, δ", "BP2, layer 2, δ", "BP2, layer 1, δ"] + [
    f"{equation}, layer {l}, ∂C/∂{tensor}" for l in (3, 2, 1) for equation, tensor in (("BP3", "b"), ("BP4", "W"))
]


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the terminal, whatever the tests are run in."""
    monkeypatch.setenv("COLUMNS", "80")


def rows(out: str) -> list[list[str]]:
    """The cells of all tables."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


@pytest.mark.parametrize(
    ("dtype", "limit"), [("float64", 1e-14), pytest.param("float32", 1e-5, marks=pytest.mark.slow)]
)
def test_all_agree(dtype: str, limit: float, capsys: Capsys) -> None:
    done = call(capsys, verify.main, "--model", "mlp", "--dtype", dtype, "--seeds", 1)
    assert (done.status, done.err) == (0, "")
    table = rows(done.out)
    assert [row[0] for row in table[:11]] == LABELS
    assert [row[1] for row in table[:3]] == ["()", "(11, 10)", "(11, 10)"]
    assert table[10][1] == "(16, 784)"
    assert all(row[-1] == "ok" for row in table[:11])
    assert all(cell.endswith(" ok") for row in table[11:] for cell in row[1:])
    if dtype == "float32":  # judged against float64, where no float32 result is exact
        assert all(float(row[2]) > 1e-9 for row in table[:11])
    assert [row[0] for row in table[11:]] == list(ACTIVATIONS)
    assert all(len(row) == 1 + len(LOSSES) for row in table[11:])
    # 11 tensors of the lesson's; for 7 activations, 4 costs and depths 1 to 4: C, ∂C/∂output and 3 tensors a layer
    compared = 11 + 7 * 4 * sum(2 + 3 * depth for depth in (1, 2, 3, 4))
    last = done.out.splitlines()[-1]
    found = re.fullmatch(
        rf"all {compared:,} costs, gradients and δs agree in {dtype}; largest relative error (\S+) \((BP\d|the|∂).*\)",
        last,
    )
    assert found, last
    assert 0 < float(found[1]) < limit


@pytest.mark.slow
def test_another_seed_is_another_draw(capsys: Capsys) -> None:
    outs = [call(capsys, verify.main, "--seeds", 1, "--seed", seed).out for seed in (0, 0, 1)]
    assert outs[0] == outs[1] != outs[2]


@pytest.mark.parametrize("name", ["gelu", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_a_wrong_derivative_is_found(name: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ACTIVATIONS[name]
    wrong = right._replace(derivative=lambda z, a: right.derivative(z, a) + 1e-9)
    monkeypatch.setitem(ACTIVATIONS, name, wrong)
    done = call(capsys, verify.main, "--seeds", 1)
    assert done.status == 1
    table = rows(done.out)
    assert {row[0] for row in table[11:] if "WRONG" in row[1]} == {name}, "with the quadratic cost only this one"
    assert any(row[-1] == "WRONG" for row in table[:11]) == (name == "sigmoid")
    sentence = running.one_sentence(done.err)
    assert "differ; the first is BP" in sentence
    assert "of the norm (allowed 1.0e-12)" in sentence
    assert "all" not in done.out.splitlines()[-1]


def test_a_wrong_cost_is_found(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost itself is right, its gradient is twice as large."""

    class Doubled(LOSSES["squared-error"]):  # type: ignore[misc]
        def backward(self, dC: float, cache: object) -> object:
            return 2 * super().backward(dC, cache)

    monkeypatch.setitem(LOSSES, "squared-error", Doubled)
    done = call(capsys, verify.main, "--seeds", 1)
    assert done.status == 1
    assert "the first is ∂C/∂output" in running.one_sentence(done.err)
    assert all(["WRONG" in cell for cell in row[1:]] == [False, True, False, False] for row in rows(done.out)[11:])


def test_a_trained_network(tmp_path: Path, capsys: Capsys) -> None:
    npz = write_npz(tmp_path / "arrays.npz")
    options = {"dataset": "npz", "data_dir": npz, "hidden": (4,), "activation": "tanh", "loss": "softmax-cross-entropy"}
    options |= {"batch_size": 30, "epochs": 3, "lr": 0.5, "label_smoothing": 0.1, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    for dtype in ("float64", "float32"):
        done = call(capsys, verify.main, "--checkpoint", tmp_path / "run", "--dtype", dtype, "--seeds", 4)
        assert (done.status, done.err) == (0, "")
        assert "5-4-3 after 21 steps, npz" in done.out
        assert [row[1] for row in rows(done.out)][:3] == ["()", "(30, 3)", "(30, 3)"]
        assert f"all 32 costs, gradients and δs agree in {dtype}" in done.out.splitlines()[-1]


@pytest.mark.slow
def test_as_a_process() -> None:
    done = running.run("verify.py", "--model", "mlp", "--seeds", 1)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("all ")
