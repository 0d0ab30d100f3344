"""From what was asked for to what is run: the network, made once, and the configuration with nothing left open."""

import re
from dataclasses import replace
from math import prod

import torch

from training.config import Config
from training.config.rules import flag
from training.data import Dataset
from training.errors import UserError
from training.families import FAMILIES
from training.families.model import Model
from training.families.networks import make_model

MAX_PARAMETERS = 1_000_000_000  # 4 GB in float32, and a run holds several such vectors
FOUND_THREADS = torch.get_num_threads()  # as torch begins: what affinity, a container and OMP_NUM_THREADS allow


def prepare(config: Config, data: Dataset) -> tuple[Config, Model]:
    """The configuration with the data that were loaded, device, threads, activations and the optimizer's defaults.

    Raises UserError for a device that is not there or that cannot do this dtype, for a network too large, and for
    settings that do not fit the data.
    """
    model = make_model(config, data)
    _require_to_fit(config, data, model)
    return replace(
        FAMILIES[config.model].settled(config),
        dataset=data.name,
        device=resolve_device(config.device, config.dtype),
        threads=config.threads or _best_threads(config, model),
        **config.optimizer_settings,
    ), model


def resolve_device(device: str, dtype: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    of_format = ""
    try:
        torch.zeros(1, device=device, dtype=torch.float32).item()
        of_format = f" with --dtype {dtype}"
        torch.zeros(1, device=device, dtype=getattr(torch, dtype)).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        here = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.mps.is_available() else [])]
        reason = re.split(r"[.\n]\s|Expected one of", str(error))[0].strip() or "torch knows no such device"
        raise UserError(
            f"--device {device} cannot be used{of_format} here ({reason}); this machine has {', '.join(here)}"
        ) from error
    return device


def _require_to_fit(config: Config, data: Dataset, model: Model) -> None:
    family, parameters = FAMILIES[config.model], sum(map(prod, model.shapes.values()))
    if parameters > MAX_PARAMETERS:
        raise UserError(
            f"{family.sizes(config)} makes {parameters:,} parameters, "
            f"but at most {MAX_PARAMETERS:,} are allowed: give narrower layers"
        )
    family.require_fit(config, data)
    moving = [flag(name) for name in ("shift", "rotate") if getattr(config, name)]
    if moving and len(data.shape) != 2:
        verb = "move" if len(moving) > 1 else "moves"
        raise UserError(
            f"{' and '.join(moving)} {verb} pictures of height×width, and an example of {data.name} is "
            f"{data.example}: give {' 0 '.join(moving)} 0"
        )
    require_longer_than_warmup(config, data)


def require_longer_than_warmup(config: Config, data: Dataset) -> None:
    steps = config.total_steps(data.train.steps(config.batch_size))
    if config.warmup >= steps:
        raise UserError(f"--warmup is {config.warmup:,}, but it must be less than the run's {steps:,} steps")


def _best_threads(config: Config, model: Model) -> int:
    """One where the matrices are small, because handing out work costs more than it saves; else as torch has it."""
    weights = sum(prod(shape) for shape in model.shapes.values() if len(shape) > 1)
    small = config.batch_size * weights < FAMILIES[config.model].one_thread_below
    return 1 if small else FOUND_THREADS
