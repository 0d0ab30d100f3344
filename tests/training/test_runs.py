"""What holds of a run of any family, by hand, by autograd and in lock step: it learns, and goes on where it stopped."""

import weakref
from dataclasses import replace
from functools import cache
from math import inf, log
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import predict
import train
import verify
from tests.support import running
from tests.support.run_cases import NAMES, options_of, small_run
from tests.support.running import assert_same, assert_same_run, call, flags, learner_of, metrics, train_loop, values
from training import checkpoint, evaluation, loop
from training.evaluation import Evaluation, evaluate
from training.evaluation.watch import Watch
from training.learners.checked import MAX_ERROR
from training.loop import NotFiniteError
from training.prediction import load_trained
from training.run import Result, is_complete, load_config, load_data
from training.tasks import NEXT_TOKEN, TASKS, task_of

IMPLS = ["manual", "reference", "both"]
slow = pytest.mark.slow
each_family = pytest.mark.parametrize("name", NAMES)
each_run = pytest.mark.parametrize(
    ("name", "impl"),
    [pytest.param(n, i, marks=() if i == "manual" or n == "mlp" else slow) for n in NAMES for i in IMPLS],
)
pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(registered, folder, tmp_path_factory):
    """The directory of the uninterrupted run of a family by an implementation; made when it is first asked for."""

    @cache
    def run(name, impl):
        run_dir = tmp_path_factory.mktemp("whole")
        _, outcome = train_loop(*small_run(name, folder, impl=impl), run_dir)
        assert outcome.finished
        if impl == "both":
            assert outcome.proof.startswith(f"{outcome.steps} of {outcome.steps} steps agree")
        return run_dir

    return run


@slow
@each_family
def test_a_run_learns_and_logs_the_same_by_every_implementation(name, whole, folder):
    config, data = small_run(name, folder)
    an_epoch, logged = data.train.steps(config.batch_size), {}
    for impl in IMPLS:
        assert list(values(whole(name, impl), "loss/test")) == [0, an_epoch, 2 * an_epoch]
        first, *_, last = values(whole(name, impl), "loss/train").values()
        assert last < 0.97 * first
        logged[impl] = [(line["step"], {*line} - {"step"}) for line in metrics(whole(name, impl))]
    assert logged["manual"] == logged["reference"]
    assert [(step, found - {MAX_ERROR}) for step, found in logged["both"]] == logged["manual"]

    saved = checkpoint.load(whole(name, "manual"))
    assert_same(saved["model"], checkpoint.load(whole(name, "both"))["model"])
    steps = [step for step, found in logged["manual"] if "loss/train" in found]
    assert steps == list(range(4, 2 * an_epoch + 1, 4))
    found = set().union(*(found for _, found in logged["manual"]))
    parameters = learner_of(config, data).parameters
    assert {f"{metric.name}/test" for metric in task_of(data).metrics} < found
    assert {f"{kind}/{key}" for key in parameters for kind in ("gradient_norm", "update_ratio")} < found
    assert saved["steps"] == 2 * an_epoch
    assert saved["model"].keys() >= parameters.keys()


@pytest.mark.sweep(4)
@each_run
def test_stopped_again_and_again_it_is_the_uninterrupted_run(name, impl, whole, folder, tmp_path):
    """Bit for bit: running statistics, masks of dropout, moves of pictures and carried states included."""
    config, data = small_run(name, folder, impl=impl)
    stopped_at = running.train_in_pieces(config, data, tmp_path)
    an_epoch = data.train.steps(config.batch_size)
    assert {step // an_epoch for step in stopped_at if step % an_epoch} == {0, 1}, "in the middle of both epochs"
    assert_same_run(tmp_path, whole(name, impl))


@slow
@each_run
def test_after_a_value_that_is_not_finite_the_last_checkpoint_goes_on(name, impl, whole, folder, tmp_path, monkeypatch):
    """Also where values were logged since."""
    config, data = small_run(name, folder, impl=impl)
    an_epoch = data.train.steps(config.batch_size)
    said = rf"^step {an_epoch + 5}: the first value that is not finite is in the new .*; try a smaller --lr "
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_schedule", lambda *_: lambda t, total: inf if t == an_epoch + 4 else 1.0)
        with pytest.raises(NotFiniteError, match=said):
            train_loop(config, data, tmp_path)
    assert checkpoint.load(tmp_path)["steps"] == an_epoch
    assert metrics(tmp_path)[-1]["step"] > an_epoch
    train_loop(config, data, tmp_path)
    assert_same_run(tmp_path, whole(name, impl))


@each_family
def test_a_trained_network_predicts_for_another_batch_size(name, whole, folder):
    _, data = small_run(name, folder)
    trained = load_trained(whole(name, "manual"))
    assert trained.config.model == name
    x, _ = data.test.batch(torch.arange(3), trained.dtype)
    outputs = trained.outputs(x)
    assert outputs.shape == (3 * data.train.targets, len(data.classes))
    one_by_one = torch.cat([trained.outputs(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(one_by_one, outputs, rtol=1e-4, atol=1e-5)
    assert trained.learner.memory == {}


def test_a_run_that_forgot_its_memory_would_not_go_on_the_same(whole, folder, tmp_path):
    """What the tests above would say, were the memory not saved."""
    run = small_run("cell", folder)
    train_loop(*run, tmp_path, stop=running.at_poll(5))
    saved = checkpoint.load(tmp_path)
    assert ({*saved["memory"]}, "h" in saved["model"]) == ({"h"}, False)
    assert saved["memory"]["h"].all()
    checkpoint.save({**saved, "memory": {}}, tmp_path / "last.pt")
    train_loop(*run, tmp_path)
    one, other = (checkpoint.load(run_dir)["model"] for run_dir in (tmp_path, whole("cell", "manual")))
    assert not torch.equal(one["cell.weight_h"], other["cell.weight_h"])


@slow
def test_a_run_has_what_it_is_meant_to_show(whole):
    """Statistics that are not as in the beginning, and a memory where there is one to carry."""
    cnn, block = (checkpoint.load(whole(name, "manual")) for name in ("cnn", "block"))
    assert cnn["model"]["stage2.block1.norm2.num_batches_tracked"].item() == cnn["steps"] == 14
    assert not torch.equal(cnn["model"]["stage1.norm.running_var"], torch.ones(3))
    assert block["memory"] == {}


HPARAMS = {
    "classification": ["hparam/accuracy", "hparam/loss"],
    "prediction of the next token": ["hparam/bits", "hparam/loss"],
}
HISTOGRAMS = {
    "mlp": {"weights/layer1", "biases/layer3", "deltas/layer2", "activations/layer1"},
    "cell": {"weights/embedding", "parameters/cell.weight_h", "biases/cell", "deltas/cell[6]", "deltas/output"},
    "block": {"weights/wte", "biases/k", "deltas/attention", "deltas/head", "activations/fc", "gradients/q.weight"},
}


@pytest.mark.long
@each_family
def test_by_the_scripts(name, tmp_path, capsys):
    """A run in lock step is ended at step 10 and gone on with, looked at, verified and asked."""
    run_dir = tmp_path / "run"
    options = options_of(name, tmp_path) | {"impl": "both", "run_dir": run_dir}
    for steps, given in ((10, options), (13, {"resume": run_dir})):
        done = call(capsys, train.main, *flags({**given, "max_steps": steps}))
        assert (done.status, done.err) == (0, "")
        assert done.out.splitlines()[-1].startswith(f"{steps} of {steps} steps agree; largest error ")
    config, saved = load_config(run_dir), checkpoint.load(run_dir)
    train_loop(config, load_data(config), tmp_path / "whole")
    for part in ("model", "optimizer", "memory", "steps"):
        assert_same(saved[part], checkpoint.load(tmp_path / "whole")[part], part)

    tags, task = EventAccumulator(str(run_dir)).Reload().Tags(), TASKS[saved["data"]["task"]]
    assert {"loss/train", MAX_ERROR, *(f"{metric.name}/test" for metric in task.metrics)} < {*tags["scalars"]}
    own, every = ({metric.name for one in tasks for metric in one.metrics} for tasks in ([task], TASKS.values()))
    assert not [tag for tag in tags["scalars"] if tag.partition("/")[0] in every - own]
    assert "images/gradient_by_depth" in tags["images"]
    of_all = [tag for tag in tags["images"] if not tag.startswith("by_step/")]  # which recurrent networks have
    assert task.figures or of_all == ["images/gradient_by_depth"]
    assert (run_dir / "curves.png").stat().st_size > 10_000
    assert list(metrics(run_dir)[-1]) == ["step", *HPARAMS[task.name]]
    assert is_complete(run_dir, 13, task)
    assert HISTOGRAMS.get(name, set()) < {*tags["histograms"]}

    done = call(capsys, verify.main, "--checkpoint", run_dir, "--seeds", 2)
    assert (done.status, done.err) == (0, "")
    assert f"{name} after 13 steps, {saved['data']['name']}" in " ".join(done.out.split())
    assert "comparisons agree" in done.out
    done = call(capsys, predict.main, "--checkpoint", run_dir, "--dataset", saved["data"]["name"])
    assert (done.status, done.err) == (0, "")
    assert f"{task.headline.name} {task.headline.shown(saved['progress']['latest'])}\n" in done.out


# On a text: steps, evaluation, what decides and what is logged


def run_of(name, folder, **changes):
    """On a text of 297 letters, of which each but every seventh is the one before plus one, and 33 more for testing."""
    path = folder / "letters.txt"
    path.write_text("".join("abcde"[(i + i // 7) % 5] for i in range(330)))
    config = replace(small_run(name, Path())[0], data_dir=str(path), examples=0, **changes)
    data = load_data(config)
    return running.resolved(config, data), data


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [1, 5, 99])
@pytest.mark.parametrize(("name", "sizes"), [("cell", [5] * 8), ("block", [5] * 7 + [2])])
def test_an_epoch_takes_all_that_the_text_gives(name, sizes, log_every, tmp_path, taken):
    """42 segments of 7 in 5 streams leave two out, 37 windows of 8 none; steps go together, or each alone."""
    config, data = run_of(name, tmp_path, log_every=log_every)
    train_loop(config, data, tmp_path / "run")
    assert [len(batch) for batch in taken[0]] == sizes * 2
    orders = [data.train.order(0, epoch, 5).tolist() for epoch in (0, 1)]
    assert [i for batch in taken[0] for i in batch] == [*orders[0], *orders[1]]
    assert list(values(tmp_path / "run", "loss/test")) == [0, 8, 16]


def test_the_headline_is_bits_and_less_is_better(tmp_path):
    _, outcome = train_loop(*run_of("cell", tmp_path), tmp_path / "run")
    bits = values(tmp_path / "run", "bits/test")
    assert bits[16] < bits[8] < bits[0] < 3
    assert (outcome.latest, outcome.best) == (bits[16], bits[16])
    assert checkpoint.load(tmp_path / "run" / "best.pt")["steps"] == 16
    assert outcome.headline == f"test bits {bits[16]:.3f} (best {bits[16]:.3f})"
    summary = Result(outcome, tmp_path, 1.0, 0).summary
    assert summary.startswith(outcome.headline + " after 1.0 s")
    assert "accuracy" not in summary

    last = [line for line in metrics(tmp_path / "run") if "loss/test" in line][-1]
    assert list(last) == ["step", "loss/test", "bits/test", "bits/train"]
    assert last["bits/test"] == pytest.approx(last["loss/test"] / log(2))
    assert not any("accuracy" in tag for line in metrics(tmp_path / "run") for tag in line)


@pytest.mark.parametrize(("block", "rows"), [(2000, 28), (21, 14), (1, 7)])
def test_an_evaluation_carries_the_state_counts_targets_and_keeps_none_of_a_text(block, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", block)
    config, data = run_of("cell", tmp_path, dtype="float64")
    learner, given, sizes = learner_of(config, data), [], []
    x, y = data.test.batch(torch.arange(len(data.test)), torch.float64)
    streams = x.reshape(rows // 7, -1)  # each is read as one long sequence
    expected = torch.nn.functional.cross_entropy(learner.outputs(streams), y).item()
    right = learner.evaluate

    def watched(*block):
        evaluated = right(*block)
        given.append(weakref.ref(evaluated.outputs))
        sizes.append(len(evaluated.outputs))
        return evaluated

    def only_the_last_is_kept():
        assert not any(output() is not None for output in given[:-1])
        return False

    monkeypatch.setattr(learner, "evaluate", watched)
    result = evaluate(learner, data.test, torch.float64, only_the_last_is_kept, NEXT_TOKEN)
    assert result.loss == pytest.approx(expected)
    assert result.values["bits"] == pytest.approx(expected / log(2))
    assert (max(sizes), sum(sizes)) == (rows, 28)
    assert len(result.outputs) == len(result.labels) == 0


def test_patience_follows_the_bits_and_halving_too(tmp_path):
    _, outcome = train_loop(*run_of("cell", tmp_path, patience=2, validation=30, lr=0.3, epochs=50), tmp_path / "run")
    bits = list(values(tmp_path / "run", "bits/test").values())[1:]
    assert (outcome.finished, outcome.early) == (True, "no better bits for 2 epochs")
    assert len(bits) == bits.index(min(bits)) + 1 + 2
    assert outcome.best == min(bits)

    halving = {"schedule": "halve", "lr_epochs": 1, "validation": 30, "epochs": 4}
    train_loop(*run_of("cell", tmp_path, **halving), tmp_path / "halved")
    losses = list(values(tmp_path / "halved", "loss/test").values())[1:]
    assert losses == sorted(losses, reverse=True), "it gets better all the time, so nothing is halved"
    assert checkpoint.load(tmp_path / "halved")["progress"]["plateau"]["scale"] == 1


HARDLY = (
    "this run does not learn so far: the cost of the training examples has hardly moved from 1.6. "
    "Try a smaller --lr (not 0.005), or another --optimizer or --seed"
)
COSTS = {
    "does not fall": (1000, {0: 1.6, 200: 1.6, 300: 1.6}, HARDLY),
    "keeps rising": (1000, {0: 9.0, 100: 1.0, 200: 1.2, 300: 1.4, 400: 1.6, 500: 1.7}, "it was 1, and is 1.7"),
    "falls": (300, {0: 1.6, 100: 1.4, 200: 1.3, 300: 1.2}, ""),
}


@pytest.mark.parametrize(("total", "losses", "told"), COSTS.values(), ids=COSTS)
def test_of_a_text_only_the_cost_is_watched(total, losses, told, tmp_path):
    see, nothing = Watch(*run_of("cell", tmp_path), total, {}), torch.empty(0)
    said = []
    for step, loss in losses.items():
        evaluated = Evaluation({"loss": loss, "bits": loss / log(2)}, nothing, nothing.long())
        said.append(see(step, evaluated, lambda x: pytest.fail("activations are not looked at")))
    assert not any(said[:-1])
    assert bool(said[-1]) == bool(told)
    assert told in said[-1]
