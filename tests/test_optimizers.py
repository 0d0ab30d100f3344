"""Update equations against hand calculation and torch.optim, fed the same recorded gradients."""

import pytest
import torch
from torch import Tensor, nn

import reference.optimizers
from manual_backprop.optimizers import SGD
from manual_backprop.parameters import Parameters

STEPS = 1000
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "l2": {"l2": 0.01},
    "momentum and l2": {"momentum": 0.9, "l2": 0.01},
}


def run(optimizer: SGD, theta: Tensor, gradients: list[Tensor], lr: float, decay: Tensor | None) -> Tensor:
    state = optimizer.init(theta)
    rate = torch.tensor(lr, dtype=torch.float64)
    for gradient in gradients:
        optimizer.update(theta, gradient, state, rate, decay)
    return theta


def recorded_gradients(size: int) -> list[Tensor]:
    """Noise around a mean that changes sign, over six orders of magnitude."""
    generator = torch.Generator().manual_seed(11)
    scale = 10 ** torch.linspace(-3, 3, size, dtype=torch.float64)
    return [
        scale * (torch.randn(size, generator=generator, dtype=torch.float64) + (-1) ** (t // 100)) for t in range(STEPS)
    ]


@pytest.mark.parametrize("lr", [1e-3, 0.5, 100.0], ids=lambda lr: f"lr {lr}")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_sgd_is_torchs_for_a_thousand_recorded_gradients(settings, lr):
    momentum, l2 = settings.get("momentum", 0.0), settings.get("l2", 0.0)
    start = torch.linspace(-2, 2, 37, dtype=torch.float64)
    gradients = recorded_gradients(37)
    theirs = nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([theirs], lr=lr, momentum=momentum, weight_decay=l2)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    mine = run(SGD(momentum), start.clone(), gradients, lr, torch.full_like(start, l2) if l2 else None)
    error = (mine - theirs.detach()).abs() / theirs.detach().abs()
    assert theirs.isfinite().all()
    assert error.max() < 1e-12


def test_l2_pulls_at_weights_and_not_at_biases():
    module = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    parameters = Parameters({name: tuple(p.shape) for name, p in module.named_parameters()}, dtype=torch.float64)
    parameters.load_state_dict(module.state_dict())
    biases = {name: tensor.clone() for name, tensor in parameters.items() if name.endswith(".bias")}
    optimizer = reference.optimizers.sgd(module, momentum=0.5, l2=0.1)
    decay = parameters.vector(lambda name: 0.0 if name.endswith(".bias") else 0.1)
    nothing = torch.zeros_like(parameters.theta)
    run(SGD(momentum=0.5), parameters.theta, [nothing] * 10, 0.3, decay)
    for group in optimizer.param_groups:
        group["lr"] = 0.3
    for _ in range(10):
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for name, theirs in module.state_dict().items():
        torch.testing.assert_close(parameters[name], theirs, rtol=1e-12, atol=0)
    for name, before in biases.items():
        assert torch.equal(parameters[name], before)


# C = w² from w = 1, so ∂C/∂w = 2w, at η = 0.1: w after each of three steps, worked out on paper.
BOWL = {
    "plain": (SGD(), 0.0, (0.8, 0.64, 0.512)),
    # v = 2, 3.4, 3.98 with v ← 0.9 v + 2w
    "momentum": (SGD(momentum=0.9), 0.0, (0.8, 0.46, 0.062)),
    # w ← w − 0.1 (2 + ½) w = ¾ w
    "l2": (SGD(), 0.5, (0.75, 0.5625, 0.421875)),
    # v = 2.5, 4.125, 4.55625 with v ← 0.9 v + 2.5 w
    "momentum and l2": (SGD(momentum=0.9), 0.5, (0.75, 0.3375, -0.118125)),
}


@pytest.mark.parametrize(("optimizer", "l2", "path"), BOWL.values(), ids=BOWL)
def test_three_steps_in_a_bowl(optimizer, l2, path):
    w = torch.ones(1, dtype=torch.float64)
    state, rate = optimizer.init(w), torch.tensor(0.1, dtype=torch.float64)
    decay = torch.full_like(w, l2) if l2 else None
    seen = []
    for _ in path:
        optimizer.update(w, 2 * w, state, rate, decay)
        seen.append(w.item())
    assert seen == pytest.approx(path, rel=1e-14, abs=0)


def test_a_step_reads_the_gradient_and_the_decay_and_writes_to_neither():
    theta, gradient, decay = torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 0.5)
    optimizer = SGD(momentum=0.9)
    state = optimizer.init(theta)
    for _ in range(2):
        optimizer.update(theta, gradient, state, torch.tensor(0.1), decay)
    assert gradient.tolist() == [1.0, 2.0, 3.0]
    assert decay.tolist() == [0.5, 0.5, 0.5]


def test_without_momentum_there_is_no_state():
    assert SGD().init(torch.ones(3)) == {}
