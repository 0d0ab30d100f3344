"""Every model, found through its family: by hand and by its twin, on the first problems of the family."""

from itertools import islice

import pytest
import torch

from training.families import FAMILIES
from training.families.base import Family, Problem
from training.learners.verification import costs, verify_problem

PROBLEMS = [
    pytest.param(family, problem, id=f"{name}: {problem.title}")
    for name, family in FAMILIES.items()
    for problem in islice(family.problems(), 6)
]


@pytest.mark.parametrize(("family", "problem"), PROBLEMS)
def test_every_gradient_equals_the_twins(family: Family, problem: Problem) -> None:
    check = verify_problem(family, problem, costs()[problem.loss], torch.float64, [0])
    assert check.passed, str(check.nearest)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_problems_give_its_model(name: str) -> None:
    assert all(type(problem.model) is FAMILIES[name].model for problem in FAMILIES[name].problems())
