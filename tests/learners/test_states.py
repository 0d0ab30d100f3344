"""What a learner holds, in every family: states pass between implementations, and only a step moves them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gradient_check import compare_gradients
from manual_backprop.losses import LOSSES
from tests.support.lockstep import NAMES, advance, batches, every_implementation, learner, small
from tests.support.problems import METHODS, relative_difference
from tests.support.running import assert_same, train_loop
from training import checkpoint
from training.config import Config
from training.data import Dataset
from training.learners.checked import CheckedLearner
from training.learners.manual import ManualLearner
from training.loop import Loop, NotFiniteError

each_family = pytest.mark.parametrize("name", NAMES)
each_family_and_method = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(name, {}, id=name) for name in NAMES]
    + [pytest.param("mlp", {"l2": 0.01, **method}, id=f"mlp, {title}") for title, method in METHODS.items()],
)
manual_and_reference = pytest.mark.parametrize("impl", ["manual", "reference"])


# From one learner to another


@pytest.mark.sweep(4)
@each_family_and_method
def test_what_is_checked_is_what_is_trained(name: str, options: dict[str, Any]) -> None:
    """A checked run takes exactly the steps that an unchecked one takes."""
    alone, both = (learner(name, impl, torch.float32, **options) for impl in ("manual", "both"))
    assert torch.equal(advance(alone, 3), advance(both, 3))
    assert_same(both.state_dict(), alone.state_dict())


@each_family_and_method
def test_a_state_passes_strictly_from_one_to_the_other_and_back(name: str, options: dict[str, Any]) -> None:
    """And both go on from it in the same way."""
    manual, reference, fresh = (learner(name, impl, **options) for impl in ("manual", "reference", "manual"))
    advance(manual, 3)
    reference.load_state_dict(manual.state_dict())
    assert_same(reference.state_dict(), manual.state_dict())
    fresh.load_state_dict(reference.state_dict())
    assert_same(fresh.state_dict(), manual.state_dict())
    for one in (reference, fresh):
        advance(one, 3)
    mine, theirs = fresh.state_dict(), reference.state_dict()
    assert mine["steps"] == theirs["steps"] == 6
    limit = 1e-13 if name == "mlp" else 1e-11
    for part in ("model", "memory", *mine["optimizer"]):
        one, other = (state["optimizer"].get(part) or state[part] for state in (mine, theirs))
        assert one.keys() == other.keys()
        moving = one.keys() - fresh.zeros.keys()  # adam makes steps of the size and sign of rounding of what is zero
        assert relative_difference({k: one[k] for k in moving}, {k: other[k] for k in moving}) < limit, part


def without(part: dict[str, Any], name: str) -> None:
    del part[name]


def transposed(part: dict[str, Any], name: str) -> None:
    part[name] = part[name].T


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "no weight": (lambda state: without(state["model"], "layer1.weight"), "layer1.weight"),
    "another weight": (lambda state: state["model"].update({"layer9.weight": torch.zeros(1)}), "layer9.weight"),
    "a weight transposed": (lambda state: transposed(state["model"], "layer1.weight"), "layer1.weight"),
    "no mean of a bias": (lambda state: without(state["optimizer"]["mean"], "layer1.bias"), "layer1.bias"),
    "a mean transposed": (lambda state: transposed(state["optimizer"]["mean"], "layer1.weight"), "layer1.weight"),
    "a velocity": (
        lambda state: state["optimizer"].update(velocity=state["optimizer"]["mean"]),
        "the optimizer's state is mean, square_mean, velocity, but here",
    ),
    "no optimizer": (lambda state: state["optimizer"].clear(), "the optimizer's state is empty, but here"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
@manual_and_reference
def test_a_state_that_does_not_fit_is_refused(impl: str, change: Callable[[Any], None], named: str) -> None:
    one = learner("mlp", impl, optimizer="adam")
    state = one.state_dict()
    change(state)
    with pytest.raises(ValueError, match=named):
        one.load_state_dict(state)


@manual_and_reference
def test_a_state_without_a_running_statistic_is_refused(impl: str) -> None:
    one = learner("cnn", impl)
    state = one.state_dict()
    del state["model"]["stage1.norm.running_var"]
    with pytest.raises(ValueError, match=r"stage1\.norm\.running_var"):
        one.load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(name, {}, id=name) for name in NAMES]
    + [pytest.param("mlp", {"activation": ("tanh", "tanh", "identity"), "loss": loss}, id=loss) for loss in LOSSES]
    + [pytest.param("mlp", {"label_smoothing": 0.15}, id="smoothed")],
)
def test_evaluation_says_the_same_whoever_evaluates(name: str, options: dict[str, Any]) -> None:
    manual, *others = every_implementation(name, **options)
    advance(manual, 3)
    x, y = manual.batch(torch.arange(9))
    C, outputs = manual.evaluate(x, y)
    for other in others:
        other.load_state_dict(manual.state_dict())
        expected, expected_outputs = other.evaluate(x, y)
        compare_gradients({"C": C, "z": outputs}, {"C": expected, "z": expected_outputs}).assert_passed()
        assert torch.equal(other.outputs(x), expected_outputs)
    one_by_one = torch.cat([manual.outputs(x[i : i + 1]) for i in range(9)])
    assert_close(one_by_one, outputs, rtol=1e-11, atol=1e-13)
    if name == "mlp":  # which is the same network in training
        assert_close(C / len(y), manual.backpropagate(x, y).loss, rtol=1e-13, atol=0)


# What a step moves, and nothing else does


@pytest.mark.sweep(4)
@each_family
def test_only_a_step_moves_a_learner(name: str) -> None:
    for one in every_implementation(name):
        advance(one, 2)
        before = one.state_dict()
        for rows in (5, 3):  # also where the memory is of another batch size
            x, y = one.batch(torch.arange(rows))
            one.evaluate(x, y)
            one.outputs(x)
            one.activations(x)
        result = one.backpropagate(*one.batch(batches(one, 2, 1)[0]))
        assert_same(one.state_dict(), before)

        if type(one) is not CheckedLearner:  # what a step hands on is what the pass left
            left = {"model": result.buffers, "memory": result.memory if one.train.carries else {}}
            left = {part: {key: tensor.clone() for key, tensor in of.items()} for part, of in left.items()}
            one.apply(result, torch.tensor(0.01, dtype=torch.float64))
            after = one.state_dict()
            assert_same({key: after["model"][key] for key in left["model"]}, left["model"])
            assert_same(after["memory"], left["memory"])
        else:
            advance(one, 1)
            after = one.state_dict()
            assert bool(after["memory"]) == one.manual.train.carries
        assert after["steps"] == 3
        still = {
            key for part in ("model", "memory") for key, v in after[part].items() if torch.equal(v, before[part][key])
        }
        assert not still, f"a step moves {still}"


# The carried state


def h(of: Any) -> Tensor | None:
    memory = of.state_dict()["memory"]
    assert memory.keys() <= {"h"}
    return memory.get("h")


@manual_and_reference
def test_what_is_handed_on_is_what_the_next_step_begins_with(impl: str) -> None:
    """Two segments of 7 in a row cost together what one of 14 does, where nothing is learned in between."""
    apart, whole = learner("cell", impl), learner("cell", impl, context=14)
    losses = apart.advance(batches(apart, 0, 2)[:, :1], torch.zeros(2, dtype=torch.float64))
    expected = whole.advance(batches(whole, 0, 1)[:, :1], torch.zeros(1, dtype=torch.float64))
    assert_close(losses.mean(), expected[0], rtol=1e-13, atol=0)
    assert_close(h(apart), h(whole), rtol=1e-12, atol=1e-14)


def test_evaluation_begins_from_zero() -> None:
    for one in every_implementation("cell"):
        x, _ = one.batch(torch.arange(5))
        advance(one, 2)
        with_memory = one.outputs(x)
        one.forget()
        assert h(one) is None
        assert torch.equal(one.outputs(x), with_memory)


def test_a_new_epoch_begins_without_what_the_last_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    right = ManualLearner.advance

    def watched(self: ManualLearner, indices: Tensor, rates: Tensor) -> Tensor:
        begun.append((self.steps, bool(self.memory)))
        return right(self, indices, rates)

    monkeypatch.setattr(ManualLearner, "advance", watched)
    config, data = small("cell", epochs=2, log_every=3)
    train_loop(config, data, tmp_path / "run")
    assert [step for step, carried in begun if not carried] == [0, data.train.steps(5)]


@pytest.mark.parametrize("impl", ["manual", "reference", "both"])
def test_where_a_value_is_not_finite_the_steps_are_repeated_from_the_memory_before(
    impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = small("cell", impl, torch.float32, optimizer="sgd", epochs=2, eval_every=5)
    memory, saved = replayed(config, data, tmp_path / "run", 6, monkeypatch)
    assert saved["steps"] == 5
    assert_same(memory, saved["memory"])


def test_at_the_beginning_of_an_epoch_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = small("cell", dtype=torch.float32, optimizer="sgd", epochs=2)
    memory, saved = replayed(config, data, tmp_path / "run", data.train.steps(5), monkeypatch)
    assert saved["steps"] == data.train.steps(5)
    assert saved["memory"]
    assert memory == {}


def replayed(
    config: Config, data: Dataset, run_dir: Path, broken: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], Any]:
    """The memory with which the steps are repeated, and the last checkpoint; `broken` is the first step too large."""
    seen: list[dict[str, Tensor]] = []
    examine = Loop.examine

    def remember(self: Loop, indices: Tensor) -> Any:
        seen.append(self.learner.state_dict()["memory"])
        return examine(self, indices)

    def breaking(self: Loop, steps: int) -> Tensor:
        first = self.learner.steps
        return torch.tensor([1e38 if first + i >= broken else 0.01 for i in range(steps)], dtype=torch.float64)

    monkeypatch.setattr(Loop, "examine", remember)
    monkeypatch.setattr(Loop, "learning_rates", breaking)
    message = rf"^step ({broken + 1}|{broken + 2}): the first value that is not finite is in"
    with pytest.raises(NotFiniteError, match=message):
        train_loop(replace(config, log_every=100, histogram_every=0), data, run_dir)
    return seen[0], checkpoint.load(run_dir)


# Noise


def masks_of(one: Any) -> dict[tuple[int, str], Tensor]:
    """Fills with every mask that the learner asks for, by the steps taken and the call."""
    draw, found = one.noise, {}

    def noise(steps: int, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        def remember(call: str, shape: tuple[int, ...], keep: float) -> Tensor:
            found[steps, call] = draw(steps, device, dtype)(call, shape, keep)
            return found[steps, call]

        return remember

    one.noise = noise
    return found


MASKS = {
    "mlp": {"layer1.dropout": (13, 12), "layer2.dropout": (13, 9)},
    "cnn": {"dropout": (13, 4)},
    "block": {"wte.dropout": (5, 8, 12), "attention": (5, 3, 8, 8), "project.dropout": (5, 8, 12)},
}


@pytest.mark.parametrize(("name", "shapes"), MASKS.items(), ids=MASKS)
def test_masks_are_drawn_by_the_calls_name_the_same_for_both(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    manual, reference = (learner(name, impl, dropout=0.2, seed=2) for impl in ("manual", "reference"))
    one, other = masks_of(manual), masks_of(reference)
    advance(manual, 1)
    between = manual.state_dict()
    advance(manual, 1)
    advance(reference, 2)
    assert {key: tuple(mask.shape) for key, mask in one.items()} == {
        (step, call): shape for step in range(2) for call, shape in shapes.items()
    }
    assert_same(dict(sorted(one.items())), dict(sorted(other.items())))
    assert 0.7 < torch.cat([mask.flatten() for mask in one.values()]).mean() < 0.9

    resumed, elsewhere = learner(name, dropout=0.2, seed=2), learner(name, dropout=0.2, seed=3)
    resumed.load_state_dict(between)
    rest, others = masks_of(resumed), masks_of(elsewhere)
    advance(resumed, 1)
    assert_same(rest, {key: mask for key, mask in one.items() if key[0] == 1})
    advance(elsewhere, 1)
    for call in shapes:
        assert not torch.equal(one[0, call], one[1, call]), "of another step"
        assert not torch.equal(one[0, call], others[0, call]), "of another seed"
    if name == "block":
        assert not torch.equal(one[0, "wte.dropout"], one[0, "project.dropout"]), "of another call"


@manual_and_reference
@pytest.mark.parametrize("name", MASKS)
def test_evaluation_asks_for_no_noise(name: str, impl: str) -> None:
    one = learner(name, impl, dropout=0.2)
    found = masks_of(one)
    x, y = one.batch(torch.arange(5))
    one.evaluate(x, y)
    one.activations(x)
    assert not found
    one.backpropagate(x, y)
    assert found
