"""Two small families that predict text, in the contracts that the perceptron is in, and checked exactly as it is.

What they add to it: whole numbers as x, a state that is carried from batch to batch, a layer called several times, a
weight used twice, masks of more than two dimensions, a gradient that is zero in exact arithmetic, generation.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import train
import verify
from gradient_check import compare_gradients
from manual_backprop.tape import Tape
from tests.support.both_ways import (
    LOSSES,
    TWIN_LOSSES,
    assert_central_differences_agree,
    assert_not_trivial,
    by_autograd,
    by_hand,
    by_twin,
    random_parameters,
)
from tests.support.running import (
    ROOT,
    assert_same,
    call,
    flags,
    learner_of,
    metrics,
    one_sentence,
    resolved,
    train_loop,
    values,
)
from tests.support.text.families import register
from tests.support.text.layers import attention, embedding, matmul, recurrent_cell
from tests.support.text.recurrent import Recurrent, RecurrentTwin
from tests.support.text.transformer import Transformer, TransformerTwin
from training import checkpoint
from training.config import Config
from training.data import Dataset, load
from training.data.noise import dropout_noise
from training.families.networks import arranged
from training.learners.base import Learner
from training.learners.checked import MAX_ERROR, CheckedLearner, GradientMismatch
from training.learners.manual import ManualLearner
from training.loop import Loop, NotFiniteError
from training.prediction import load_trained

TEXT = ROOT / "README.md"
LOSS = "softmax-cross-entropy"
NAMES = ["cell", "block"]
each_family = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


# One pass at random parameters


@dataclass(frozen=True)
class Case:
    """A model with its twin at random parameters, and a batch with all that a pass is also given."""

    model: Any
    twin: nn.Module
    ids: Tensor
    targets: Tensor
    memory: dict[str, Tensor]

    @property
    def parameters(self) -> dict[str, Tensor]:
        return random_parameters(self.model, seed=4, gain=1.5)

    def pass_on(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        noise = dropout_noise(seed=3)(7, torch.device("cpu"), dtype)
        return {"memory": {name: tensor.to(dtype) for name, tensor in self.memory.items()}, "noise": noise}

    def summands(self, gradients: dict[str, Tensor]) -> dict[str, float]:
        """For each gradient that is zero in exact arithmetic, the size of what cancels in it."""
        zeros = getattr(self.model, "zeros", {})
        return {f"∂C/∂{name}": sum(gradients[f"δ {d}"].norm().item() for d in of) for name, of in zeros.items()}


def case(name: str) -> Case:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 7, (4, 6), generator=generator)
    x, y = ids[:, :-1], ids[:, 1:].flatten()
    if name == "block":
        model = Transformer(vocabulary=7, context=8, width=6, heads=2, dropout=0.3)
        return Case(model, TransformerTwin(model), x, y, {})
    cell = Recurrent(vocabulary=7, embedded=3, hidden=6)
    memory = {"h": torch.rand(4, 6, generator=generator, dtype=torch.float64) - 0.5}
    return Case(cell, RecurrentTwin(cell), x, y, memory)


@each_family
def test_equals_autograd_through_the_same_forward(name: str) -> None:
    one = case(name)
    for loss in LOSSES.values():
        given = (one.model, loss, one.parameters, one.ids, one.targets)
        actual, expected = by_hand(*given, **one.pass_on()), by_autograd(*given, **one.pass_on())
        assert_not_trivial(expected)
        compare_gradients(actual, expected, zeros=one.summands(actual)).assert_passed()


@each_family
def test_equals_the_twin(name: str) -> None:
    one = case(name)
    for loss, by_torch in TWIN_LOSSES.items():
        batch = (one.parameters, one.ids, one.targets)
        actual = by_hand(one.model, LOSSES[loss], *batch, **one.pass_on())
        expected = by_twin(one.twin, by_torch, *batch, **one.pass_on())
        assert_not_trivial(expected)
        compare_gradients(actual, expected, zeros=one.summands(actual)).assert_passed()


@each_family
def test_in_single_precision_is_as_close_to_the_truth_as_the_twin_is(name: str) -> None:
    one = case(name)
    single = {key: tensor.float() for key, tensor in one.parameters.items()}
    exact = {key: tensor.double() for key, tensor in single.items()}
    given = one.pass_on(torch.float32)
    actual = by_hand(one.model, LOSSES[LOSS], single, one.ids, one.targets, **given)
    expected = by_twin(one.twin, TWIN_LOSSES[LOSS], single, one.ids, one.targets, **given)
    given = one.pass_on() | {"memory": {key: tensor.double() for key, tensor in given["memory"].items()}}
    truth = by_twin(case(name).twin, TWIN_LOSSES[LOSS], exact, one.ids, one.targets, **given)
    assert {tensor.dtype for tensor in actual.values()} == {torch.float32}
    compare_gradients(actual, expected, truth=truth, zeros=one.summands(actual)).assert_passed()


@each_family
def test_equals_central_differences(name: str) -> None:
    one = case(name)
    assert_central_differences_agree(one.model, LOSSES[LOSS], one.parameters, one.ids, one.targets, **one.pass_on())


def test_every_call_has_a_delta_of_its_own() -> None:
    for name, calls in {
        "cell": {"embedding", "linear", *(f"cell[{t}]" for t in range(5))},
        "block": {"wte", "wpe", *"qkv", "attention", "project", "fc", "fc.a", "head", "wte.dropout"},
    }.items():
        one = case(name)
        found = by_hand(one.model, LOSSES[LOSS], one.parameters, one.ids, one.targets, **one.pass_on())
        assert {f"δ {call}" for call in calls} < found.keys()


def test_every_delta_but_the_first_has_an_equation() -> None:
    for name in NAMES:
        one = case(name)
        tape = Tape(training=True, observes=True, **one.pass_on())
        C, cache = LOSSES[LOSS].forward(one.model.forward(one.parameters, one.ids, tape), one.targets)
        one.model.backward(one.parameters, LOSSES[LOSS].backward(1.0, cache), {}, tape)
        assert C > 0
        assert all(re.fullmatch(r"[A-Z]{2}\d|∂C/∂output", label) for label in tape.labels.values()), tape.labels


def test_the_key_biass_gradient_is_rounding() -> None:
    one = case("block")
    given = (one.model, LOSSES[LOSS], one.parameters, one.ids, one.targets)
    actual, expected = by_hand(*given, **one.pass_on()), by_autograd(*given, **one.pass_on())
    # dropout of P̃ is behind the softmax, so that the scores of a query still cancel
    assert [row.name for row in compare_gradients(actual, expected).failures] == ["∂C/∂k.bias"]
    (size,) = one.summands(actual).values()
    assert actual["∂C/∂k.bias"].norm() < 1e-14 * size
    wrong = actual | {"∂C/∂k.bias": actual["∂C/∂k.bias"] + 1e-9}
    failures = compare_gradients(wrong, expected, zeros=one.summands(actual)).failures
    assert [row.name for row in failures] == ["∂C/∂k.bias"]


def test_a_carried_state_matters() -> None:
    one = case("cell")
    given = (one.model, LOSSES[LOSS], one.parameters, one.ids, one.targets)
    carried, fresh = by_hand(*given, **one.pass_on()), by_hand(*given)
    for name in ("C", "∂C/∂cell.weight_h", "memory h"):
        assert not torch.allclose(carried[name], fresh[name]), name


# Generation


@pytest.mark.parametrize("pieces", [(1,) * 8, (3, 1, 4), (7, 1), (1, 7)], ids=str)
@each_family
def test_in_pieces_through_the_memory_equals_the_whole_pass(name: str, pieces: tuple[int, ...]) -> None:
    one = case(name)
    ids = torch.randint(0, 7, (4, 8), generator=torch.Generator().manual_seed(6))
    one.twin.double().load_state_dict(one.parameters)
    with torch.no_grad():
        whole = one.twin.eval()(ids).view(4, 8, -1)
    memory, said = {}, []
    for piece in ids.split(pieces, dim=1):
        tape = Tape(memory=memory, records=False)
        said.append(one.model.forward(one.parameters, piece, tape).view(*piece.shape, -1))
        memory = tape.new_memory
    assert not tape.caches
    torch.testing.assert_close(torch.cat(said, 1), whole, rtol=1e-12, atol=1e-12)


@each_family
def test_no_output_depends_on_what_follows(name: str) -> None:
    one = case(name)
    changed = one.ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 7
    before, after = (
        one.model.forward(one.parameters, ids, Tape(records=False)).view(4, 5, -1) for ids in (one.ids, changed)
    )
    torch.testing.assert_close(after[:, :-1], before[:, :-1], rtol=1e-13, atol=1e-13)
    assert not torch.allclose(after[:, -1], before[:, -1])


# Learners of the real text


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    presets = tmp_path / "presets"
    presets.mkdir()
    register(monkeypatch, presets)


def settings(name: str, **options: object) -> tuple[Config, Dataset]:
    """700 characters: 99 segments of 7 are 19 steps an epoch in 5 streams, 87 of 8 are 18 in any order."""
    given = {"model": name, "data_dir": TEXT, "examples": 700, "epochs": 2, "log_every": 3, "device": "cpu"}
    config = train.parse(list(flags(given | options))).config
    data = arranged(config, load("text", TEXT, examples=700))
    return resolved(config, data), data


def learner(name: str, impl: str = "manual", dtype: torch.dtype = torch.float64, **options: object) -> Any:
    return learner_of(*settings(name, impl=impl, dtype=str(dtype).removeprefix("torch."), **options))


def batches(of: Learner, first: int, steps: int) -> Tensor:
    """The mini-batches of the first epoch from this step on."""
    train_set = of.train if hasattr(of, "train") else of.manual.train  # type: ignore[attr-defined]
    return train_set.order(0, 0, 5)[5 * first : 5 * (first + steps)].view(-1, 5)


def advance(of: Learner, steps: int, first: int = 0, lr: float = 0.01) -> Tensor:
    return of.advance(batches(of, first, steps), torch.full((steps,), lr, dtype=torch.float64))


def every_implementation(name: str) -> Iterator[Learner]:
    yield from (learner(name, impl) for impl in ("manual", "reference", "both"))


@each_dtype
@each_family
def test_lock_step_of_fifteen_steps(name: str, dtype: torch.dtype) -> None:
    both = learner(name, "both", dtype)
    start = both.state_dict()["model"]
    losses = advance(both, 15)
    assert both.proof.steps == both.steps == 15
    assert both.metrics[MAX_ERROR] < {torch.float64: 1e-12, torch.float32: 1e-3}[dtype]
    end = both.state_dict()["model"]
    assert {key for key in start if not torch.equal(start[key], end[key])} | {"k.bias"} >= start.keys()
    assert losses[-1] < losses[0]


@each_dtype
def test_a_segment_of_one_character_is_a_sequence_too(dtype: torch.dtype) -> None:
    both = learner("cell", "both", dtype, context=1)
    advance(both, 4)
    assert both.proof.steps == 4


@each_family
def test_apart_they_go_the_same_way(name: str) -> None:
    manual, reference = learner(name), learner(name, "reference")
    torch.testing.assert_close(advance(manual, 15), advance(reference, 15), rtol=1e-9, atol=0)
    one, other = manual.state_dict(), reference.state_dict()
    for part in ("model", "memory"):
        mine, theirs = one[part], other[part]
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"k.bias"}:  # of which adam makes steps of rounding's size and sign
            torch.testing.assert_close(mine[key], theirs[key], rtol=1e-6, atol=1e-9)


@each_family
def test_a_state_passes_strictly_from_one_to_the_other(name: str) -> None:
    manual, reference = learner(name), learner(name, "reference")
    advance(manual, 6)
    reference.load_state_dict(manual.state_dict())
    assert_same(reference.state_dict()["memory"], manual.state_dict()["memory"])
    back = learner(name)
    back.load_state_dict(reference.state_dict())
    assert_same(back.state_dict(), manual.state_dict())


def test_evaluation_says_the_same_whoever_evaluates() -> None:
    for name in NAMES:
        manual, reference = learner(name), learner(name, "reference")
        advance(manual, 6)
        reference.load_state_dict(manual.state_dict())
        x, y = manual.train.batch(torch.arange(9), torch.float64)
        C, outputs = manual.evaluate(x, y)
        expected, expected_outputs = reference.evaluate(x, y)
        compare_gradients({"C": C, "z": outputs}, {"C": expected, "z": expected_outputs}).assert_passed()
        one_by_one = torch.cat([manual.outputs(x[i : i + 1]) for i in range(9)])
        torch.testing.assert_close(one_by_one, outputs, rtol=1e-11, atol=1e-13)


# The carried state


def h(of: Learner) -> Tensor | None:
    memory = of.state_dict()["memory"]
    assert memory.keys() <= {"h"}
    return memory.get("h")


def test_only_a_step_moves_the_memory() -> None:
    for one in every_implementation("cell"):
        advance(one, 2)
        before = h(one)
        assert before is not None
        assert before.any()
        for rows in (5, 3):  # also where the memory is of another batch size
            x, y = one.batch(torch.arange(rows))
            one.evaluate(x, y)
            one.outputs(x)
            one.activations(x)
        x, y = one.batch(torch.arange(5))
        result = one.backpropagate(x, y)
        assert not torch.equal(result.memory["h"], before)
        assert torch.equal(h(one), before)
        advance(one, 1, first=2)
        assert not torch.equal(h(one), before)


def test_what_a_step_hands_on_is_what_the_pass_left() -> None:
    for impl in ("manual", "reference"):
        one = learner("cell", impl)
        advance(one, 2)
        result = one.backpropagate(*one.batch(batches(one, 2, 1)[0]))
        expected = result.memory["h"].clone()
        one.apply(result, torch.tensor(0.01, dtype=torch.float64))
        assert torch.equal(h(one), expected)


def test_what_is_handed_on_is_what_the_next_step_begins_with() -> None:
    """Two segments of 7 in a row cost together what one of 14 does, where nothing is learned in between."""
    for impl in ("manual", "reference"):
        apart, whole = learner("cell", impl), learner("cell", impl, context=14)
        losses = apart.advance(batches(apart, 0, 2)[:, :1], torch.zeros(2, dtype=torch.float64))
        expected = whole.advance(batches(whole, 0, 1)[:, :1], torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(losses.mean(), expected[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(h(apart), h(whole), rtol=1e-12, atol=1e-14)


def test_windows_hand_on_nothing() -> None:
    for one in every_implementation("block"):
        advance(one, 2)
        assert one.state_dict()["memory"] == {}


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
    config, data = settings("cell")
    train_loop(config, data, tmp_path / "run")
    assert [step for step, carried in begun if not carried] == [0, data.train.steps(5)]


class HandsOnTheStateBefore(RecurrentTwin):
    def forward(self, ids: Tensor, memory: dict[str, Tensor] | None = None) -> Tensor:
        memory = {} if memory is None else memory
        states: list[Tensor] = []
        with_hook = self.cell.register_forward_hook(lambda module, inputs, output: states.append(output.detach()))
        output = super().forward(ids, memory)
        with_hook.remove()
        memory["h"] = states[-2]
        return output


@each_dtype
def test_a_twin_that_hands_on_another_state_is_stopped_at_once(dtype: torch.dtype) -> None:
    both = learner("cell", "both", dtype)
    for other in both.others:
        other.module.__class__ = HandsOnTheStateBefore
    with pytest.raises(GradientMismatch, match=r"^step 1: h, memory: at \["):
        advance(both, 3)
    assert h(both) is None


def test_a_learner_that_does_not_hand_it_on_is_stopped_at_once() -> None:
    both = learner("cell", "both")
    advance(both, 2)

    class Forgets(ManualLearner):
        def apply(self, result: Any, lr: Tensor) -> None:
            kept = self.memory
            super().apply(result, lr)
            self.memory = kept

    both.manual.__class__ = Forgets
    with pytest.raises(GradientMismatch, match=r"^step 3: the step's new memory h: at \["):
        advance(both, 1, first=2)


def test_a_step_that_is_taken_back_restores_the_memory() -> None:
    both = learner("cell", "both")
    advance(both, 2)
    before = both.state_dict()
    right = both.manual.optimizer
    both.manual.optimizer = WrongStep(right)
    with pytest.raises(GradientMismatch, match=r"^step 3: the step's new embedding\.weight: at"):
        advance(both, 1, first=2)
    assert_same(both.state_dict(), before)
    both.manual.optimizer = right
    advance(both, 1, first=2)
    assert not torch.equal(h(both), before["memory"]["h"])


@dataclass(frozen=True)
class WrongStep:
    """Another optimizer's step, and then all of θ is off."""

    right: Any

    def update(self, theta: Tensor, *rest: Any) -> None:
        self.right.update(theta, *rest)
        theta.mul_(1.0 + 1e-6)


@pytest.mark.parametrize("impl", ["manual", "reference", "both"])
def test_where_a_value_is_not_finite_the_steps_are_repeated_from_the_memory_before(
    impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = settings("cell", impl=impl, dtype="float32", optimizer="sgd")
    memory, saved = replayed(replace(config, eval_every=5), data, tmp_path / "run", 6, monkeypatch)
    assert saved["steps"] == 5
    assert_same(memory, saved["memory"])


def test_at_the_beginning_of_an_epoch_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = settings("cell", optimizer="sgd")
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


def test_masks_are_drawn_by_the_calls_name_the_same_for_both() -> None:
    manual, reference = learner("block", seed=2), learner("block", "reference", seed=2)
    one, other = masks_of(manual), masks_of(reference)
    advance(manual, 2)
    advance(reference, 2)
    shapes = {"wte.dropout": (5, 8, 12), "attention": (5, 3, 8, 8), "project.dropout": (5, 8, 12)}
    assert {key: tuple(mask.shape) for key, mask in one.items()} == {
        (step, call): shape for step in range(2) for call, shape in shapes.items()
    }
    assert_same(dict(sorted(one.items())), dict(sorted(other.items())))
    for mask in one.values():
        assert 0.7 < mask.mean() < 0.9

    again = learner("block", seed=2)
    advance(again, 1)
    resumed = learner("block", seed=2)
    resumed.load_state_dict(again.state_dict())
    rest = masks_of(resumed)
    advance(resumed, 1, first=1)
    assert_same(rest, {key: mask for key, mask in one.items() if key[0] == 1})

    elsewhere = learner("block", seed=3)
    others = masks_of(elsewhere)
    advance(elsewhere, 2)
    for name in shapes:
        assert not torch.equal(one[0, name], one[1, name]), "of another step"
        assert not torch.equal(one[0, name], others[0, name]), "of another seed"
    assert not torch.equal(one[0, "wte.dropout"], one[0, "project.dropout"]), "of another call"


def test_evaluation_asks_for_no_noise() -> None:
    for impl in ("manual", "reference"):
        one = learner("block", impl)
        found = masks_of(one)
        x, y = one.batch(torch.arange(5))
        one.evaluate(x, y)
        one.activations(x)
        assert not found
        one.backpropagate(x, y)
        assert found


# Whole numbers


@each_family
def test_ids_are_never_cast(name: str) -> None:
    both = learner(name, "both", torch.float32)
    seen = []

    class Watched(type(both.manual.model)):  # type: ignore[misc]
        def forward(self, p: Any, x: Tensor, tape: Tape) -> Tensor:
            seen.append(("model", x.dtype))
            return super().forward(p, x, tape)

    both.manual.model = Watched(**vars(both.manual.model))
    for who, other in zip(("twin", "truth"), both.others, strict=True):
        other.module.register_forward_pre_hook(lambda module, given, who=who: seen.append((who, given[0].dtype)))
    advance(both, 2)
    assert set(seen) == {(who, torch.int64) for who in ("model", "twin", "truth")}
    assert both.others[1].dtype == torch.float64


# Mistakes, and what lock step calls them


def without_the_sum_of_softmax(right: Callable[..., Any], dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, P, dropped, mask, keep, s = cache
    dS = P * (dy @ v.mT if mask is None else dy @ v.mT * mask / keep)
    return s * dS @ k, s * dS.mT @ q, dropped.mT @ dy


def keys_without_the_scale(right: Callable[..., Any], dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    dq, dk, dv = right(dy, cache)
    return dq, dk / cache[-1], dv


def values_through_what_was_not_dropped(right: Callable[..., Any], dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, P, _, *rest = cache
    return right(dy, (q, k, v, P, P, *rest))


def seeing_ahead(right: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, *noise: Any) -> Any:
    """Unmasked attention."""
    _, (*_, s) = right(q, k, v, *noise)
    P = (s * q @ k.mT).softmax(-1)
    mask, keep = noise or (torch.ones_like(P), 1.0)
    dropped = P * mask / keep
    return dropped @ v, (q, k, v, P, dropped, mask, keep, s)


def forgetting_one_use(
    right: Callable[..., Any], dy: Tensor, cache: Any, *, gradient: int, use: Callable[[Any], bool]
) -> Any:
    """The weight's gradient is dropped in those calls that `use` says, by their cache."""
    gradients = right(dy, cache)
    several = gradients if isinstance(gradients, tuple) else (gradients,)
    if use(cache):
        several = tuple(torch.zeros_like(g) if i == gradient else g for i, g in enumerate(several))
    return several if isinstance(gradients, tuple) else several[0]


def of_the_first_state(cache: Any) -> bool:
    """Whether this is the cell's first call: before it h is zero, or not a cell's output."""
    return not cache[1].any()


def stopped_in_time(right: Callable[..., Any], dh: Tensor, cache: Any) -> tuple[Tensor, ...]:
    """Backpropagation through no time."""
    dx, dh, *gradients = right(dh, cache)
    return dx, torch.zeros_like(dh), *gradients


MISTAKES: dict[str, tuple[str, Any, str, Callable[..., Any], str]] = {
    "softmax without its sum": ("block", attention, "backward", without_the_sum_of_softmax, "AT1, q, δ"),
    "keys without the scale": ("block", attention, "backward", keys_without_the_scale, "AT2, k, δ"),
    "dv through P": ("block", attention, "backward", values_through_what_was_not_dropped, "AT3, v, δ"),
    "seeing ahead": ("block", attention, "forward", seeing_ahead, "attention, z"),
    "the head's part of dE": (
        "block",
        matmul,
        "backward",
        partial(forgetting_one_use, gradient=1, use=lambda cache: True),
        "EM1 + MM2, wte, ∂C/∂E",
    ),
    "the embedding's part of dE": (
        "block",
        embedding,
        "backward",
        partial(forgetting_one_use, gradient=0, use=lambda cache: len(cache[1]) > 8),
        "EM1 + MM2, wte, ∂C/∂E",
    ),
    "one call's dW_h": (
        "cell",
        recurrent_cell,
        "backward",
        partial(forgetting_one_use, gradient=3, use=lambda cache: bool(cache[1].any())),
        "RN4, cell, ∂C/∂W_h",
    ),
    "the first call's dW_x": (
        "cell",
        recurrent_cell,
        "backward",
        partial(forgetting_one_use, gradient=2, use=of_the_first_state),
        "RN3, cell, ∂C/∂W_x",
    ),
    "no backpropagation through time": ("cell", recurrent_cell, "backward", stopped_in_time, "BT1, cell[5], δ"),
}


@each_dtype
@pytest.mark.parametrize(("name", "layer", "function", "wrong", "place"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_equation(
    name: str,
    layer: Any,
    function: str,
    wrong: Callable[..., Any],
    place: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = learner(name, "both", dtype)
    before = both.state_dict()
    monkeypatch.setattr(layer, function, partial(wrong, getattr(layer, function)))
    with pytest.raises(GradientMismatch, match=rf"^step 1: {re.escape(place)}: at \["):
        advance(both, 2)
    assert_same(both.state_dict(), before)


def off_by(amount: float, of: Transformer) -> Transformer:
    class Off(Transformer):
        def backward(self, p: Any, d_output: Tensor, g: Any, tape: Tape) -> None:
            super().backward(p, d_output, g, tape)
            g["k.bias"] = g["k.bias"] + amount

    return Off(**vars(of))


@each_dtype
def test_a_key_bias_that_is_declared_is_still_watched(dtype: torch.dtype) -> None:
    both = learner("block", "both", dtype)
    advance(both, 2)
    both.manual.model = off_by(1e-9 if dtype == torch.float64 else 1e-4, both.manual.model)
    with pytest.raises(GradientMismatch, match=r"^step 3: LI3, k, ∂C/∂b: at \["):
        advance(both, 1, first=2)


def test_a_key_bias_that_is_declared_costs_no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock step measures how rounding is magnified only where something differs, as the undeclared gradient does."""

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("something differs")

    monkeypatch.setattr("training.learners.comparison.magnification", refuse)
    advance(learner("block", "both"), 15)
    both = learner("block", "both")
    both.manual.zeros = {}
    with pytest.raises(AssertionError, match="something differs"):
        advance(both, 15)


# Runs


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@each_family
def test_a_run_in_lock_step_on_a_real_text(
    name: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    options = {"model": name, "impl": "both", "dtype": dtype, "data_dir": TEXT, "max_steps": 40}
    options |= {"eval_every": 20, "log_every": 10, "device": "cpu", "run_dir": run_dir}
    done = call(capsys, train.main, *flags(options))
    assert (done.status, done.err) == (0, "")
    assert re.match(r"40 of 40 steps agree; largest error ", done.out.splitlines()[-1])
    losses = values(run_dir, "loss/test")
    assert list(losses) == [0, 20, 40]
    assert losses[40] < losses[20] < losses[0]
    assert verify_passes(capsys, "--checkpoint", run_dir, "--seeds", 2)

    tags = EventAccumulator(str(run_dir)).Reload().Tags()
    assert {"loss/train", "loss/test", "perplexity/test", "perplexity/train", MAX_ERROR} < set(tags["scalars"])
    assert not any("accuracy" in tag for tag in tags["scalars"])
    assert tags["images"] == ["images/gradient_by_depth"]
    expected = {
        "cell": {"weights/embedding", "parameters/cell.weight_h", "biases/cell", "deltas/cell[6]", "deltas/output"},
        "block": {"weights/wte", "biases/k", "deltas/attention", "deltas/head", "activations/fc", "gradients/q.weight"},
    }[name]
    assert expected < set(tags["histograms"])
    assert {f"gradient_norm/{key}" for key in checkpoint.load(run_dir)["model"]} < set(tags["scalars"])


@each_family
def test_verify_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in ("float64", "float32"):
        assert verify_passes(capsys, "--model", name, "--seeds", 3, "--dtype", dtype)


def verify_passes(capsys: pytest.CaptureFixture[str], *arguments: object) -> bool:
    done = call(capsys, verify.main, *arguments)
    return (done.status, done.err) == (0, "") and "comparisons agree" in done.out


@pytest.mark.parametrize(
    ("name", "impl"),
    [
        pytest.param(name, impl, marks=[] if (name, impl) == ("cell", "manual") else pytest.mark.slow)
        for name in NAMES
        for impl in ("manual", "reference", "both")
    ],
)
def test_stopped_anywhere_a_run_goes_on_as_if_it_had_not_been(name: str, impl: str, tmp_path: Path) -> None:
    config, data = settings(name, impl=impl, dtype="float32", eval_every=7)
    steps = data.train.steps(5)
    train_loop(config, data, tmp_path / "whole")
    stopped_at = []
    for polls in (5, 13, 26):
        run_dir = tmp_path / str(polls)
        asked = iter(range(polls))
        train_loop(config, data, run_dir, stop=lambda: next(asked, None) is None)  # noqa: B023
        stopped = checkpoint.load(run_dir)
        stopped_at.append(stopped["steps"])
        assert stopped["memory"].keys() == ({"h"} if name == "cell" else set())
        assert all(tensor.any() for tensor in stopped["memory"].values())
        assert "h" not in stopped["model"]
        train_loop(config, data, run_dir)
        for file in ("last.pt", "best.pt"):
            one, other = (checkpoint.load(tmp_path / which / file) for which in (str(polls), "whole"))
            assert_same(one, other, file)
        assert metrics(run_dir) == metrics(tmp_path / "whole")
    assert all(0 < step < 2 * steps and step % steps for step in stopped_at), stopped_at
    assert {step // steps for step in stopped_at} == {0, 1}


def test_a_run_that_forgot_its_memory_would_not_go_on_the_same(tmp_path: Path) -> None:
    """What the test above would say, were the memory not saved."""
    config, data = settings("cell")
    train_loop(config, data, tmp_path / "whole")
    asked = iter(range(5))
    train_loop(config, data, tmp_path / "run", stop=lambda: next(asked, None) is None)
    saved = checkpoint.load(tmp_path / "run")
    checkpoint.save({**saved, "memory": {}}, tmp_path / "run" / "last.pt")
    train_loop(config, data, tmp_path / "run")
    one, other = (checkpoint.load(tmp_path / run_dir)["model"] for run_dir in ("run", "whole"))
    assert not torch.equal(one["cell.weight_h"], other["cell.weight_h"])


@pytest.mark.slow
@each_family
def test_a_run_is_resumed_by_whoever_runs_the_script(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": name, "data_dir": TEXT, "examples": 700, "device": "cpu", "max_steps": 8}
    assert call(capsys, train.main, *flags(options | {"run_dir": tmp_path / "run"})).status == 0
    assert call(capsys, train.main, "--resume", tmp_path / "run", "--max-steps", 30).status == 0
    assert call(capsys, train.main, *flags(options | {"run_dir": tmp_path / "whole", "max_steps": 30})).status == 0
    one, other = (checkpoint.load(tmp_path / run_dir) for run_dir in ("run", "whole"))
    for part in ("model", "optimizer", "memory", "steps"):
        assert_same(one[part], other[part], part)


@each_family
def test_a_trained_network_predicts_for_another_batch_size(name: str, tmp_path: Path) -> None:
    config, data = settings(name)
    train_loop(config, data, tmp_path / "run")
    assert bool(checkpoint.load(tmp_path / "run")["memory"]) == (name == "cell")
    trained = load_trained(tmp_path / "run")
    x, _ = data.test.batch(torch.arange(11), trained.dtype)
    outputs = trained.outputs(x)
    assert outputs.shape == (11 * data.train.targets, len(data.classes))
    assert trained.config.model == name
    of_one = trained.outputs(x[4:5])
    torch.testing.assert_close(of_one, outputs.view(11, -1, len(data.classes))[4], rtol=1e-4, atol=1e-5)
    assert trained.learner.memory == {}


def test_a_key_bias_that_is_declared_does_not_stop_a_run(tmp_path: Path) -> None:
    config, data = settings("block", impl="both", dtype="float32")
    loop, outcome = train_loop(config, data, tmp_path / "run")
    assert isinstance(loop.learner, CheckedLearner)
    assert outcome.finished
    assert outcome.proof.startswith(f"{outcome.steps} of {outcome.steps} steps agree")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lion", "muon"])
@each_dtype
@each_family
def test_no_false_alarm_over_a_hundred_steps(name: str, dtype: torch.dtype, optimizer: str) -> None:
    both = learner(name, "both", dtype, optimizer=optimizer)
    steps = both.manual.train.steps(5) - 1
    for _ in range(100 // steps + 1):
        assert advance(both, steps, lr=0.3 if optimizer == "sgd" else 0.01).isfinite().all()
        both.forget()
    assert both.proof.steps == both.steps > 100


# What does not go together


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--model cell --dataset sample",
            "--model cell is for prediction of the next token, and the data set sample is for classification: "
            "give another --dataset, or --model mlp, or --model lenet5",
        ),
        (
            "--model block --dataset sample",
            "--model block is for prediction of the next token, and the data set sample is for classification: ",
        ),
        (
            f"--model mlp --dataset text --data-dir {TEXT}",
            "--model mlp is for classification, and the data set text is for prediction of the next token: "
            "give another --dataset, or --model cell, or --model block",
        ),
        (
            f"--preset small-cnn --dataset text --data-dir {TEXT}",
            "--model cnn is for classification, and the data set text is for prediction of the next token: ",
        ),
    ],
)
def test_a_family_of_another_task_is_refused_in_one_sentence(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, train.main, *line.split(), "--run-dir", tmp_path / "run")
    assert done.status == 2
    assert one_sentence(done.err).startswith(f"train.py: {said}")
    assert not (tmp_path / "run").exists()


def test_a_batch_of_more_streams_than_segments_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": "cell", "data_dir": TEXT, "examples": 100, "batch_size": 50, "run_dir": tmp_path / "run"}
    done = call(capsys, train.main, *flags(options))
    assert done.status == 2
    assert one_sentence(done.err).startswith("train.py: --batch-size is 50, but a text of 101 ids has 14 segments of 7")


@pytest.mark.parametrize("script", ["predict", "explain"])
def test_scripts_about_classes_refuse_a_network_that_has_none(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": "cell", "data_dir": TEXT, "max_steps": 2, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    others = ["--dataset", "text"] if script == "predict" else []
    done = call(capsys, importlib.import_module(script).main, "--checkpoint", tmp_path / "run", *others)
    assert done.status == 2
    assert "this network is for prediction of the next token and has no classes: give" in one_sentence(done.err)
