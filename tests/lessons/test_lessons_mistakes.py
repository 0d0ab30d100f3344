"""A lesson notices what is wrong (gallery/noticed.py), and nothing where nothing is."""

from dataclasses import replace
from importlib import import_module

import pytest

import lessons.universal_approximation as approximation
import lessons.vanishing_gradients as vanishing
import lessons.what_layers_learn as neurons
from gallery.noticed import NOTICED, WrongLesson, everywhere
from gallery.perceptron import SpelledMLP
from training.data import points_rule


def accuracies(**changed):
    """What training is made to say where it would take long."""
    made = {"sigmoid_1_layer": 0.8, "sigmoid_6_layers": 0.1, "tanh_xavier_6_layers": 0.8, "relu_he_6_layers": 0.8}
    made = {name.replace("_", "-"): [(0, 0.1), (400, accuracy)] for name, accuracy in (made | changed).items()}
    return lambda data, seed, run_dir: made


def says_blue(width, seed, run_dir):
    truth = points_rule(approximation.square())
    return truth if width > 1 else ~truth


SMALLER = {
    "three_ways": {"DIRECTIONS": 10},
    "sensitivity": {"PER_LAYER": 100},
    "fire_together": {"EXAMPLES": 20, "STEPS": 10},
    "one_example": {"STAGES": (0, 30, 40), "EXAMPLES": 300, "PICTURES": 50},
    "vanishing_gradients": {"learn": accuracies()},
    "universal_approximation": {"STEPS": 500, "FELL": 5, "says_blue": says_blue},
    "what_layers_learn": {"NETWORK": replace(neurons.NETWORK, epochs=1), "STEPS": 100},
}
LONG = ["cost_functions", "fire_together", "one_example", "universal_approximation", "what_layers_learn"]
# The right network, written in the same way as the wrong ones, must not be taken for one of them.
RIGHT = [WrongLesson(lesson, "right", everywhere(SpelledMLP)) for lesson in {wrong.lesson: None for wrong in NOTICED}]


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(wrong, id=f"{wrong.lesson}, {wrong.title}", marks=[pytest.mark.long] * (wrong.lesson in LONG))
        for wrong in NOTICED + RIGHT
    ],
)
def test_a_lesson_notices_a_mistake_and_only_that(monkeypatch, sample, tmp_path, wrong):
    lesson = import_module(f"lessons.{wrong.lesson}")
    for name, value in SMALLER.get(wrong.lesson, {}).items():
        monkeypatch.setattr(lesson, name, value)
    wrong.spoil(lesson, monkeypatch)
    report = lesson.run(sample, 0, tmp_path)
    assert report.holds == (wrong in RIGHT)
    assert wrong.lesson != "one_example" or len(report.curves) == 3 * 10  # of every stage, one for each digit


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    "changed", [{"sigmoid_6_layers": 0.6}, {"relu_he_6_layers": 0.3}, {"sigmoid_1_layer": 0.15}], ids=str
)
def test_vanishing_gradients_can_fail_in_training(sample, tmp_path, monkeypatch, changed):
    monkeypatch.setattr(vanishing, "learn", accuracies(**changed))
    assert not vanishing.run(sample, 0, tmp_path).holds
