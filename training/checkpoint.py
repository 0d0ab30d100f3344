"""Checkpoints: `last.pt`, `best.pt` and `first.pt` (before the first step), whole or not there at all.

A checkpoint is a plain dict that `torch.load(path, weights_only=True)` reads; `checkpoint["model"]` is a
`state_dict()` that either implementation, and any `nn.Module` with the same names, loads strictly.
"""

import errno
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor

from manual_backprop.schedules import Memory
from training.data import Dataset
from training.errors import UserError, listed
from training.files import replacing
from training.learners.base import LearnerState

FORMAT = 2
FIRST = "first.pt"
FORMAT_1 = {"best_accuracy": "best", "accuracy": "latest"}  # keys of the progress in format 1, and what they are now


class Progress(TypedDict):
    """Where in its run a learner is, beside its own state."""

    evaluated: bool  # whether the evaluation that is due at this step is done
    best: float  # the task's headline metric on the test set, at its best after the first step
    latest: float  # the same, when last evaluated
    waited: int  # evaluations since `best`
    plateau: Memory  # of a schedule that follows the evaluations
    losses: Tensor  # costs of the steps since loss/train was last logged
    metrics: dict[str, float]  # the learner's own, since they were last logged
    proof: dict[str, int | float | str]  # the fields of the learner's own, empty where it has none
    watch: dict[str, float]  # of training/evaluation/watch.py


class DataSummary(TypedDict):
    """What a network was trained on, as Dataset has it."""

    name: str
    shape: list[int]
    classes: list[str]
    task: str
    path: str  # empty in checkpoints of earlier versions, as the hashes are
    hashes: dict[str, str]


class Checkpoint(LearnerState):
    """LearnerState's keys, and what else is needed to go on or to predict."""

    format: int  # of the file; what `load` returns has the keys of FORMAT
    config: dict[str, str | int | float | list[str] | list[int]]
    data: DataSummary
    progress: Progress


def summary(data: Dataset) -> DataSummary:
    known = {"name": data.name, "shape": list(data.shape), "classes": list(data.classes), "task": data.task}
    return cast(DataSummary, {**known, "path": data.path, "hashes": dict(data.hashes)})


def data_dir(saved: Checkpoint) -> str:
    """Where the data of a run are to be looked for: where they lay, or else at the same relative path from here."""
    path = saved["data"]["path"]
    return path if path and Path(path).exists() else str(saved["config"]["data_dir"])


def differences(saved: DataSummary, data: Dataset) -> list[str]:
    """What is different in these data from those that were trained on, each a sentence's part; empty if they are alike.

    Checkpoints of earlier versions have no hashes, and then only names and shapes are compared.
    """
    now = summary(data)
    told = {
        "the data set": (saved["name"], now["name"]),
        "the task": (saved["task"], now["task"]),
        "an example's shape": ("×".join(map(str, saved["shape"])), "×".join(map(str, now["shape"]))),
        "the list of classes": (listed(saved["classes"]), listed(now["classes"])),
    }
    found = [f"{what} was {old} and is {new}" for what, (old, new) in told.items() if old != new]
    if found or not saved["hashes"]:
        return found
    for what, new in now["hashes"].items():
        old = saved["hashes"].get(what, "missing")
        if old != new:
            (old_size, *_), (new_size, *_) = old.split(), new.split()
            sizes = f", {old_size} then and {new_size} now" if old_size != new_size else ""
            found.append(f"the {what} differ{sizes}")
    return found


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Put the checkpoint in the place of `path`, which holds the old one or the new, whole, whatever happens."""
    try:
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's, after the file's own: a full disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the `last.pt` of a run directory, onto the CPU.

    One of format 1 is brought to the keys of FORMAT, and still says that its "format" is 1. Raises UserError if there
    is none, if it is cut off or something else, or of another format version.
    """
    if path.is_dir():
        if not (path / "last.pt").is_file():
            raise UserError(f"{path} holds no checkpoint (last.pt): give the directory of a run, or a .pt file")
        path = path / "last.pt"
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: give the directory of a run, or a .pt file")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # what the unpickler raises at bytes that are no pickle is anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a seek to before the file's beginning
            raise
        raise UserError(f"{path} is not a whole checkpoint: it was cut off, or it is another kind of file") from error
    if isinstance(checkpoint, dict) and checkpoint.get("format") == 1:
        checkpoint = {"memory": {}, **checkpoint}
    if not isinstance(checkpoint, dict) or not Checkpoint.__annotations__.keys() <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of this project: train one with train.py")
    if checkpoint["format"] not in (1, FORMAT):
        raise UserError(
            f"{path} has format version {checkpoint['format']}, this code reads versions 1 and {FORMAT}: "
            f"use the version of the code that wrote it, or train again"
        )
    if checkpoint["format"] == 1:
        checkpoint["data"] = {"task": "classification", **checkpoint["data"]}
        checkpoint["progress"] = {FORMAT_1.get(key, key): value for key, value in checkpoint["progress"].items()}
    checkpoint["data"] = {"path": "", "hashes": {}, **checkpoint["data"]}
    return cast(Checkpoint, checkpoint)
