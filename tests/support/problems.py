"""Learners of either implementation for the same small problem, at the same initial values."""

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.optimizers import OPTIMIZERS
from tests.support.both_ways import LOSSES, TWIN_LOSSES
from training.data import Split
from training.data.augmentation import Augment
from training.data.noise import dropout_noise
from training.families.model import Model
from training.families.networks import make_twin
from training.learners.checked import CheckedLearner
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner


def manual_learner(
    model: Model,
    loss: str,
    train: Split,
    *,
    dtype: torch.dtype = torch.float64,
    optimizer: str = "sgd",
    l2: float = 0.0,
    init: str = "scaled-normal",
    seed: int = 0,
    rules: dict[str, float] | None = None,
    augment: Augment | None = None,
    **settings: Any,
) -> ManualLearner:
    """`settings` are the optimizer's, `rules` the penalties and limits around it (l1, clip_norm, …)."""
    update = OPTIMIZERS[optimizer](**settings)
    noise = dropout_noise(seed) if getattr(model, "dropout", 0.0) else None
    learner = ManualLearner(
        model, LOSSES[loss], update, train, dtype=dtype, l2=l2, noise=noise, augment=augment, **(rules or {})
    )
    initialize(learner.params, INITIALIZERS[init], seed)
    return learner


def reference_learner(manual: ManualLearner, loss: str, dtype: torch.dtype | None = None) -> ReferenceLearner:
    """The twin of a learner from `manual_learner`, at the same θ."""
    model, settings = manual.model, asdict(manual.optimizer)
    (settings["optimizer"],) = (name for name, kind in OPTIMIZERS.items() if isinstance(manual.optimizer, kind))
    settings["l2"] = 0.0 if manual.decay is None else manual.decay.max().item()
    settings["l1"] = 0.0 if manual.l1_decay is None else manual.l1_decay.max().item()
    settings |= {name: getattr(manual, name) for name in ("clip_norm", "clip_value", "max_norm", "noise", "augment")}
    learner = ReferenceLearner(
        make_twin(model), TWIN_LOSSES[loss], manual.train, dtype=dtype or manual.dtype, **settings
    )
    learner.load_state_dict(manual.state_dict())
    return learner


def checked_learner(manual: ManualLearner, loss: str, every: int = 1) -> CheckedLearner:
    twin = partial(reference_learner, manual, loss)
    truth = None if manual.dtype == torch.float64 else twin(torch.float64)
    return CheckedLearner(manual, twin(), truth, every=every)


def random_batches(steps: int, batch: int, examples: int, seed: int = 0) -> Tensor:
    return torch.randint(0, examples, (steps, batch), generator=torch.Generator().manual_seed(seed))


def noise_split(examples: int = 60, features: int = 5, classes: int = 5) -> Split:
    """Examples of which nothing can be learned."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    return Split(x, torch.randint(0, classes, (examples,), generator=generator))


METHODS: dict[str, dict[str, Any]] = {name: {"optimizer": name} for name in OPTIMIZERS} | {
    "momentum": {"optimizer": "sgd", "momentum": 0.9}
}


def rates(steps: int, lr: float) -> Tensor:
    return torch.full((steps,), lr, dtype=torch.float64)


def relative_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest ‖difference‖/‖b‖ of any tensor."""
    assert a.keys() == b.keys()
    floating = [name for name in b if b[name].is_floating_point() and not torch.equal(a[name], b[name])]
    return max(((a[name] - b[name]).norm() / b[name].norm()).item() for name in floating) if floating else 0.0
