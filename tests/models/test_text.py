"""What is of networks that read text alone: ids, a carried state, generation, a bias that does nothing, other tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import explain
import predict
import train
from gradient_check import compare_gradients
from manual_backprop.tape import Tape
from tests.support.both_ways import differ
from tests.support.networks import TEXTS, Problem
from tests.support.running import ROOT, call, flags, learner_of, one_sentence, resolved
from tests.support.text.families import register
from training.data import load
from training.families.networks import arranged

TEXT = ROOT / "README.md"
CELL, BLOCK = (TEXTS[f"{name}, softmax-cross-entropy"] for name in ("cell", "block"))
each_family = pytest.mark.parametrize("problem", [CELL, BLOCK], ids=["cell", "block"])


def test_the_key_biass_gradient_is_rounding() -> None:
    actual, expected = BLOCK.by_hand(), BLOCK.by_autograd()
    # dropout of P̃ is behind the softmax, so that the scores of a query still cancel
    assert [row.name for row in compare_gradients(actual, expected).failures] == ["∂C/∂k.bias"]
    zeros = BLOCK.zeros(expected)
    (size,) = zeros.values()
    assert actual["∂C/∂k.bias"].norm() < 1e-14 * size
    wrong = actual | {"∂C/∂k.bias": actual["∂C/∂k.bias"] + 1e-9}
    assert [row.name for row in compare_gradients(wrong, expected, zeros=zeros).failures] == ["∂C/∂k.bias"]


def test_a_carried_state_matters() -> None:
    carried, fresh = CELL.by_hand(), CELL.by_hand(memory={})
    for name in ("C", "∂C/∂cell.weight_h", "memory h"):
        assert differ(carried[name], fresh[name]), name


@pytest.mark.parametrize("pieces", [(1,) * 8, (3, 1, 4), (7, 1), (1, 7)], ids=str)
@each_family
def test_in_pieces_through_the_memory_equals_the_whole_pass(problem: Problem, pieces: tuple[int, ...]) -> None:
    ids = torch.randint(0, 7, (4, 8), generator=torch.Generator().manual_seed(6))
    twin = problem.twin().double().eval()
    twin.load_state_dict(problem.params)
    with torch.no_grad():
        whole = twin(ids).view(4, 8, -1)
    memory, said = {}, []
    for piece in ids.split(pieces, dim=1):
        tape = Tape(memory=memory, records=False)
        said.append(problem.model.forward(problem.params, piece, tape).view(*piece.shape, -1))
        memory = tape.new_memory
    assert not tape.caches
    torch.testing.assert_close(torch.cat(said, 1), whole, rtol=1e-12, atol=1e-12)


@each_family
def test_no_output_depends_on_what_follows(problem: Problem) -> None:
    ids, _ = problem.data
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 7
    before, after = (
        problem.model.forward(problem.params, x, Tape(records=False)).view(4, 5, -1) for x in (ids, changed)
    )
    torch.testing.assert_close(after[:, :-1], before[:, :-1], rtol=1e-13, atol=1e-13)
    assert differ(after[:, -1], before[:, -1])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    register(monkeypatch, tmp_path / "presets")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["cell", "block"])
def test_ids_are_never_cast(name: str) -> None:
    options = {"model": name, "data_dir": TEXT, "examples": 700, "impl": "both", "dtype": "float32", "device": "cpu"}
    config = train.parse(list(flags(options))).config
    data = arranged(config, load("text", TEXT, examples=700))
    both: Any = learner_of(resolved(config, data), data)
    seen = []

    class Watched(type(both.manual.model)):  # type: ignore[misc]
        def forward(self, p: Any, x: Tensor, tape: Tape) -> Tensor:
            seen.append(("model", x.dtype))
            return super().forward(p, x, tape)

    both.manual.model = Watched(**vars(both.manual.model))
    for who, other in zip(("twin", "truth"), both.others, strict=True):
        other.module.register_forward_pre_hook(lambda module, given, who=who: seen.append((who, given[0].dtype)))
    both.advance(torch.arange(10).view(2, 5), torch.full((2,), 0.01, dtype=torch.float64))
    assert set(seen) == {(who, torch.int64) for who in ("model", "twin", "truth")}
    assert both.others[1].dtype == torch.float64


# What does not go together


@pytest.mark.sweep(3)
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("line", "model", "data", "instead"),
    [
        ("--model cell --dataset sample", "cell", "sample", {"mlp", "lenet5", "cnn"}),
        ("--model block --dataset sample", "block", "sample", {"mlp", "lenet5", "cnn"}),
        (f"--model mlp --dataset text --data-dir {TEXT}", "mlp", "text", {"cell", "block"}),
        (f"--preset small-cnn --dataset text --data-dir {TEXT}", "cnn", "text", {"cell", "block"}),
    ],
    ids=["cell", "block", "mlp", "cnn"],
)
def test_a_family_of_another_task_is_refused_in_one_sentence(
    line: str, model: str, data: str, instead: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, train.main, *line.split(), "--run-dir", tmp_path / "run")
    tasks = ["classification", "prediction of the next token"]
    able, asked = tasks if data == "text" else reversed(tasks)
    assert done.status == 2
    said, _, advised = one_sentence(done.err).partition(": give another --dataset, or --model ")
    assert said == f"train.py: --model {model} is for {able}, and the data set {data} is for {asked}"
    assert instead <= set(advised.split(", or --model "))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("registered")
def test_a_batch_of_more_streams_than_segments_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": "cell", "data_dir": TEXT, "examples": 100, "batch_size": 50, "run_dir": tmp_path / "run"}
    done = call(capsys, train.main, *flags(options))
    assert done.status == 2
    assert one_sentence(done.err).startswith("train.py: --batch-size is 50, but a text of 101 ids has 14 segments of 7")


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_scripts_about_classes_refuse_a_network_that_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    options = {"model": "cell", "data_dir": TEXT, "examples": 700, "max_steps": 2, "run_dir": run_dir}
    assert call(capsys, train.main, *flags(options)).status == 0
    for script, others in ((predict, ["--dataset", "text"]), (explain, [])):
        done = call(capsys, script.main, "--checkpoint", run_dir, *others)
        assert done.status == 2, script
        assert "this network is for prediction of the next token and has no classes: give" in one_sentence(done.err)
