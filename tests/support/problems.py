"""Learners of either implementation for the same small problem, at the same initial values."""

from dataclasses import asdict
from functools import partial

import torch

from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.optimizers import OPTIMIZERS, SGD
from tests.support.both_ways import LOSSES, TWIN_LOSSES
from training.data import Split
from training.data.noise import dropout_noise
from training.families.networks import make_twin
from training.learners.checked import CheckedLearner
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner


def manual_learner(
    model, loss, train, *, dtype=torch.float64, momentum=0.0, l2=0.0, init="scaled-normal", seed=0, rules=None
):
    """By SGD; `rules` are the penalties and limits around it (l1, clip_norm, …)."""
    noise = dropout_noise(seed) if getattr(model, "dropout", 0.0) else None
    rules = {"dtype": dtype, "l2": l2, "noise": noise, **(rules or {})}
    learner = ManualLearner(model, LOSSES[loss], SGD(momentum), train, **rules)
    initialize(learner.params, INITIALIZERS[init], seed)
    return learner


def reference_learner(manual, loss, dtype=None):
    """The twin of a learner from `manual_learner`, at the same θ."""
    settings = {"optimizer": "sgd", **asdict(manual.optimizer), "dtype": dtype or manual.dtype}
    settings["l2"] = 0.0 if manual.decay is None else manual.decay.max().item()
    settings["l1"] = 0.0 if manual.l1_decay is None else manual.l1_decay.max().item()
    settings |= {name: getattr(manual, name) for name in ("clip_norm", "clip_value", "max_norm", "noise")}
    learner = ReferenceLearner(make_twin(manual.model), TWIN_LOSSES[loss], manual.train, **settings)
    learner.load_state_dict(manual.state_dict())
    return learner


def checked_learner(manual, loss, every=1):
    twin = partial(reference_learner, manual, loss)
    truth = None if manual.dtype == torch.float64 else twin(torch.float64)
    return CheckedLearner(manual, twin(), truth, every=every)


def random_batches(steps, batch, examples, seed=0):
    return torch.randint(0, examples, (steps, batch), generator=torch.Generator().manual_seed(seed))


def noise_split(examples=60, features=5, classes=5):
    """Examples of which nothing can be learned."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    return Split(x, torch.randint(0, classes, (examples,), generator=generator))


METHODS = {**{name: {"optimizer": name} for name in OPTIMIZERS}, "momentum": {"optimizer": "sgd", "momentum": 0.9}}


def rates(steps, lr):
    return torch.full((steps,), lr, dtype=torch.float64)


def relative_difference(a, b):
    """The largest ‖difference‖/‖b‖ of any tensor."""
    assert a.keys() == b.keys()
    floating = [name for name in b if b[name].is_floating_point() and not torch.equal(a[name], b[name])]
    return max(((a[name] - b[name]).norm() / b[name].norm()).item() for name in floating) if floating else 0.0
