"""What the tests of lessons measure with: autograd through the lessons' networks, and mistakes put into them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gallery.parts import sigmoid_of_slope
from lessons.measure import outputs
from lessons.runs import learner
from manual_backprop.layers.activations import ACTIVATIONS
from training.data import Dataset
from training.families.configure import configure
from training.learners.manual import ManualLearner

EXACT = 1e-12  # of two computations of the same in float64


def network_of(data: Dataset, **settings: object) -> ManualLearner:
    return learner(configure(**{"hidden": (7,), "dtype": "float64", **settings}), data)


def by_autograd(network: ManualLearner, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the network's cost, flat; of the project only the forward pass."""
    leaves = {name: p.clone().requires_grad_() for name, p in network.params.items()}
    C, _ = network.loss.forward(outputs(network.model, leaves, x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(C, list(leaves.values()))])


def costs_by_torch(network: ManualLearner, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B,): ‖a − y‖² of 784-16-16-10 sigmoids; no code of the project."""
    params = network.params.split(theta)
    for l in (1, 2, 3):
        x = torch.sigmoid(F.linear(x, params[f"layer{l}.weight"], params[f"layer{l}.bias"]))
    return F.mse_loss(x, F.one_hot(y, 10).double(), reduction="none").sum(dim=1)


def gradient_by_torch(network: ManualLearner, x: Tensor, y: Tensor) -> Tensor:
    theta = network.params.theta.clone().requires_grad_()
    return torch.autograd.grad(costs_by_torch(network, theta, x, y).mean(), theta)[0]


def with_slope(monkeypatch: pytest.MonkeyPatch, slope: float) -> None:
    """Give every sigmoid a backward pass in which σ′ is this number."""
    monkeypatch.setitem(ACTIVATIONS, "sigmoid", sigmoid_of_slope(slope))
