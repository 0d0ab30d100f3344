"""Manual and reference, left to themselves for hundreds of steps from the same start, stay together."""

import pytest
import torch

from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.models.mlp import MLP
from tests.support.problems import manual_learner, random_batches, rates, reference_learner, relative_difference
from training.data.augmentation import make_augment

STEPS = 1000

CASES = {
    "the default": (("sigmoid", "sigmoid", "sigmoid"), "quadratic", 3.0, {}),
    "tanh and momentum": (("tanh", "tanh", "identity"), "softmax-cross-entropy", 0.02, {"momentum": 0.9}),
    "relu and l2": (("relu", "relu", "identity"), "softmax-cross-entropy", 0.1, {"l2": 1e-3, "init": "he"}),
    "gelu, momentum and l2": (("gelu", "gelu", "identity"), "smoothed", 0.02, {"momentum": 0.9, "l2": 1e-4}),
    "softplus": (("softplus", "leaky_relu", "sigmoid"), "squared-error", 0.3, {}),
    "nesterov": (("tanh", "tanh", "identity"), "softmax-cross-entropy", 0.02, {"optimizer": "nesterov"}),
    "adagrad": (("relu", "relu", "identity"), "softmax-cross-entropy", 0.01, {"optimizer": "adagrad", "init": "he"}),
    "rmsprop": (("tanh", "tanh", "identity"), "softmax-cross-entropy", 1e-3, {"optimizer": "rmsprop"}),
    "adam": (("sigmoid", "sigmoid", "sigmoid"), "quadratic", 3e-3, {"optimizer": "adam"}),
    "adamw": (("tanh", "tanh", "identity"), "softmax-cross-entropy", 1e-3, {"optimizer": "adamw", "l2": 0.1}),
    "lion": (("tanh", "tanh", "identity"), "softmax-cross-entropy", 3e-4, {"optimizer": "lion", "l2": 0.1}),
    "muon": (("tanh", "tanh", "identity"), "softmax-cross-entropy", 1e-3, {"optimizer": "muon", "l2": 0.1}),
    "sigmoids all through": (("sigmoid", "sigmoid", "identity"), "sigmoid-cross-entropy", 0.5, {"init": "xavier"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("activations", "loss", "lr", "settings"), CASES.values(), ids=CASES)
def test_a_thousand_steps_apart_end_at_the_same_parameters(sample, activations, loss, lr, settings):
    manual = manual_learner(MLP((784, 16, 16, 10), activations), loss, sample.train, **settings)
    reference = reference_learner(manual, loss)
    start = manual.state_dict()["model"]
    batches = random_batches(STEPS, 32, len(sample.train))
    losses = manual.advance(batches, rates(STEPS, lr))
    their_losses = reference.advance(batches, rates(STEPS, lr))
    end = manual.state_dict()["model"]
    assert relative_difference(end, reference.state_dict()["model"]) < 1e-9
    torch.testing.assert_close(losses, their_losses, rtol=1e-9, atol=0)
    assert losses[-100:].mean() < 0.8 * losses[:10].mean()  # they went somewhere
    assert relative_difference(start, end) > 0.05


NETWORKS = {
    "LeNet-5": (LeNet5((1, 28, 28), 10), 0.02, "xavier"),
    "CNN": (CNN((1, 28, 28), 10, (4, 6)), 0.05, "he"),
    "CNN with dropout": (CNN((1, 28, 28), 10, (4, 6), activation="silu", dropout=0.2), 0.05, "he"),
}


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True], ids=["as they are", "shifted and turned"])
@pytest.mark.parametrize(("model", "lr", "init"), NETWORKS.values(), ids=NETWORKS)
def test_two_hundred_steps_of_convolutional_networks_end_at_the_same_parameters(sample, model, lr, init, moved):
    """And at the same running statistics."""
    augment = make_augment((28, 28), 2, 10.0, seed=3) if moved else None
    loss = "softmax-cross-entropy"
    manual = manual_learner(model, loss, sample.train, momentum=0.9, init=init, l2=1e-4, augment=augment)
    reference = reference_learner(manual, loss)
    start = manual.state_dict()["model"]
    batches = random_batches(200, 32, len(sample.train))
    losses = manual.advance(batches, rates(200, lr))
    their_losses = reference.advance(batches, rates(200, lr))
    end, theirs = manual.state_dict()["model"], reference.state_dict()["model"]
    assert relative_difference(end, theirs) < 1e-9
    torch.testing.assert_close(losses, their_losses, rtol=1e-9, atol=0)
    for name in model.buffers():
        assert end[name].dtype == theirs[name].dtype
        torch.testing.assert_close(end[name], theirs[name], rtol=1e-8, atol=1e-12)
        assert end[name].is_floating_point() or end[name].item() == 200
    assert losses[-20:].mean() < 0.8 * losses[:10].mean()  # they went somewhere
    assert relative_difference(start, end) > 0.05
