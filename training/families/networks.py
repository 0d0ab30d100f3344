"""The network that a configuration asks for, by hand, and its twin."""

from pathlib import Path

from torch import nn

from training.config import Config
from training.config.rules import OneOf, require_parts
from training.data import Dataset, load
from training.errors import UserError
from training.families import FAMILIES
from training.families.base import Family
from training.families.model import Model


def family_of(model: str) -> Family:
    """The family of this name; UserError for a name that is unknown, and for a family that lacks a part."""
    OneOf(FAMILIES).check("model", model)
    FAMILIES[model].require_whole(model)
    return FAMILIES[model]


def loaded(config: Config) -> Dataset:
    """The data set that the configuration names, read and divided as it says."""
    return load(
        config.dataset,
        Path(config.data_dir),
        validation=config.validation,
        examples=config.examples,
        tokens=config.tokens,
    )


def arranged(config: Config, data: Dataset) -> Dataset:
    """The data set as the networks of the family read it. Raises UserError where they are for another task."""
    family = family_of(config.model)
    if data.task not in family.tasks:
        able = "".join(f", or --model {name}" for name, other in FAMILIES.items() if data.task in other.tasks)
        raise UserError(
            f"--model {config.model} is for {' and '.join(family.tasks)}, and the data set "
            f"{data.name} is for {data.task}: give another --dataset{able}"
        )
    return family.arrange(config, data)


def make_model(config: Config, data: Dataset) -> Model:
    """Raises UserError where the network does not fit the examples."""
    try:
        model = family_of(config.model).make(config, data)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--model {config.model} does not fit {data.name}: {error}") from error
    require_whole_model(model)
    return model


def require_whole_model(model: Model) -> None:
    """Raises UserError for the first part of a hand-written model that was forgotten."""
    kind = type(model)
    file = f"{kind.__module__.replace('.', '/')}.py"
    require_parts(f"model {kind.__name__}", kind, file, "shapes", "buffers", "forward", "backward")


def make_twin(model: Model) -> nn.Module:
    """The same network as an `nn.Module`, at initial values of torch's own."""
    families = {family.model: family for family in FAMILIES.values()}
    for kind in type(model).__mro__:  # a model that is another's subclass may have a family of its own
        if kind in families:
            return families[kind].twin(model)
    raise UserError(
        f"{type(model).__name__} is the model of no family, so it has no twin: there are {', '.join(FAMILIES)}"
    )
