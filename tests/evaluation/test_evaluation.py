"""How good a learner is: what is measured of each task, what outputs are called, and that no learning is noticed."""

import re
from dataclasses import replace
from functools import partial
from math import log

import pytest
import torch

import train
from lessons.runs import Silent
from tests.support.running import at_poll, call, learner_of, resolved, train_loop, write_npz
from training import evaluation
from training.data import Dataset, Split, load
from training.evaluation import Evaluation, confidence, evaluate
from training.evaluation.watch import Watch
from training.families.advice import advice, remedy
from training.families.configure import configure
from training.tasks import CLASSIFICATION, NEXT_TOKEN, TASKS, Sums, task_of


def test_metrics_follow_from_sums():
    sums = Sums(cost=6.0, correct=3, targets=4)
    assert CLASSIFICATION.evaluate(sums) == {"loss": 1.5, "accuracy": 0.75}
    assert NEXT_TOKEN.evaluate(sums) == {"loss": 1.5, "bits": 1.5 / log(2)}
    guess = Sums(cost=100 * log(32), correct=0, targets=100)
    assert NEXT_TOKEN.evaluate(guess)["bits"] == pytest.approx(5), "of 32 tokens"


def test_tags_and_their_order():
    values = {"loss": 1.0, "accuracy": 0.5}
    assert list(CLASSIFICATION.tags(values, values)) == ["loss/test", "accuracy/test", "accuracy/train"]
    assert CLASSIFICATION.tags(values, {"loss": 2.0, "accuracy": 0.75})["accuracy/train"] == 0.75
    assert [*CLASSIFICATION.hparams(values).items()] == [("hparam/accuracy", 0.5), ("hparam/loss", 1.0)]
    assert NEXT_TOKEN.hparams({"loss": 1.0, "bits": 2.0}) == {"hparam/bits": 2.0, "hparam/loss": 1.0}


def test_which_is_better():
    assert CLASSIFICATION.is_better(0.9, 0.8)
    assert not CLASSIFICATION.is_better(0.8, 0.8)
    assert not CLASSIFICATION.is_better(0.0, CLASSIFICATION.worst)
    assert NEXT_TOKEN.is_better(0.8, 0.9)
    assert not NEXT_TOKEN.is_better(0.8, 0.8)
    assert NEXT_TOKEN.is_better(1e300, NEXT_TOKEN.worst)


def test_every_task_is_whole_and_points_are_classified():
    for task in TASKS.values():
        assert task.headline in task.metrics
        assert task.metrics[0].name == "loss", "evaluation, watch and schedules read it"
        assert len({metric.name for metric in task.metrics}) == len(task.metrics)
    assert task_of(load("points")) is CLASSIFICATION


def ones_and_zeros():
    """A network that gives its two inputs back, and three examples, of which it gets two right."""
    split = Split(torch.tensor([[1.0, 0.0], [0.25, 0.5], [0.0, 1.0]]), torch.tensor([0, 1, 0]))
    data = Dataset("npz", split, split, (2,), ("a", "b"), "")
    learner = learner_of(resolved(configure(hidden=(2,), activation=("identity",), epochs=1), data), data)
    for name, p in learner.parameters.items():
        p.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    return learner, split


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_evaluation_of_a_case_done_by_hand(block, monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", block)
    learner, split = ones_and_zeros()
    result = evaluate(learner, split, torch.float32)
    assert torch.equal(result.outputs, split.x)
    assert result.values["accuracy"] == pytest.approx(2 / 3)
    # ½‖a − y‖²: nothing for (1, 0) as 0; ½(¼² + ½²) for (¼, ½) as 1; ½(1 + 1) for (0, 1) as 0
    assert result.loss == pytest.approx((0 + 0.15625 + 1) / 3)


def test_evaluation_asks_before_every_block_whether_to_stop(monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", 1)
    learner, split = ones_and_zeros()
    for polls in range(3):
        answers = [True] + [False] * polls
        assert evaluate(learner, split, torch.float32, stop=answers.pop) is None
        assert not answers
    assert evaluate(learner, split, torch.float32, stop=lambda: False) is not None


def test_what_outputs_are_called():
    z = torch.tensor([[0.0, 1.0, -2.0], [1e4, -1e4, 0.0]])
    powers = z.double().exp().clamp(max=1e300)
    likely = {"softmax": powers / powers.sum(1, True), "sigmoid": 1 / (1 + (-z.double()).exp())}
    for name, expected in likely.items():
        probabilities, kind = confidence(z, f"{name}-cross-entropy")
        assert kind == "probability"
        torch.testing.assert_close(probabilities, expected)
    for loss in ("quadratic", "squared-error"):
        activations, kind = confidence(z, loss)
        assert kind == "activation"
        assert torch.equal(activations, z.double())


# A run that does not learn says so: once, at the end of an epoch, with what to try; one that learns is left alone


def told(capsys, tmp_path, *options):
    """What train.py says of a run on the sample that does not learn."""
    done = call(capsys, train.main, "--dataset", "sample", *options, "--run-dir", tmp_path / "run")
    assert done.status == 0
    return [line for line in done.out.splitlines() if "does not learn" in line]


IN_FULL = "--loss softmax-cross-entropy --activation relu --lr 0.1"
DEAD = "every neuron of layer1 outputs 0 for each of 100 exam"
ZEROS = "--examples 200 --batch-size 20 --shift 0 --rotate 0 --activation relu --init zeros"
LEARNS = [  # as slowly as a run may that is left alone; quicker ones are in tests/config/test_defaults.py
    *("--max-steps 25", "--hidden 16 16 16 --epochs 6", "--schedule one-cycle --epochs 6"),
    "--preset points --dataset points --epochs 50 --max-steps 1500",
    "--preset nnfs-spiral --dataset spiral --epochs 10000 --max-steps 1500",
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "seen", "advised"),
    [
        ("--activation relu --init zeros", DEAD, "--init he (not zeros)"),
        ("--preset 3b1b --optimizer adam", "always answering", "--lr 0.003 --init xavier (not 10 and scaled-normal)"),
        ("--lr 1e-5", "has hardly moved from", "--lr 10 (not 1e-05)"),
        ("--hidden 16 16 16 16 16 16", "always answering", "--activation relu, or fewer layers"),
        ("--l2 0.03", "always answering", "a smaller --l2 (not 0.03)"),
        ("--optimizer adam --lr 0.5 --activation identity", "has risen from", "--lr 0.005 (not 0.5)"),
        (f"--model cnn {ZEROS}", "always answering", "--init he (not zeros)"),
        *((options, "", "") for options in LEARNS),
    ],
)
def test_a_run_that_does_not_learn_says_so_once_and_no_other_does(options, seen, advised, tmp_path, capsys):
    lines = told(capsys, tmp_path, "--epochs", 3, *options.split())
    assert len(lines) == bool(seen)
    for line in lines:
        assert re.match(r"epoch \d: this run does not learn so far: ", line)
        assert seen in line
        assert advised in line.partition(". Try ")[2]


def test_it_is_said_once_even_if_the_run_is_resumed(tmp_path, monkeypatch):
    data = load("npz", write_npz(tmp_path / "a.npz"))
    config = resolved(configure(dataset="npz", hidden=(4,), lr=1e-9, batch_size=2, epochs=3, threads=1), data)
    said = []
    monkeypatch.setattr(Silent, "notice", lambda self, text: said.append(text))
    for stop in (at_poll(40), lambda: False):
        train_loop(config, data, tmp_path / "run", stop)
        assert len(said) == 1


def watch(total=1000, y=(40, 30, 30), **options):
    """Of a data set with so many examples of each class, in order."""
    labels = torch.arange(len(y)).repeat_interleave(torch.tensor(y))
    split = Split(torch.arange(2.0 * len(labels)).view(-1, 2), labels)
    data = Dataset("npz", split, split, (2,), tuple("abc"[: len(y)]), "")
    return Watch(configure(**options), data, total, {})


def alive(x):
    return {name: torch.ones(len(x), 3) for name in ("layer1", "layer2", "layer3")}


def say(see, step, loss, accuracy, activations=alive):
    values = {"loss": loss, "accuracy": accuracy}
    return see(step, Evaluation(values, torch.empty(0), see.data.train.y), activations)


def said_in_the_end(see, loss, accuracy, **options):
    """Of a run that began at a cost of 2 and ends so."""
    assert say(see, 0, 2.0, 0.4) == ""
    return say(see, see.total, loss, accuracy, **options)


@pytest.mark.parametrize("y", [(8, 2), (239, 4), (3, 1), (12, 0)], ids=str)
def test_all_right_is_never_chance_however_few_or_uneven_the_examples(y):
    assert (said_in_the_end(watch(y=y), 1.0, 1.0) == "") == (y != (12, 0))
    assert "always answering a" in said_in_the_end(watch(y=y), 1.0, max(y) / sum(y))


def at_chance(*steps):
    """Evaluations at these steps in which always answering a would do as well."""
    return [(step, 1.0, 0.4) for step in steps]


CHANCE = "correctly, and always answering a would be right for 40.00%"
COSTS = {3.5: "has risen from 2 to 3.5", 2.01: "has hardly moved from 2", 1.99: "hardly moved", 1.97: ""}
RISES = [(0, 9.0, 0.4), (100, 1.0, 0.9), (200, 1.2, 0.9), (300, 1.4, 0.9)]
COURSES = {
    **{f"accuracy {a}": (1000, {}, [(1000, 1.0, a)], CHANCE if a < 0.5 else "") for a in (0.1, 0.4, 0.49, 0.51, 0.9)},
    **{f"cost {loss}": (1000, {}, [(1000, loss, 0.9)], told) for loss, told in COSTS.items()},
    "twice in a row": (1000, {}, at_chance(200, 300), "always answering a"),
    "not in a row": (1000, {}, [*at_chance(200), (300, 1.0, 0.9), *at_chance(400)], ""),
    "once, at the end": (1000, {}, at_chance(1000), "always answering a"),
    "before a hundred steps": (1000, {}, at_chance(99, 119), ""),
    "after a hundred steps": (1000, {}, at_chance(100, 120), "always answering a"),
    "before a tenth of the run": (5000, {}, at_chance(499, 599), ""),
    "after a tenth of the run": (5000, {}, at_chance(500, 600), "always answering a"),
    "the end of a short run": (30, {}, at_chance(30), "always answering a"),
    "too short a run": (19, {}, at_chance(19), ""),
    "for a moment, in which every epoch is a step": (1000, {}, at_chance(*range(300, 320)), ""),
    "for longer": (1000, {}, at_chance(*range(300, 321)), "always answering a"),
    "while the rate rises": (1000, {"schedule": "one-cycle"}, at_chance(399, 419), ""),
    "after the rate has risen": (1000, {"schedule": "one-cycle"}, at_chance(400, 420), "always answering a"),
    "while it warms up": (1000, {"warmup": 250}, at_chance(349, 369), ""),
    "after it has warmed up": (1000, {"warmup": 250}, at_chance(350, 370), "always answering a"),
    "a cost that keeps rising": (1000, {}, [*RISES, (400, 1.6, 0.7), (500, 1.8, 0.7)], "it was 1, and is 1.8."),
    "one that rises at the end": (400, {}, [*RISES, (400, 1.7, 0.7)], "it was 1, and is 1.7."),
    "one that wavers": (400, {}, [*RISES[:3], (300, 1.1, 0.9), (400, 1.7, 0.7)], ""),
    "it costs no accuracy": (400, {}, [*RISES, (400, 1.7, 0.9)], ""),
    "it rises by little": (400, {}, [*RISES[:2], (200, 1.1, 0.9), (300, 1.2, 0.9), (400, 1.3, 0.7)], ""),
}


@pytest.mark.parametrize(("total", "options", "course", "told"), COURSES.values(), ids=COURSES)
def test_the_course_of_a_run(total, options, course, told):
    """What is said after its last evaluation: nothing is before, and nothing once it is said.

    It looks bad where the accuracy is that of the commonest class, as far as 100 examples can tell, and where the cost
    is no lower than before the first step, or keeps rising.
    """
    see = watch(total, **options)
    begun = [] if course[0][0] == 0 else [(0, 2.0, 0.4)]
    *before, last = [say(see, *evaluated) for evaluated in begun + course]
    assert before == [""] * len(before)
    assert bool(last) == bool(told)
    assert told in last
    if told:
        assert say(see, course[-1][0] + 100, 1.0, 0.4) == ""


@pytest.mark.parametrize("layer", ["layer1", "layer2"])
def test_a_hidden_layer_whose_neurons_are_all_dead(layer):
    def activations(x, living=0.0):
        hidden = torch.zeros(len(x), 3)
        hidden[7, 1] = living
        return {**alive(x), layer: hidden}

    sentence = said_in_the_end(watch(), 1.0, 0.4, activations=activations)
    assert f"; every neuron of {layer} outputs 0 for each of 100 examples. Try" in sentence
    assert said_in_the_end(watch(), 1.0, 0.9, activations=activations) == "", "if it learns, it is not dead"
    for living in (partial(activations, living=1.0), lambda x: {**alive(x), "layer3": torch.zeros(len(x), 3)}):
        assert "outputs 0" not in said_in_the_end(watch(), 1.0, 0.4, activations=living), "outputs may be 0"


def test_examples_of_all_classes_are_looked_at_where_the_classes_are_sorted():
    looked = []
    said_in_the_end(watch(y=(200, 200)), 1.0, 0.4, activations=lambda x: looked.append(x) or alive(x))
    (x,) = looked
    assert (len(x), x[0].tolist(), x[-1].tolist()) == (100, [0, 1], [798, 799])


OTHERWISE = "a smaller --lr (not 0.1), or another --optimizer or --seed"
RELUS, SIGMOIDS = ("relu", "relu", "sigmoid"), ("sigmoid", "sigmoid", "identity")
IN_SIGMOIDS = "--loss quadratic --activation sigmoid --lr 10 --init scaled-normal"
ADVICE = {
    OTHERWISE: {},
    "--init he (not zeros)": dict(init="zeros"),
    "--lr 0.1 (not 10)": dict(lr=10.0, l2=0.1),
    "a smaller --l2 (not 0.1), or a smaller --dropout (not 0.9)": dict(l2=0.1, dropout=0.9),
    f"wider layers, or {OTHERWISE}": dict(hidden=(3,), activation=("relu", "identity")),
    f"--activation relu, or fewer layers, or {OTHERWISE}": dict(hidden=(9,) * 3, activation=("tanh",), init="xavier"),
    f"--lr 0.3 --init he (not 0.1 and zeros), or {IN_FULL} --init he": dict(
        loss="quadratic", activation=RELUS, init="zeros"
    ),
    "a larger --clip-norm (not 1e-20)": dict(clip_norm=1e-20, lr=10.0),
    "a smaller --eps (not 1e+20), or a smaller --l1 (not 10)": dict(optimizer="adam", eps=1e20, l1=10.0),
    f"--lr 1 (not 1000), or {IN_SIGMOIDS}": dict(activation=SIGMOIDS, init="scaled-normal", lr=1000.0),
}


@pytest.mark.parametrize(("said", "changed"), ADVICE.items(), ids=str)
def test_advice_is_what_would_have_been_chosen(said, changed):
    good = configure(activation=("relu", "relu", "identity"), loss="softmax-cross-entropy", lr=0.1, init="he")
    assert advice(replace(good, **changed), 5000) == said
    assert advice(replace(good, **changed), 500) == f"{said}, and more --epochs"


def test_where_values_overflow_the_option_farthest_from_what_is_usual_is_named():
    good = configure(activation=("relu", "relu", "identity"), loss="softmax-cross-entropy", lr=0.1, init="he")
    adam = replace(good, optimizer="adam", lr=0.005)
    assert remedy(replace(good, l2=0.01)) == "try a smaller --lr (not 0.1)"
    assert remedy(replace(good, lr=1e29, l2=0.2)) == "try a smaller --lr (not 1e+29)"
    assert remedy(replace(good, lr=2.0, l2=1e5)) == "try a smaller --l2 (not 100000)"
    assert remedy(replace(good, momentum=0.999999)) == "try a smaller --momentum (not 0.999999)"
    assert remedy(replace(adam, betas=(0.9, 0.9999999))) == "try a smaller --betas (not 0.9 0.9999999)"
    assert remedy(replace(adam, eps=1e-30, l2=0.1)) == "try a larger --eps (not 1e-30)"


@pytest.mark.long
@pytest.mark.parametrize("options", ["--preset 3b1b --activation relu", "--activation relu relu sigmoid --lr 100"])
def test_advice_that_is_followed_helps(options, tmp_path, capsys):
    (said,) = told(capsys, tmp_path / "bad", "--epochs", 3, *options.split())
    advised = said.partition(", or ")[2].partition(", and more")[0]
    assert told(capsys, tmp_path / "good", "--epochs", 3, *options.split(), *advised.split()) == []
