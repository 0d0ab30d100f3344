"""What is of networks that read text alone: a bias that does nothing, generation, and what they are not for."""

import pytest
import torch

import predict
import train
from gradient_check import compare_gradients
from manual_backprop.models.recurrent import Recurrent
from manual_backprop.tape import Tape
from tests.support.networks import TEXTS, Problem
from tests.support.running import ROOT, call, flags, one_sentence
from training.families.text import TextProblem

TEXT = ROOT / "README.md"
CELL, BLOCK = (TEXTS[f"{name}, softmax-cross-entropy"] for name in ("cell", "block"))
DEEP = Problem(TextProblem("", "softmax-cross-entropy", Recurrent("lstm", (), 7, 6, 2, embedded=5), (5,), 7, ""), 4)
each_family = pytest.mark.parametrize("problem", [CELL, BLOCK, DEEP], ids=["cell", "block", "two layers of lstm"])


def test_the_key_biass_gradient_is_rounding():
    actual, expected = BLOCK.by_hand(), BLOCK.by_autograd()
    # dropout of P̃ is behind the softmax, so that the scores of a query still cancel
    assert [row.name for row in compare_gradients(actual, expected).failures] == ["∂C/∂k.bias"]
    zeros = BLOCK.zeros(expected)
    (size,) = zeros.values()
    assert actual["∂C/∂k.bias"].norm() < 1e-14 * size
    wrong = actual | {"∂C/∂k.bias": actual["∂C/∂k.bias"] + 1e-9}
    assert [row.name for row in compare_gradients(wrong, expected, zeros=zeros).failures] == ["∂C/∂k.bias"]


@pytest.mark.parametrize("pieces", [(1,) * 8, (3, 1, 4), (7, 1), (1, 7)], ids=str)
@each_family
def test_in_pieces_through_the_memory_equals_the_whole_pass(problem, pieces):
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


@pytest.mark.sweep(3)
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("model", "data"), [("cell", "sample"), ("block", "sample"), ("mlp", "text"), ("cnn", "text")])
def test_a_family_of_another_task_is_refused_in_one_sentence(model, data, tmp_path, capsys):
    start = ("--preset", "small-cnn") if model == "cnn" else ("--model", model)
    source = ("sample",) if data == "sample" else ("text", "--data-dir", TEXT)
    done = call(capsys, train.main, *start, "--dataset", *source, "--run-dir", tmp_path / "run")
    tasks = ["classification", "prediction of the next token"]
    able, asked = tasks if data == "text" else reversed(tasks)
    instead = {"cell", "block"} if data == "text" else {"mlp", "lenet5", "cnn"}
    assert done.status == 2
    said, _, advised = one_sentence(done.err).partition(": give another --dataset, or --model ")
    assert said == f"train.py: --model {model} is for {able}, and the data set {data} is for {asked}"
    assert instead <= set(advised.split(", or --model "))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("registered")
def test_a_batch_of_more_streams_than_segments_is_refused_in_one_sentence(tmp_path, capsys):
    options = {"model": "cell", "data_dir": TEXT, "examples": 100, "batch_size": 50, "run_dir": tmp_path / "run"}
    done = call(capsys, train.main, *flags(options))
    assert done.status == 2
    assert one_sentence(done.err).startswith("train.py: --batch-size is 50, but it must be at most 14: a text of 101")


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_predict_refuses_a_network_that_has_no_classes(tmp_path, capsys):
    run_dir = tmp_path / "run"
    options = {"model": "cell", "data_dir": TEXT, "examples": 700, "max_steps": 2, "run_dir": run_dir}
    assert call(capsys, train.main, *flags(options)).status == 0
    done = call(capsys, predict.main, "--checkpoint", run_dir, "x.png")
    assert done.status == 2
    assert "this network is for prediction of the next token and has no classes: give" in one_sentence(done.err)
