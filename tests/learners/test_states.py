"""What a learner holds, in every family: states pass between implementations, and only a step moves them."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from gradient_check import compare_gradients
from manual_backprop.losses import LOSSES
from tests.support.lockstep import NAMES, advance, batches, every_implementation, learner, small
from tests.support.problems import METHODS, relative_difference
from tests.support.running import assert_same, train_loop
from training import checkpoint
from training.learners.checked import CheckedLearner
from training.learners.manual import ManualLearner
from training.loop import Loop, NotFiniteError

FAMILIES = {name: (name, {}) for name in NAMES}
OPTIMIZED = FAMILIES | {f"mlp, {title}": ("mlp", {"l2": 0.01, **method}) for title, method in METHODS.items()}
OPTIMIZED |= {"cnn, moved": ("cnn", {"shift": 2, "rotate": 10.0})}
COSTS = FAMILIES | {loss: ("mlp", {"activation": ("tanh", "tanh", "identity"), "loss": loss}) for loss in LOSSES}
COSTS |= {"smoothed": ("mlp", {"label_smoothing": 0.15})}
each_family_and_method = pytest.mark.parametrize(("name", "options"), OPTIMIZED.values(), ids=OPTIMIZED)
manual_and_reference = pytest.mark.parametrize("impl", ["manual", "reference"])


@pytest.mark.sweep(4)
@each_family_and_method
def test_what_is_checked_is_what_is_trained(name, options):
    """A checked run takes exactly the steps that an unchecked one takes."""
    alone, both = (learner(name, impl, torch.float32, **options) for impl in ("manual", "both"))
    assert torch.equal(advance(alone, 3), advance(both, 3))
    assert_same(both.state_dict(), alone.state_dict())


@each_family_and_method
def test_a_state_passes_strictly_from_one_to_the_other_and_back(name, options):
    """And both go on from it in the same way."""
    manual, reference, fresh = (learner(name, impl, **options) for impl in ("manual", "reference", "manual"))
    advance(manual, 3)
    reference.load_state_dict(manual.state_dict())
    assert_same(reference.state_dict(), manual.state_dict())
    fresh.load_state_dict(reference.state_dict())
    assert_same(fresh.state_dict(), manual.state_dict())
    assert_close(advance(reference, 3), advance(fresh, 3), rtol=1e-9, atol=0)
    mine, theirs = fresh.state_dict(), reference.state_dict()
    assert mine["steps"] == theirs["steps"] == 6
    limit = 1e-13 if name == "mlp" else 1e-11
    for part in ("model", "memory", *mine["optimizer"]):
        one, other = (state["optimizer"].get(part) or state[part] for state in (mine, theirs))
        assert one.keys() == other.keys()
        moving = one.keys() - fresh.zeros.keys()  # adam makes steps of the size and sign of rounding of what is zero
        assert relative_difference({k: one[k] for k in moving}, {k: other[k] for k in moving}) < limit, part


W, VAR = "layer1.weight", "stage1.norm.running_var"
CHANGES = {
    "no weight": ("mlp", lambda model, adam: model.pop(W), W),
    "another weight": ("mlp", lambda model, adam: model.update({"layer9.weight": torch.zeros(1)}), "layer9.weight"),
    "a weight transposed": ("mlp", lambda model, adam: model.update({W: model[W].T}), W),
    "no mean of a bias": ("mlp", lambda model, adam: adam["mean"].pop("layer1.bias"), "layer1.bias"),
    "a mean transposed": ("mlp", lambda model, adam: adam["mean"].update({W: adam["mean"][W].T}), W),
    "a velocity": (
        "mlp",
        lambda model, adam: adam.update(velocity=adam["mean"]),
        "the optimizer's state is mean, square_mean, velocity, but here",
    ),
    "no optimizer": ("mlp", lambda model, adam: adam.clear(), "the optimizer's state is empty, but here"),
    "no running statistic": ("cnn", lambda model, adam: model.pop(VAR), VAR),
}


@pytest.mark.parametrize(("name", "change", "named"), CHANGES.values(), ids=CHANGES)
@manual_and_reference
def test_a_state_that_does_not_fit_is_refused(impl, name, change, named):
    one = learner(name, impl, optimizer="adam")
    state = one.state_dict()
    change(state["model"], state["optimizer"])
    with pytest.raises(ValueError, match=named):
        one.load_state_dict(state)


@pytest.mark.parametrize(("name", "options"), COSTS.values(), ids=COSTS)
def test_evaluation_says_the_same_whoever_evaluates(name, options):
    manual, *others = every_implementation(name, **options)
    advance(manual, 3)
    x, y = manual.batch(torch.arange(9))
    C, outputs, _ = manual.evaluate(x, y)
    for other in others:
        other.load_state_dict(manual.state_dict())
        expected, expected_outputs, _ = other.evaluate(x, y)
        compare_gradients({"C": C, "z": outputs}, {"C": expected, "z": expected_outputs}).assert_passed()
        assert torch.equal(other.outputs(x), expected_outputs)
    one_by_one = torch.cat([manual.outputs(x[i : i + 1]) for i in range(9)])
    assert_close(one_by_one, outputs, rtol=1e-11, atol=1e-13)
    if name == "mlp":  # which is the same network in training
        assert_close(C / len(y), manual.backpropagate(x, y).loss, rtol=1e-13, atol=0)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", NAMES)
def test_only_a_step_moves_a_learner(name):
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
        still = [
            key for part in ("model", "memory") for key, v in after[part].items() if torch.equal(v, before[part][key])
        ]
        assert not still, f"a step moves {still}"


@manual_and_reference
def test_what_is_handed_on_is_what_the_next_step_begins_with(impl):
    """Two segments of 7 in a row cost together what one of 14 does, where nothing is learned in between."""
    apart, whole = learner("cell", impl), learner("cell", impl, context=14)
    losses = apart.advance(batches(apart, 0, 2)[:, :1], torch.zeros(2, dtype=torch.float64))
    expected = whole.advance(batches(whole, 0, 1)[:, :1], torch.zeros(1, dtype=torch.float64))
    assert_close(losses.mean(), expected[0], rtol=1e-13, atol=0)
    one, other = (of.state_dict()["memory"] for of in (apart, whole))
    assert one.keys() == other.keys() == {"h"}
    assert_close(one["h"], other["h"], rtol=1e-12, atol=1e-14)


def test_evaluation_begins_from_zero():
    for one in every_implementation("cell"):
        x, _ = one.batch(torch.arange(5))
        advance(one, 2)
        with_memory = one.outputs(x)
        one.forget()
        assert one.state_dict()["memory"] == {}
        assert torch.equal(one.outputs(x), with_memory)


def test_a_new_epoch_begins_without_what_the_last_one_left(tmp_path, monkeypatch):
    begun, right = [], ManualLearner.advance

    def watched(self, indices, rates):
        begun.append((self.steps, bool(self.memory)))
        return right(self, indices, rates)

    monkeypatch.setattr(ManualLearner, "advance", watched)
    config, data = small("cell", epochs=2, log_every=3)
    train_loop(config, data, tmp_path / "run")
    assert [step for step, carried in begun if not carried] == [0, data.train.steps(5)]


BROKEN = {
    "early": ("mlp", 3, {"dropout": 0.2, "optimizer": "sgd", "momentum": 0.5}),
    "long after": ("mlp", 140, {"dropout": 0.2, "optimizer": "sgd", "momentum": 0.5}),
    "in the middle of a text": ("cell", 8, {"eval_every": 5}),
    "at the beginning of an epoch": ("cell", 28, {}),
}


@pytest.mark.parametrize("impl", ["manual", *(pytest.param(i, marks=pytest.mark.slow) for i in ("reference", "both"))])
@pytest.mark.parametrize(("name", "broken", "options"), BROKEN.values(), ids=BROKEN)
def test_the_steps_are_repeated_from_where_the_run_was(name, broken, options, impl, tmp_path, monkeypatch):
    """Long after the last checkpoint, with masks, a velocity and a memory: all is that of the run, to the bit."""
    seldom = {"epochs": 50, "eval_every": 10_000, "log_every": 10_000, "histogram_every": 0}
    config, data = small(name, impl, torch.float32, **{"schedule": "constant", **seldom, **options})
    repeated, examine, rates = [], Loop.examine, Loop.learning_rates

    def remember(self, indices):
        repeated.append(self.learner.state_dict())
        return examine(self, indices)

    def breaking(self, steps):
        t = self.learner.steps + 1 + torch.arange(steps)
        return torch.where(t == broken, torch.inf, rates(self, steps))

    with monkeypatch.context() as patch:
        if "eval_every" in options:
            patch.setattr("training.loop.SNAPSHOT_EVERY", 5)  # else all is repeated from the epoch's beginning
        patch.setattr(Loop, "examine", remember)
        patch.setattr(Loop, "learning_rates", breaking)
        with pytest.raises(NotFiniteError, match=f"^step {broken}: the first value that is not finite is in the new "):
            train_loop(config, data, tmp_path / "broken")
    assert [state["steps"] for state in repeated] == list(range(repeated[0]["steps"], broken))
    train_loop(replace(config, max_steps=broken - 1), data, tmp_path / "whole")
    whole = checkpoint.load(tmp_path / "whole")
    if (broken - 1) % data.train.steps(config.batch_size) == 0:
        assert whole.pop("memory")  # which the next epoch begins without
        whole["memory"] = {}
    for part in ("model", "optimizer", "memory"):
        assert_same(repeated[-1][part], whole[part])
    assert checkpoint.load(tmp_path / "broken")["steps"] == (broken - 1) // config.eval_every * config.eval_every


def masks_of(one):
    """Fills with every mask that the learner asks for, by the steps taken and the call."""
    draw, found = one.noise, {}

    def noise(steps, device, dtype):
        def remember(call, shape, keep):
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
def test_masks_are_drawn_in_training_by_the_calls_name_the_same_for_both(name, shapes):
    manual, reference = (learner(name, impl, dropout=0.2, seed=2) for impl in ("manual", "reference"))
    one, other = masks_of(manual), masks_of(reference)
    for learned in (manual, reference):
        x, y = learned.batch(torch.arange(5))
        learned.evaluate(x, y)
        learned.activations(x)
    assert not one
    assert not other
    advance(manual, 1)
    between = manual.state_dict()
    advance(manual, 1)
    advance(reference, 2)
    wanted = {(step, call): shape for step in range(2) for call, shape in shapes.items()}
    assert {key: tuple(mask.shape) for key, mask in one.items()} == wanted
    assert_same(dict(sorted(one.items())), dict(sorted(other.items())))
    assert 0.7 < torch.cat([mask.flatten() for mask in one.values()]).mean() < 0.9

    resumed, elsewhere = learner(name, dropout=0.2, seed=2), learner(name, dropout=0.2, seed=3)
    resumed.load_state_dict(between)
    rest, others = masks_of(resumed), masks_of(elsewhere)
    for after in (resumed, elsewhere):
        advance(after, 1)
    assert_same(rest, {key: mask for key, mask in one.items() if key[0] == 1})
    for call in shapes:
        assert not torch.equal(one[0, call], one[1, call]), "of another step"
        assert not torch.equal(one[0, call], others[0, call]), "of another seed"
    if name == "block":
        assert not torch.equal(one[0, "wte.dropout"], one[0, "project.dropout"]), "of another call"
