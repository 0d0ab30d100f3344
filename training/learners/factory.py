"""From a configuration to the learner that it asks for."""

from functools import partial
from typing import Any

import torch

from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.losses import LOSSES, Loss
from manual_backprop.optimizers import OPTIMIZERS
from reference import losses as reference_losses
from training.config import Config
from training.data import Dataset
from training.data.augmentation import make_augment
from training.data.noise import dropout_noise
from training.families.model import Model
from training.families.networks import make_twin
from training.learners.base import Learner
from training.learners.checked import CheckedLearner
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner
from training.learners.twins import require_twins, start_alike


def make_learner(config: Config, data: Dataset, model: Model) -> Learner:
    """The learner that a resolved configuration asks for, at its initial values: the same for every implementation."""
    manual = make_manual(config, data, model)
    if config.impl == "manual" and not config.check_every:
        return manual
    reference = make_reference(config, data, model, getattr(torch, config.dtype))
    start_alike(manual, reference)
    if config.impl == "reference":
        return reference
    truth = None if config.dtype == "float64" else make_reference(config, data, model, torch.float64)
    return CheckedLearner(manual, reference, truth, every=config.check_every or 1)


def make_manual(config: Config, data: Dataset, model: Model) -> ManualLearner:
    learner = ManualLearner(
        model,
        make_loss(config),
        OPTIMIZERS[config.optimizer](**config.optimizer_settings),
        data.train,
        dtype=getattr(torch, config.dtype),
        **shared_settings(config, data),
    )
    initialize(learner.params, INITIALIZERS[config.init], config.seed)
    return learner


def make_loss(config: Config) -> Loss:
    smoothing = {"label_smoothing": config.label_smoothing} if config.label_smoothing else {}
    return LOSSES[config.loss](**smoothing)


def make_reference(config: Config, data: Dataset, model: Model, dtype: torch.dtype) -> ReferenceLearner:
    require_twins()
    smoothing = {"label_smoothing": config.label_smoothing} if config.label_smoothing else {}
    return ReferenceLearner(
        make_twin(model),
        partial(reference_losses.LOSSES[config.loss], **smoothing),
        data.train,
        dtype=dtype,
        optimizer=config.optimizer,
        **shared_settings(config, data),
        **config.optimizer_settings,
    )


def shared_settings(config: Config, data: Dataset) -> dict[str, Any]:
    """What both implementations are told in the same words."""
    limits = ("l2", "l1", "clip_norm", "clip_value", "max_norm")
    settings = {name: getattr(config, name) for name in limits} | {"noise": dropout_noise(config.seed)}
    if config.shift or config.rotate:
        settings["augment"] = make_augment(data.shape, config.shift, config.rotate, config.seed)
    return settings
