"""A trained network, from its checkpoint."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from training import checkpoint
from training.config import Config, from_mapping
from training.data import Dataset, Split, scaled
from training.errors import UserError
from training.evaluation import BLOCK
from training.learners.factory import make_manual
from training.learners.manual import ManualLearner
from training.models import make_model


@dataclass(frozen=True)
class Trained:
    """The hand-written network at trained parameters, on the CPU. `data` is its data set, without the examples."""

    config: Config
    data: Dataset
    learner: ManualLearner

    @property
    def dtype(self) -> torch.dtype:
        return self.learner.dtype

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs (B, classes) for inputs x (B, features); bytes are pictures."""
        return torch.cat([self.learner.outputs(scaled(block, self.dtype)) for block in x.split(BLOCK)])

    def require_like(self, data: Dataset) -> None:
        """Raises UserError unless examples and classes of `data` are what this network knows."""
        for what in ("shape", "classes"):
            own, other = getattr(self.data, what), getattr(data, what)
            if own != other:
                raise UserError(
                    f"{data.name} has {what} {_listed(other)}, but this network was trained on {self.data.name} "
                    f"with {what} {_listed(own)}: give a data set like that one"
                )


def load_trained(path: Path) -> Trained:
    """The network of a run directory or of a .pt file.

    Raises UserError if there is none or if it is broken.
    """
    saved = checkpoint.load(path)
    try:
        config = from_mapping(saved["config"])
        shape, classes = tuple(saved["data"]["shape"]), tuple(saved["data"]["classes"])
        nothing = Split(torch.empty(0, prod(shape)), torch.empty(0, dtype=torch.int64))
        data = Dataset(saved["data"]["name"], nothing, nothing, shape, classes, source="")
        learner = make_manual(config, data, make_model(config, data))
        learner.load_state_dict(saved)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the checkpoint {path} does not fit its own configuration: {error}") from error
    return Trained(config, data, learner)


def _listed(values: tuple[object, ...]) -> str:
    """At most twelve of them."""
    return ", ".join(map(str, values[:12])) + (", …" if len(values) > 12 else "")
