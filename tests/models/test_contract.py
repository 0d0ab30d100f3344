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
from tests.support.networks import CNNS, OF_FAMILIES, PROBLEMS, Problem, each, perceptron, pictures
from tests.support.problems import manual_learner, random_batches, rates
from training.data import Split
from training.families import FAMILIES
from training.families.networks import make_twin

LABEL = r"[A-Z]{2}\d+"
OF_SEVERAL = re.compile(r"\.[yhc]$")  # the last part of the name of an output that is one of several
# Of the perceptrons one in four: their activations, costs and batch sizes change none of this.
KINDS = {name: p for i, (name, p) in enumerate(PROBLEMS.items()) if i % 4 == 0 or not isinstance(p.model, MLP)}
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def forward(problem: Problem, training: bool = True, **settings: Any) -> tuple[Tensor, Tape]:
    tape = Tape(training=training, **problem.pass_on | settings)
    with torch.inference_mode():
        return problem.model.forward(problem.params, problem.data[0], tape), tape


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_problems_give_its_model(name):
    models = [problem.model for problem in OF_FAMILIES.values() if isinstance(problem.model, FAMILIES[name].model)]
    assert len(models) == len(list(FAMILIES[name].problems())) > 0
    assert all(type(model) is FAMILIES[name].model for model in models)
    assert type(make_twin(models[0])).__module__.startswith("reference.")


@each(KINDS, rest="long")
def test_names_shapes_and_order_are_the_twins(problem):
    """Of the parameters, and of the buffers; both load what the other saves, strictly."""
    model, twin = problem.model, problem.twin()
    assert list(model.shapes.items()) == [(name, tuple(p.shape)) for name, p in twin.named_parameters()]
    buffers, theirs = model.buffers(), dict(twin.named_buffers())
    assert list(buffers) == list(theirs)
    assert_equal(buffers, theirs)
    twin.load_state_dict(problem.params | problem.buffers, strict=True)


@each_mode
@each(KINDS, rest="long")
def test_a_pass_writes_to_nothing_that_it_is_given(problem, training):
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
@each(KINDS, rest="long")
def test_backward_takes_the_caches_out(problem, training):
    output, tape = forward(problem, training)
    calls = len(tape.caches)
    left = []

    class Counting(dict):
        def __setitem__(self, name, gradient):
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
@each(KINDS, rest="long")
def test_every_output_has_a_delta_and_every_delta_but_the_first_an_equation(problem, training):
    params = problem.params
    tape = Tape(training=training, observes=True, **problem.pass_on)
    with torch.inference_mode():
        output = problem.model.forward(params, problem.data[0], tape)
        problem.model.backward(params, torch.ones_like(output), {}, tape)
    assert list(dict.fromkeys(OF_SEVERAL.sub("", name) for name in tape.outputs)) == list(tape.calls)
    assert list(tape.deltas) == list(tape.labels)
    assert tape.deltas.keys() == tape.outputs.keys()
    assert all(tape.deltas[name].shape == z.shape for name, z in tape.outputs.items())
    first, *others = tape.labels.values()
    assert first == "∂C/∂output"
    assert all(re.fullmatch(LABEL, label) for label in others), tape.labels
    equations = tape.equations(params)
    assert equations.keys() == problem.model.shapes.keys()
    assert all(re.fullmatch(rf"{LABEL}( \+ {LABEL})*", label) for label, _ in equations.values()), equations
    names = problem.twin().observed()
    drops = training and problem.drops
    numbered = {re.sub(r"\[\d+\]", "[]", name) for name in tape.outputs}
    assert {name for name in names if drops or not name.endswith("dropout")} == numbered


@each(KINDS, rest="long")
def test_what_is_left_out(problem):
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


@each({name: problem for name, problem in KINDS.items() if problem.drops}, rest="long")
def test_noise_is_asked_for_by_a_calls_name_the_same_by_both(problem):
    asked, twins = {}, {}

    def remember(into, call, shape, keep):
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
    call, (shape, _) = next(iter(asked.items()))
    said = f"{call} needs noise of the shape {shape}: give the tape `noise`, or training=False"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        problem.model.forward(problem.params, problem.data[0], Tape(training=True, buffers=problem.buffers))


@each(KINDS, rest="long")
def test_gradients_can_be_views_of_one_vector(problem):
    gradient = Parameters(problem.model.shapes, dtype=torch.float64)
    expected = problem.by_hand()
    _, tape = forward(problem)
    with torch.inference_mode():
        problem.model.backward(problem.params, expected["δ output"], gradient, tape)
    assert gradient.theta.numel() == sum(tensor.numel() for tensor in problem.params.values())
    assert_equal(gradient, {name: expected[f"∂C/∂{name}"] for name in problem.model.shapes})


SAVED = {
    "MLP": (perceptron(MLP((4, 6, 5), ("tanh", "tanh")), "quadratic", 7), 2 * 7 * 4 * 6),
    "LeNet-5": (pictures(LeNet5((3, 28, 28), 4), "quadratic", 5), 2 * 5 * 28 * 28 * 6 * 3 * 25),
    "CNN": (pictures(CNN((3, 9, 7), 4, (5, 2), 1), "quadratic", 4), 2 * 4 * 9 * 7 * 5 * 3 * 9),
}


@pytest.mark.parametrize(("problem", "saved"), SAVED.values(), ids=SAVED)
def test_without_need_dx_the_first_layers_product_is_saved(problem, saved):
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


def test_running_statistics_begin_as_the_models_and_are_a_learners_own():
    """In the learner's own format; another's steps do not move them. How they move, lock step compares."""
    model, split = CNNS["two blocks"].model, Split(*CNNS["two blocks"].of.draw(torch.Generator(), 40))
    moved, fresh = (manual_learner(model, "quadratic", split) for _ in range(2))
    moved.advance(random_batches(4, 5, 40), rates(4, 0.01))
    own = {name: b.double() if b.is_floating_point() else b for name, b in model.buffers().items()}
    assert_equal(dict(fresh.buffers), own)
    assert not any(torch.equal(moved.buffers[name], buffer) for name, buffer in own.items())
    assert {b.item() for name, b in moved.buffers.items() if name.endswith("num_batches_tracked")} == {4}
