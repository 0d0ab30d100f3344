"""What holds of a run of any family, by hand, by autograd and in lock step: it learns, and goes on where it stopped."""

from collections.abc import Callable, Iterator
from functools import cache
from math import inf
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import predict
import train
import verify
from tests.support.problems import rates, relative_difference
from tests.support.run_cases import IN_TESTS_ONLY, NAMES, options_of, small_run
from tests.support.running import (
    assert_same,
    assert_same_run,
    at_poll,
    call,
    flags,
    learner_of,
    metrics,
    train_in_pieces,
    train_loop,
    values,
)
from tests.support.text.families import register
from training import checkpoint, loop
from training.families.networks import make_model, make_twin
from training.learners.checked import MAX_ERROR
from training.loop import NotFiniteError
from training.prediction import load_trained
from training.run import is_complete, load_config, load_data
from training.tasks import CLASSIFICATION, TASKS, task_of

Capsys = pytest.CaptureFixture[str]

IMPLS = ["manual", "reference", "both"]
QUICK = ("mlp", "cell")
each_family = pytest.mark.parametrize("name", NAMES)
each_family_slow = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
each_run = pytest.mark.parametrize(
    ("name", "impl"),
    [
        pytest.param(name, impl, marks=() if impl == "manual" or name == "mlp" else pytest.mark.slow)
        for name in NAMES
        for impl in IMPLS
    ],
)
Whole = Callable[[str, str], Path]


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register(patch, tmp_path_factory.mktemp("presets"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(registered: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The directory of the uninterrupted run of a family by an implementation; made when it is first asked for."""

    @cache
    def run(name: str, impl: str) -> Path:
        run_dir = tmp_path_factory.mktemp("whole")
        _, outcome = train_loop(*small_run(name, folder, impl=impl), run_dir)
        assert outcome.finished
        if impl == "both":
            assert outcome.proof.startswith(f"{outcome.steps} of {outcome.steps} steps agree")
        return run_dir

    return run


def undecided(name: str, folder: Path) -> set[str]:
    """Parameters whose gradient is zero in exact arithmetic: adam's steps of them have rounding's size and sign."""
    return {*getattr(make_model(*small_run(name, folder)), "zeros", {})}


def apart_from(names: set[str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.slow
@each_family_slow
def test_a_run_learns_and_logs_the_same_by_every_implementation(name: str, whole: Whole, folder: Path) -> None:
    config, data = small_run(name, folder)
    an_epoch, tags = data.train.steps(config.batch_size), task_of(data).metrics
    logged = {}
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
    assert {f"{metric.name}/test" for metric in tags} < found
    assert {f"{kind}/{key}" for key in parameters for kind in ("gradient_norm", "update_ratio")} < found
    assert saved["steps"] == 2 * an_epoch
    assert saved["model"].keys() >= parameters.keys()


@pytest.mark.slow
@each_family_slow
def test_by_hand_and_by_autograd_a_run_is_the_same_but_for_rounding(name: str, folder: Path, tmp_path: Path) -> None:
    for impl in ("manual", "reference"):
        train_loop(*small_run(name, folder, impl=impl, dtype="float64"), tmp_path / impl)
    one, other = (values(tmp_path / impl, "loss/test") for impl in ("manual", "reference"))
    assert other == pytest.approx(one, rel=1e-12, abs=0)
    zeros = undecided(name, folder)
    one, other = (apart_from(zeros, checkpoint.load(tmp_path / impl)["model"]) for impl in ("manual", "reference"))
    assert relative_difference(one, other) < 1e-10


@pytest.mark.sweep(4)
@each_run
def test_stopped_again_and_again_it_is_the_uninterrupted_run(
    name: str, impl: str, whole: Whole, folder: Path, tmp_path: Path
) -> None:
    """Bit for bit: running statistics, masks of dropout, moves of pictures and carried states included."""
    config, data = small_run(name, folder, impl=impl)
    stopped_at = train_in_pieces(config, data, tmp_path)
    an_epoch = data.train.steps(config.batch_size)
    assert {step // an_epoch for step in stopped_at if step % an_epoch} == {0, 1}, "in the middle of both epochs"
    assert_same_run(tmp_path, whole(name, impl))


def broken_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """The step with this number, counted from 0, is infinitely long."""
    patch.setattr(loop, "make_schedule", lambda *_: lambda t, total: inf if t == step else 1.0)


def names_the_step(step: int) -> "pytest.RaisesExc[NotFiniteError]":
    said = rf"^step {step}: the first value that is not finite is in the new .*; try a smaller --lr$"
    return pytest.raises(NotFiniteError, match=said)


@pytest.mark.slow
@each_run
def test_after_a_value_that_is_not_finite_the_last_good_checkpoint_goes_on(
    name: str, impl: str, whole: Whole, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where values were logged since."""
    config, data = small_run(name, folder, impl=impl)
    an_epoch = data.train.steps(config.batch_size)
    with monkeypatch.context() as patch:
        broken_at(an_epoch + 4, patch)
        with names_the_step(an_epoch + 5):
            train_loop(config, data, tmp_path)
    assert checkpoint.load(tmp_path)["steps"] == an_epoch
    assert metrics(tmp_path)[-1]["step"] > an_epoch
    train_loop(config, data, tmp_path)
    assert_same_run(tmp_path, whole(name, impl))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["mlp", "cell"])
def test_of_several_steps_taken_together_the_first_that_is_not_finite_is_named(
    name: str, impl: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third of the second epoch."""
    config, data = small_run(name, folder, impl=impl, log_every=99, histogram_every=0)
    an_epoch = data.train.steps(config.batch_size)
    broken_at(an_epoch + 2, monkeypatch)
    with names_the_step(an_epoch + 3):
        train_loop(config, data, tmp_path)
    assert checkpoint.load(tmp_path)["steps"] == an_epoch


# What is saved


@pytest.mark.sweep(4)
@each_run
def test_the_twin_loads_the_model_strictly(name: str, impl: str, whole: Whole, folder: Path) -> None:
    config, data = small_run(name, folder, impl=impl)
    saved = torch.load(whole(name, impl) / "last.pt", weights_only=True)
    twin = make_twin(make_model(config, data))
    twin.load_state_dict(saved["model"], strict=True)
    learner = learner_of(config, data)
    learner.load_state_dict(saved)
    x, _ = data.test.batch(torch.arange(11), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(x), learner.outputs(x), rtol=0, atol=1e-5)


@pytest.mark.sweep(3)
@each_family
def test_either_implementation_goes_on_from_the_others_checkpoint(name: str, folder: Path) -> None:
    """The optimizer's state, statistics and memory included: the next steps are the same up to rounding."""
    config, data = small_run(name, folder, dtype="float64")
    zeros, batch = undecided(name, folder), config.batch_size
    batches = data.train.order(0, 0, batch)[: 6 * batch].view(2, 3, batch)
    for saver, loader in (("manual", "reference"), ("reference", "manual")):
        one, other = (learner_of(small_run(name, folder, dtype="float64", impl=i)[0], data) for i in (saver, loader))
        one.advance(batches[0], rates(3, config.lr))
        other.load_state_dict(one.state_dict())
        assert_same(other.state_dict(), one.state_dict())
        for learner in (one, other):
            learner.advance(batches[1], rates(3, config.lr))
        for part in ("model", "memory"):
            left, right = (apart_from(zeros, learner.state_dict()[part]) for learner in (one, other))
            assert relative_difference(left, right) < 1e-11, (saver, part)


@each_family
def test_a_trained_network_predicts_for_another_batch_size(name: str, whole: Whole, folder: Path) -> None:
    _, data = small_run(name, folder)
    trained = load_trained(whole(name, "manual"))
    assert trained.config.model == name
    x, _ = data.test.batch(torch.arange(3), trained.dtype)
    outputs = trained.outputs(x)
    assert outputs.shape == (3 * data.train.targets, len(data.classes))
    one_by_one = torch.cat([trained.outputs(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(one_by_one, outputs, rtol=1e-4, atol=1e-5)
    assert trained.learner.memory == {}


def test_a_run_that_forgot_its_memory_would_not_go_on_the_same(whole: Whole, folder: Path, tmp_path: Path) -> None:
    """What the tests above would say, were the memory not saved."""
    run = small_run("cell", folder)
    train_loop(*run, tmp_path, stop=at_poll(5))
    saved = checkpoint.load(tmp_path)
    assert "h" not in saved["model"]
    assert saved["memory"]["h"].all()
    checkpoint.save({**saved, "memory": {}}, tmp_path / "last.pt")
    train_loop(*run, tmp_path)
    one, other = (checkpoint.load(run_dir)["model"] for run_dir in (tmp_path, whole("cell", "manual")))
    assert not torch.equal(one["cell.weight_h"], other["cell.weight_h"])


@pytest.mark.slow
def test_a_run_has_what_it_is_meant_to_show(whole: Whole) -> None:
    """Statistics, a memory and an optimizer's state that are not as in the beginning."""
    cnn, cell, block = (checkpoint.load(whole(name, "manual")) for name in ("cnn", "cell", "block"))
    assert cnn["model"]["stage2.block1.norm2.num_batches_tracked"].item() == cnn["steps"] == 14
    assert not torch.equal(cnn["model"]["stage1.norm.running_var"], torch.ones(3))
    assert cell["memory"].keys() == {"h"}
    assert cell["memory"]["h"].all()
    assert block["memory"] == {}


# The scripts


HPARAMS = {
    "classification": ["hparam/accuracy", "hparam/loss"],
    "prediction of the next token": ["hparam/loss", "hparam/perplexity"],
}
HISTOGRAMS = {
    "mlp": {"weights/layer1", "biases/layer3", "deltas/layer2", "activations/layer1"},
    "cell": {"weights/embedding", "parameters/cell.weight_h", "biases/cell", "deltas/cell[6]", "deltas/output"},
    "block": {"weights/wte", "biases/k", "deltas/attention", "deltas/head", "activations/fc", "gradients/q.weight"},
}


@pytest.mark.long
@each_family
def test_by_the_scripts(name: str, tmp_path: Path, capsys: Capsys) -> None:
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
    assert task.figures or tags["images"] == ["images/gradient_by_depth"]
    assert (run_dir / "curves.png").stat().st_size > 10_000
    assert list(metrics(run_dir)[-1]) == ["step", *HPARAMS[task.name]]
    assert is_complete(run_dir, 13, task)
    assert HISTOGRAMS.get(name, set()) < {*tags["histograms"]}

    done = call(capsys, verify.main, "--checkpoint", run_dir, "--seeds", 2)
    assert (done.status, done.err) == (0, "")
    assert f"{name} after 13 steps, {saved['data']['name']}" in " ".join(done.out.split())
    assert "comparisons agree" in done.out
    if task is CLASSIFICATION:
        done = call(capsys, predict.main, "--checkpoint", run_dir, "--dataset", saved["data"]["name"])
        assert (done.status, done.err) == (0, "")
        assert f"{saved['progress']['latest']:.2%}" in done.out


@pytest.mark.parametrize("name", IN_TESTS_ONLY)
def test_verify_passes(name: str, capsys: Capsys) -> None:
    for dtype in ("float64", "float32"):
        done = call(capsys, verify.main, "--model", name, "--seeds", 3, "--dtype", dtype)
        assert (done.status, done.err) == (0, "")
        assert "comparisons agree" in done.out


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lion", "muon"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", IN_TESTS_ONLY)
def test_no_false_alarm_over_a_hundred_steps(name: str, dtype: str, optimizer: str, folder: Path) -> None:
    config, data = small_run(name, folder, impl="both", dtype=dtype, optimizer=optimizer, lr=0.01)
    both, batch = learner_of(config, data), config.batch_size
    steps = len(data.train) // batch
    batches = data.train.order(0, 0, batch)[: batch * steps].view(steps, batch)
    while both.steps < 100:
        both.forget()
        assert both.advance(batches, rates(steps, 0.3 if optimizer == "sgd" else 0.01)).isfinite().all()
    assert both.proof is not None
    assert both.proof.steps == both.steps
