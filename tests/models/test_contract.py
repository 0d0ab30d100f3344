"""What every network keeps to beside its numbers (docs/contracts.md): names, shapes, what it reads and writes."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.models.mlp import MLP
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from tests.support.both_ways import assert_equal, differ
from tests.support.networks import CNNS, LENETS, OF_FAMILIES, PROBLEMS, Problem, each, perceptron, pictures, stacked
from tests.support.problems import manual_learner, random_batches, rates, reference_learner
from training.data import Split
from training.families import FAMILIES
from training.families.networks import make_twin

LABEL = r"[A-Z]{2}\d"
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def forward(problem: Problem, training: bool = True, **settings: Any) -> tuple[Tensor, Tape]:
    tape = Tape(training=training, **problem.pass_on | settings)
    with torch.inference_mode():
        return problem.model.forward(problem.params, problem.data[0], tape), tape


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_problems_give_its_model(name: str) -> None:
    models = [problem.model for problem in OF_FAMILIES.values() if isinstance(problem.model, FAMILIES[name].model)]
    assert len(models) == len(list(FAMILIES[name].problems())) > 0
    assert all(type(model) is FAMILIES[name].model for model in models)
    assert type(make_twin(models[0])).__module__.startswith("reference.")


@each(PROBLEMS, rest="long")
def test_names_shapes_and_order_are_the_twins(problem: Problem) -> None:
    """Of the parameters, and of the buffers; both load what the other saves, strictly."""
    model, twin = problem.model, problem.twin()
    assert list(model.shapes.items()) == [(name, tuple(p.shape)) for name, p in twin.named_parameters()]
    buffers, theirs = model.buffers(), dict(twin.named_buffers())
    assert list(buffers) == list(theirs)
    assert_equal(buffers, theirs)
    twin.load_state_dict(problem.params | problem.buffers, strict=True)


@each_mode
@each(PROBLEMS, rest="long")
def test_a_pass_writes_to_nothing_that_it_is_given(problem: Problem, training: bool) -> None:
    given, pass_on = problem.given, problem.pass_on
    before = {name: tensor.clone() for name, tensor in given.items()}
    buffers, memory = ({name: given[name] for name in pass_on[kind]} for kind in ("buffers", "memory"))
    tape = Tape(training=training, **pass_on | {"buffers": buffers, "memory": memory})
    with torch.inference_mode():
        output = problem.model.forward(given, given["x"], tape)
        d_output = torch.ones_like(output)
        problem.model.backward(given, d_output, {}, tape)
    assert torch.equal(d_output, torch.ones_like(output))
    assert tape.buffers is buffers
    assert tape.memory is memory
    assert [list(buffers), list(memory)] == [list(problem.buffers), list(problem.memory)]
    assert_equal(given, before)
    assert tape.new_buffers.keys() == (buffers.keys() if training else set())
    if training or memory:
        assert tape.new_memory.keys() == memory.keys()
    for new, old in ((tape.new_buffers, buffers), (tape.new_memory, memory)):
        assert all(not torch.equal(new[name], old[name]) for name in new.keys() & old.keys())


@each_mode
@each(PROBLEMS, rest="long")
def test_backward_takes_the_caches_out(problem: Problem, training: bool) -> None:
    output, tape = forward(problem, training)
    calls = len(tape.caches)
    left: list[int] = []

    class Counting(dict[str, Tensor]):
        def __setitem__(self, name: str, gradient: Tensor) -> None:
            assert name not in self, f"{name} is given twice"
            left.append(len(tape.caches))
            super().__setitem__(name, gradient)

    gradients = Counting()
    with torch.inference_mode():
        problem.model.backward(problem.params, torch.ones_like(output), gradients, tape)
        assert tape.caches == {}
        assert gradients.keys() == problem.model.shapes.keys()
        assert left == sorted(left, reverse=True)  # memory falls on the way down
        assert left[0] > left[-1] or calls == 1
        with pytest.raises(ValueError, match=r"^the tape has no cache of \S+: a backward pass needs"):
            problem.model.backward(problem.params, torch.ones_like(output), {}, tape)


@each_mode
@each(PROBLEMS, rest="long")
def test_every_output_has_a_delta_and_every_delta_but_the_first_an_equation(problem: Problem, training: bool) -> None:
    params = problem.params
    tape = Tape(training=training, observes=True, **problem.pass_on)
    with torch.inference_mode():
        output = problem.model.forward(params, problem.data[0], tape)
        problem.model.backward(params, torch.ones_like(output), {}, tape)
    assert list(tape.outputs) == list(tape.calls)
    assert list(tape.deltas) == list(tape.labels)
    assert tape.deltas.keys() == tape.outputs.keys()
    assert all(tape.deltas[name].shape == z.shape for name, z in tape.outputs.items())
    first, *others = tape.labels.values()
    assert first == "∂C/∂output"
    assert all(re.fullmatch(LABEL, label) for label in others), tape.labels
    equations = tape.equations(params)
    assert equations.keys() == problem.model.shapes.keys()
    assert all(re.fullmatch(rf"{LABEL}( \+ {LABEL})*", label) for label, _ in equations.values()), equations
    names = problem.twin().observed()  # type: ignore[operator]
    drops = training and problem.drops
    numbered = {re.sub(r"\[\d+\]", "[]", name) for name in tape.outputs}
    assert {name for name in names if drops or not name.endswith("dropout")} == numbered


@each(PROBLEMS, rest="long")
def test_what_is_left_out(problem: Problem) -> None:
    """By default a pass evaluates: no noise, no new statistics, no dx. One that does not record keeps no cache."""
    given = {"buffers": problem.buffers, "memory": problem.memory}
    evaluating = Tape(**given)
    output = problem.model.forward(problem.params, problem.data[0], evaluating)
    assert torch.equal(output, forward(problem, training=False)[0])
    assert evaluating.new_buffers == {}
    assert problem.model.backward(problem.params, torch.ones_like(output), {}, evaluating) is None
    silent = Tape(records=False, **given)
    assert torch.equal(problem.model.forward(problem.params, problem.data[0], silent), output)
    assert silent.caches == silent.calls == silent.outputs == {}
    if problem.drops:
        with pytest.raises(ValueError, match=r"^\S+ needs noise of the shape \(.*\): give the tape `noise`, or"):
            problem.model.forward(problem.params, problem.data[0], Tape(training=True, **given))


@each({name: problem for name, problem in PROBLEMS.items() if problem.drops}, rest="long")
def test_noise_is_asked_for_by_a_calls_name_the_same_by_both(problem: Problem) -> None:
    asked: dict[str, Any] = {}
    twins: dict[str, Any] = {}

    def remember(into: dict[str, Any], call: str, shape: tuple[int, ...], keep: float) -> Tensor:
        assert call not in into, f"{call} asks twice"
        into[call] = shape, keep
        return torch.ones(shape, dtype=torch.float64)

    ones = problem.by_hand(noise=lambda *call: remember(asked, *call))
    twin = problem.twin().double().train()
    twin.load_state_dict(problem.params | problem.buffers)
    twin(problem.data[0], noise=lambda *call: remember(twins, *call))
    assert asked == twins
    assert {keep for _, keep in asked.values()} == {1 - problem.model.dropout}
    assert {f"δ {call}" for call in asked} <= ones.keys()
    assert differ(ones["C"], problem.dropped(0.0)[0].by_hand()["C"])  # what is kept is enlarged


@pytest.mark.parametrize(
    ("problem", "reached"),
    [
        (
            stacked(3, "tanh", "quadratic"),
            {"C", "δ output", "δ layer3.a", "δ layer3", "δ layer2.dropout", "∂C/∂layer3.bias"},
        ),
        (CNNS["two blocks"], {"C", "δ output", "δ linear", "δ dropout", "∂C/∂linear.bias"}),
    ],
    ids=["MLP", "CNN"],
)
def test_masks_of_zeros_let_nothing_through(problem: Problem, reached: set[str]) -> None:
    """Only the last bias gets a gradient; the running statistics are none, and move as always."""
    dropping, _ = problem.dropped(0.4)
    gradients = dropping.by_hand(noise=lambda call, shape, keep: torch.zeros(shape, dtype=torch.float64))
    buffers = {f"buffer {name}" for name in problem.buffers}
    assert {name for name, tensor in gradients.items() if tensor.any()} - buffers == reached
    without = problem.by_hand()
    assert all(torch.equal(without[name], gradients[name]) for name in buffers)


@each(PROBLEMS, rest="long")
def test_gradients_can_be_views_of_one_vector(problem: Problem) -> None:
    gradient = Parameters(problem.model.shapes, dtype=torch.float64)
    expected = problem.by_hand()
    _, tape = forward(problem)
    with torch.inference_mode():
        problem.model.backward(problem.params, expected["δ output"], gradient, tape)
    assert gradient.theta.numel() == sum(tensor.numel() for tensor in problem.params.values())
    assert_equal(gradient, {name: expected[f"∂C/∂{name}"] for name in problem.model.shapes})


@pytest.mark.parametrize(
    ("problem", "saved"),
    [
        (perceptron(MLP((4, 6, 5), ("tanh", "tanh")), "quadratic", 7), 2 * 7 * 4 * 6),
        (pictures(LeNet5((3, 28, 28), 4), "quadratic", 5), 2 * 5 * 28 * 28 * 6 * 3 * 25),
        (pictures(CNN((3, 9, 7), 4, (5, 2), 1), "quadratic", 4), 2 * 4 * 9 * 7 * 5 * 3 * 9),
    ],
    ids=["MLP", "LeNet-5", "CNN"],
)
def test_without_need_dx_the_first_layers_product_is_saved(problem: Problem, saved: int) -> None:
    """2·B·n⁰·n¹ operations, of a convolution 2·B·H′·W′·O·C·kh·kw."""
    operations = {}
    for need_dx in (False, True):
        output, tape = forward(problem, need_dx=need_dx)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            dx = problem.model.backward(problem.params, torch.ones_like(output), {}, tape)
        assert (dx is None) == (not need_dx)
        operations[need_dx] = counter.get_total_flops()
    assert operations[True] - operations[False] == saved
    if isinstance(problem.model, MLP):
        assert operations[False] == 2 * 7 * (4 * 6 + 2 * 6 * 5)  # as much as BP4 costs


# Learners of the networks


def split_of(problem: Problem, examples: int = 40) -> Split:
    return Split(*problem.of.draw(torch.Generator().manual_seed(6), examples))


@pytest.mark.parametrize(
    "problem",
    [stacked(3, "tanh", "quadratic"), LENETS["as published"], CNNS["two blocks"], CNNS["sigmoid"]],
    ids=["MLP", "LeNet-5", "CNN with blocks", "CNN without"],
)
def test_a_state_of_one_loads_into_the_other_which_then_says_the_same(problem: Problem) -> None:
    split = split_of(problem)
    manual = manual_learner(problem.model, problem.loss, split, momentum=0.9)
    reference = reference_learner(manual, problem.loss)
    manual.advance(random_batches(3, 7, 40), rates(3, 0.02))
    reference.load_state_dict(manual.state_dict())
    reference.advance(random_batches(3, 7, 40, seed=1), rates(3, 0.02))
    fresh = manual_learner(problem.model, problem.loss, split, momentum=0.9, seed=5)
    untrained = fresh.evaluate(split.x, split.y)[1]
    fresh.load_state_dict(reference.state_dict())
    outputs, theirs = fresh.evaluate(split.x, split.y), reference.evaluate(split.x, split.y)
    problem.assert_agrees({"C": outputs[0], "a": outputs[1]}, {"C": theirs[0], "a": theirs[1]})
    mine = fresh.state_dict()["model"]
    assert list(mine) == [*fresh.parameters, *fresh.buffers]
    assert_equal(mine, reference.state_dict()["model"])
    assert differ(untrained, outputs[1])


@each(CNNS)
def test_running_statistics_start_from_the_models_and_move_as_the_twins(problem: Problem) -> None:
    """In the learner's own format, and they are its own: another's steps do not move them."""
    manual = manual_learner(problem.model, problem.loss, split_of(problem))
    reference = reference_learner(manual, problem.loss)
    for learner in (manual, reference):
        learner.advance(random_batches(4, problem.batch, 40), rates(4, 0.01))
    mine, theirs = manual.state_dict()["model"], reference.state_dict()["model"]
    start = manual_learner(problem.model, problem.loss, split_of(problem)).state_dict()["model"]
    buffers = problem.model.buffers()
    problem.assert_agrees({name: mine[name] for name in buffers}, {name: theirs[name] for name in buffers})
    own = {name: buffer.double() if buffer.is_floating_point() else buffer for name, buffer in buffers.items()}
    assert_equal({name: start[name] for name in buffers}, own)
    for name, buffer in buffers.items():
        assert not torch.equal(mine[name], start[name])
        if name.endswith("num_batches_tracked"):
            assert buffer.dtype == torch.int64
            assert mine[name].item() == theirs[name].item() == 4
