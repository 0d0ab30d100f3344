"""A trained network, from its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from training import checkpoint
from training.config import Config
from training.data import DATASETS, TEXTS, Dataset, Examples, Split, Streams, Vocabulary, load, scaled
from training.errors import UserError, listed
from training.evaluation import BLOCK, confidence
from training.families.configure import from_mapping
from training.families.networks import arranged, loaded, make_model
from training.learners.factory import make_manual, make_reference
from training.learners.manual import ManualLearner
from training.learners.verification import Check, compare, formats
from training.pictures import Reading
from training.tasks import CLASSIFICATION, NEXT_TOKEN
from training.usual import usual_torch

MANY = 1 / 3  # of the views of a picture


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

    def require_classes(self) -> None:
        """Raises UserError for a network that does not classify."""
        if self.data.task != CLASSIFICATION.name:
            raise UserError(
                f"this network is for {self.data.task} and has no classes: give the checkpoint of one that classifies"
            )

    @property
    def reads_text(self) -> bool:
        return self.data.task == NEXT_TOKEN.name

    @property
    def text(self) -> Streams:
        """Which segments the network reads. Raises UserError for a network that reads no text."""
        if not isinstance(self.data.test, Streams):
            raise UserError(
                f"this network is for {self.data.task} and goes on with no text: give the checkpoint of one for "
                f"{NEXT_TOKEN.name}"
            )
        return self.data.test

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.data.classes, self.config.tokens)

    def held_out(self, name: str, data_dir: Path, validation: int) -> Dataset:
        """The data set `name` with the examples in its `test` as this network reads them: ids are those of its own.

        Raises UserError for a data set that is not like its own.
        """
        is_text = name in TEXTS or (self.reads_text and name == self.data.name)
        if name in DATASETS and is_text != self.reads_text:
            raise UserError(
                f"--dataset is {name}, but this network is for {self.data.task}: give --dataset {self.data.name}, or "
                f"{'another text' if self.reads_text else 'another one with classes'}"
            )
        data = load(name, data_dir, validation=validation, tokens=self.config.tokens if is_text else "characters")
        if not isinstance(data.test, Streams):
            self.require_like(data)
            return data
        present, places = data.test.ids.unique(return_inverse=True)
        where = f"the test part of {data.name}"
        ids = self.vocabulary.ids_of(where, [data.classes[i] for i in present.tolist()])[places]
        return replace(
            data,
            test=replace(data.test, ids=ids, context=min(self.text.context, len(ids) - 1), carries=self.text.carries),
        )

    def require_like(self, data: Dataset) -> None:
        """Raises UserError unless examples and classes of `data` are what this network knows."""
        for what in ("shape", "classes"):
            own, other = getattr(self.data, what), getattr(data, what)
            if own != other:
                raise UserError(
                    f"{data.name} has {what} {listed(other)}, but this network was trained on {self.data.name} "
                    f"with {what} {listed(own)}: give a data set like that one"
                )


@usual_torch()
def load_trained(path: Path) -> Trained:
    """The network of a run directory or of a .pt file; its configuration says where the data lie now.

    Raises UserError if there is none or if it is broken.
    """
    saved = checkpoint.load(path)
    try:
        config = replace(from_mapping(saved["config"]), data_dir=checkpoint.data_dir(saved))
        known = saved["data"]
        shape, classes = tuple(known["shape"]), tuple(known["classes"])
        nothing: Examples = Split(torch.empty(0, prod(shape)), torch.empty(0, dtype=torch.int64))
        if known["task"] == NEXT_TOKEN.name:  # a text of one segment, which the family says how it reads
            nothing = Streams(torch.zeros(prod(shape) + 1, dtype=torch.int64), 1, unit=config.tokens)
        data = Dataset(known["name"], nothing, nothing, shape, classes, source="", task=known["task"])
        data = arranged(config, data)
        learner = make_manual(config, data, make_model(config, data))
        learner.load_state_dict(saved)
        learner.forget()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the checkpoint {path} does not fit its own configuration: {error}") from error
    return Trained(config, data, learner)


@dataclass(frozen=True)
class Answer:
    """What a network says of a picture: the class that it takes it for, and what it gives each class, the largest
    first, called `kind`. `doubts` says why the answer may be wrong."""

    best: str
    values: dict[str, float]
    kind: str
    doubts: tuple[str, ...]


def answer(trained: Trained, reading: Reading) -> Answer:
    """The mean over the views of a picture; many views that say otherwise are a doubt."""
    values, kind = confidence(trained.outputs(reading.views), trained.config.loss)
    row, classes = values.mean(dim=0), trained.data.classes
    ordered = {classes[i]: row[i].item() for i in row.argsort(descending=True, stable=True).tolist()}
    best, doubts = next(iter(ordered)), reading.doubts
    others = [classes[i] for i in values.argmax(dim=1).tolist() if classes[i] != best]
    if len(others) > MANY * len(values):
        other = max(others, key=others.count)
        doubts = (*doubts, f"a little turned, or with another pen, it looks like {other}")
    return Answer(best, ordered, kind, doubts)


@usual_torch()
def verify_trained(path: Path, dtype: str, seeds: Sequence[int], data_dir: Path | None = None) -> Check:
    """A trained network at its parameters, on mini-batches of its run's training set.

    `data_dir` is where the data lie now; left out, where they lay for the run. Raises UserError if either is missing,
    broken, or of another shape.
    """
    trained = load_trained(path)
    config = replace(trained.config, dtype=dtype, device="cpu")  # type: ignore[arg-type]  # every format that verify has
    config = replace(config, data_dir=str(data_dir or config.data_dir))
    data = arranged(config, loaded(config))
    trained.require_like(data)
    manual = make_manual(config, data, trained.learner.model)
    manual.load_state_dict(trained.learner.state_dict())
    references = [make_reference(config, data, manual.model, d) for d in formats(manual.dtype)]
    check = Check("checkpoint", f"{config.model} after {manual.steps:,} steps, {data.name}")
    for seed in seeds:
        batch = data.train.order(seed, 0, config.batch_size)[: config.batch_size]
        check.reports.append(compare(manual, references, *data.train.batch(batch, manual.dtype)))
    return check
