"""Manual and reference, left to themselves for hundreds of steps from the same start, stay together."""

from typing import Any

import pytest
from torch.testing import assert_close

from tests.support.lockstep import NAMES, SOFTMAX, advance, learner
from tests.support.problems import random_batches, rates, relative_difference


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", NAMES)
def test_apart_they_go_the_same_way(name: str) -> None:
    manual, reference = learner(name), learner(name, "reference")
    assert_close(advance(manual, 8), advance(reference, 8), rtol=1e-9, atol=0)
    one, other = manual.state_dict(), reference.state_dict()
    for part in ("model", "memory"):
        mine, theirs = one[part], other[part]
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - manual.zeros.keys():  # of which adam makes steps of the size and sign of rounding
            assert_close(mine[key], theirs[key], rtol=1e-6, atol=1e-9)


SGD = {"optimizer": "sgd", "momentum": 0.9}
TANH = {"activation": ("tanh", "tanh", "identity")}
SIGMOID = {"activation": ("sigmoid",), "loss": "quadratic", "init": "scaled-normal"}
MOVED = {"shift": 2, "rotate": 10.0}
STILL = {"shift": 0, "rotate": 0.0}
CNN = SGD | {"channels": (4, 6), "activation": ("relu",), "init": "he", "l2": 1e-4}
LENET = SGD | {"activation": ("scaled_tanh",), "init": "xavier", "l2": 1e-4}
CASES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "the default": ("mlp", 3.0, SIGMOID),
    "tanh and momentum": ("mlp", 0.02, TANH | SGD),
    "relu and l2": ("mlp", 0.1, {"activation": ("relu",), "l2": 1e-3, "init": "he"}),
    "gelu, momentum and l2": ("mlp", 0.02, SGD | {"activation": ("gelu",), "label_smoothing": 0.15, "l2": 1e-4}),
    "softplus": ("mlp", 0.3, {"activation": ("softplus", "leaky_relu", "sigmoid"), "loss": "squared-error"}),
    "nesterov": ("mlp", 0.02, TANH | {"optimizer": "nesterov"}),
    "adagrad": ("mlp", 0.01, {"activation": ("relu",), "optimizer": "adagrad", "init": "he"}),
    "rmsprop": ("mlp", 1e-3, TANH | {"optimizer": "rmsprop"}),
    "adam": ("mlp", 3e-3, SIGMOID | {"optimizer": "adam"}),
    "adamw": ("mlp", 1e-3, TANH | {"optimizer": "adamw", "l2": 0.1}),
    "lion": ("mlp", 3e-4, TANH | {"optimizer": "lion", "l2": 0.1}),
    "muon": ("mlp", 1e-3, TANH | {"optimizer": "muon", "l2": 0.1}),
    "sigmoids all through": ("mlp", 0.5, {"activation": ("sigmoid",), "loss": "sigmoid-cross-entropy"}),
    "LeNet-5": ("lenet5", 0.02, LENET | STILL),
    "LeNet-5, shifted and turned": ("lenet5", 0.02, LENET | MOVED),
    "CNN": ("cnn", 0.05, CNN | STILL),
    "CNN, shifted and turned": ("cnn", 0.05, CNN | MOVED),
    "CNN with dropout": ("cnn", 0.05, CNN | STILL | {"activation": ("silu",), "dropout": 0.2}),
    "CNN with dropout, shifted and turned": ("cnn", 0.05, CNN | MOVED | {"activation": ("silu",), "dropout": 0.2}),
}


REPRESENTATIVE = ["the default", "tanh and momentum", "lion", "CNN"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "lr", "options"),
    [
        pytest.param(*case, id=title, marks=pytest.mark.slow if title in REPRESENTATIVE else pytest.mark.long)
        for title, case in CASES.items()
    ],
)
def test_hundreds_of_steps_apart_end_at_the_same_parameters(name: str, lr: float, options: dict[str, Any]) -> None:
    """And at the same running statistics."""
    steps = 1000 if name == "mlp" else 200
    manual, reference = (learner(name, impl, **SOFTMAX | options) for impl in ("manual", "reference"))
    start = manual.state_dict()["model"]
    indices = random_batches(steps, 32, len(manual.train))
    losses, their_losses = (one.advance(indices, rates(steps, lr)) for one in (manual, reference))
    end, theirs = manual.state_dict()["model"], reference.state_dict()["model"]
    assert relative_difference(end, theirs) < 1e-9
    assert_close(losses, their_losses, rtol=1e-9, atol=0)
    for key in manual.buffers:
        assert end[key].dtype == theirs[key].dtype
        assert_close(end[key], theirs[key], rtol=1e-8, atol=1e-12)
        assert end[key].is_floating_point() or end[key].item() == steps
    assert losses[-steps // 10 :].mean() < 0.8 * losses[:10].mean()  # they went somewhere
    assert relative_difference(start, end) > 0.05
