"""Lessons on single examples: which neurons fire together, and what one example wants."""

import pytest
import torch
from torch import Tensor

from lessons import fire_together, measure, one_example
from lessons.measure import distance
from lessons.runs import batch
from tests.support.lesson_networks import EXACT, costs_by_torch, gradient_by_torch

# fire-together


def test_ranks_of_known_matrices():
    u, v = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert fire_together.rank(u.T @ v) == fire_together.rank(1e-12 * u.T @ v) == 3
    assert fire_together.rank(torch.outer(u[0], v[0])) == 1
    assert fire_together.second(torch.outer(u[0], v[0])) < EXACT
    assert fire_together.second(torch.diag(torch.tensor([4.0, -2.0, 1.0]))) == pytest.approx(0.5)


def test_the_strongest_growth_joins_the_brightest_to_the_digits_neuron(settled, sample):
    known = torch.zeros(3, 4, 2)
    known[2, 1, 0], known[0, 3, 1], known[1, 1, 1] = 1, 1, -5
    assert [index.tolist() for index in fire_together.strongest(known)] == [[2, 0], [1, 3]]
    x, y = batch(sample.train, 50)
    each = [settled.params.split(-gradient_by_torch(settled, x[i : i + 1], y[i : i + 1])) for i in range(50)]
    j, k = fire_together.strongest(torch.stack([growth["layer3.weight"] for growth in each], dim=2))
    assert torch.equal(j, y)
    assert torch.equal(k, settled.backpropagate(x, y).outputs["layer2.a"].argmax(dim=1))


# one-example


def test_what_one_step_changes_is_sorted_by_class():
    y = torch.tensor([0, 1, 1, 0])
    changes = torch.tensor([[-4.0, 1.0, 2.0, -1.0], [3.0, -5.0, -2.0, -1.0]])  # for the first two examples
    step = one_example.OneStep(changes, torch.zeros(4), y)
    assert step.own.tolist() == [-4, -5]
    assert [change.tolist() for change in step.of_others] == [[1, 2], [3, -1]]
    assert (step.mean_of_others.tolist(), step.rising) == ([1.5, 1], 0.75)


def test_a_step_for_one_and_a_step_for_all(monkeypatch, settled, sample):
    monkeypatch.setattr(one_example, "CHOICES", 4)
    x, y = batch(sample.train, 30)
    theta = settled.params.theta.clone()
    step = one_example.one_step(settled, x, y)
    assert torch.equal(settled.params.theta, theta)

    def change(move: Tensor) -> Tensor:
        return costs_by_torch(settled, theta + move, x, y) - costs_by_torch(settled, theta, x, y)

    moves = [-0.1 * gradient_by_torch(settled, x[i : i + 1], y[i : i + 1]) for i in range(4)]
    average = -gradient_by_torch(settled, x, y)
    average *= sum(move.norm() for move in moves) / 4 / average.norm()
    for i, move in enumerate(moves):
        assert distance(step.changes[i], change(move)) < 1e-9  # differences of costs near 1
    assert distance(step.averaged, change(average)) < 1e-9


def test_one_step_for_one_is_at_the_cost_of_others_only_once_the_outputs_have_settled(network, sample):
    x, y = batch(sample.train, 500)
    step = one_example.one_step(network, x, y)
    assert step.rising < 0.01, "at random initial values all want the same"
    assert step.averaged.mean() < 0
    measure.train_to(network, one_example.SETTLED, seed=1)
    step = one_example.one_step(network, x, y)
    assert (step.own < 0).all()
    assert (step.mean_of_others > 0).all()
    assert step.rising > 0.9
    assert step.averaged.mean() < 0


def test_listening_to_one_example_calls_everything_its_class(settled, sample):
    x, _ = batch(sample.test, 100)
    before = settled.state_dict()
    curve = one_example.alone(settled, 5, x)
    assert [step for step, _ in curve] == list(range(101))
    assert (curve[0][1], curve[-1][1]) == (one_example.called(settled, x, sample.train.y[5]), 1)
    after = settled.state_dict()
    assert after["steps"] == before["steps"]
    assert all(torch.equal(after["model"][name], tensor) for name, tensor in before["model"].items())


def test_what_is_called_a_digit(network, sample):
    x, y = batch(sample.test, 100)
    predictions = network.evaluate(x, y)[1].argmax(dim=1)
    digit = int(predictions[0])
    assert one_example.called(network, x, torch.tensor(digit)) == (predictions == digit).double().mean().item()
    assert one_example.called(network, x, predictions) == 1


@pytest.mark.long
@pytest.mark.parametrize("wrong", ["one example gets nothing", "all are listened to"])
def test_one_example_notices_gradients_of_other_examples(monkeypatch, sample, tmp_path, wrong):
    for name, value in {"STAGES": (0, 30, 40), "EXAMPLES": 300, "PICTURES": 50}.items():
        monkeypatch.setattr(one_example, name, value)
    eighth, everything = batch(sample.train, 8)[0][7:], batch(sample.train, 300)

    def gradient(network, x, y):
        if wrong == "all are listened to":  # then the step for one does not raise the costs of others
            return measure.gradient(network, *everything)
        return measure.gradient(network, x, y) * (not torch.equal(x, eighth))

    monkeypatch.setattr(one_example, "gradient", gradient)
    report = one_example.run(sample, 0, tmp_path)
    assert not report.holds
    assert len(report.curves) == 3 * 10  # of every stage, one for each digit
