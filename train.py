"""Train by hand-written backpropagation, by autograd, or by both in lock step: python train.py --impl manual"""

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from training import defaults, run
from training.config import DEFAULT_PRESETS, Config, flag, load_preset, preset_names, preset_values
from training.errors import UserError
from training.learners.checked import GradientMismatch
from training.loop import NotFiniteError
from training.output import command

PRESET_HELP = (
    f"Start from these settings, on their own data: {', '.join(preset_names())}, or the path of a TOML file, such as a "
    f"run's config.toml; left out, {', '.join(f'{preset} for {model}' for model, preset in DEFAULT_PRESETS.items())}, "
    "on the data that are there."
)
RESUMED_WITH = ("epochs", "max_steps")


@dataclass(frozen=True)
class Arguments(Config):
    """Train a network by hand-written backpropagation, by autograd, or by both in lock step."""

    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME", help=PRESET_HELP)] = None
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where to write the run; left out, a new directory under runs/."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Go on with the run in this directory; only --epochs and --max-steps can be given with it."""
    print_config: bool = False
    """Print the configuration as TOML and stop."""

    def __post_init__(self) -> None:
        """Nothing is checked before what was left out is filled in."""

    @property
    def values(self) -> dict[str, Any]:
        """The fields of Config."""
        return {field.name: getattr(self, field.name) for field in fields(Config)}


@dataclass(frozen=True)
class Request:
    """A command line, understood: `notes` are what to tell about the settings that it left out."""

    arguments: Arguments
    config: Config
    notes: list[str]


def parse(argv: list[str]) -> Request:
    """default < preset (or the configuration of the run to be resumed) < command line.

    Cost, initial values, learning rate and L2 follow from the rest unless the command line, or a preset that is named
    there, sets them.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in ("preset", "model", *defaults.CHOICES):
        first.add_argument(flag(name), nargs="?")
    first.add_argument("--resume", nargs="?", type=Path)
    known = vars(first.parse_known_args(argv)[0])
    given = set(known)
    if known.get("resume"):
        base = vars(run.load_config(known["resume"]))
        given.update(defaults.CHOICES)
    elif known.get("preset"):
        load_preset(known["preset"])  # refuses one that is wrong in itself
        values = preset_values(known["preset"])
        base = {**vars(Config()), **values}
        given.update(values)
    else:
        model = str(known.get("model", Config.model))  # one that is unknown is refused below
        base = {**vars(load_preset(DEFAULT_PRESETS.get(model, DEFAULT_PRESETS[Config.model]))), "dataset": "auto"}
    arguments: Arguments = tyro.cli(
        Arguments, args=argv, default=Arguments(**base), config=(tyro.conf.FlagCreatePairsOff,)
    )
    if arguments.resume:
        if arguments.run_dir or arguments.preset:
            raise UserError("--resume goes on with a run as it is: leave out --run-dir and --preset")
        for field in fields(Config):
            if field.name not in RESUMED_WITH and arguments.values[field.name] != base[field.name]:
                raise UserError(
                    f"{flag(field.name)} cannot change when a run is resumed; start a new one with "
                    f"--preset {arguments.resume / 'config.toml'} {flag(field.name)} …"
                )
    config = Config(**defaults.fill(arguments.values, given))
    if arguments.resume:
        return Request(arguments, config, [])
    usual = load_preset(DEFAULT_PRESETS[config.model])
    return Request(arguments, config, defaults.notes(vars(config), arguments.values, vars(usual), given))


@command("train.py")
def main(argv: list[str]) -> int:
    """The exit status: 0, or 1 where manual and reference differ, 2 for a mistake in what was asked for, 3 where a
    value was not finite, 130 after Ctrl-C, 141 where the reader of the output closed it, 143 after SIGTERM."""
    run_dir = None
    try:
        request = parse(argv)
        arguments, config = request.arguments, request.config
        if arguments.print_config:
            print(config.to_toml(), end="")
            return 0
        preset = arguments.preset or DEFAULT_PRESETS[config.model]
        name = f"{Path(preset).stem}-{config.impl}-seed{config.seed}"
        run_dir = arguments.resume or arguments.run_dir or run.free_run_dir(Path("runs"), name)
        result = run.resume(run_dir, config) if arguments.resume else run.start(config, run_dir, request.notes)
    except GradientMismatch as error:
        print(f"train.py: manual and reference differ at {error}", file=sys.stderr)
        return 1
    except NotFiniteError as error:
        print(f"train.py: {error} (the last good checkpoint is in {run_dir})", file=sys.stderr)
        return 3
    except BrokenPipeError as error:
        if run_dir and (run_dir / "last.pt").exists():
            error.add_note(f"--resume {run_dir} goes on")
        raise
    except KeyboardInterrupt:  # before the first step or after the last; during the imports Python itself answers
        return 130
    print(result.summary)
    return 128 + result.signal if result.signal else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
