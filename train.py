"""Train by hand-written backpropagation, by autograd, or by both in lock step: python train.py --impl manual"""

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from training import run
from training.config import DEFAULT_PRESETS, Config, flag, load_preset, preset_names
from training.errors import UserError
from training.learners.checked import GradientMismatch
from training.loop import NotFiniteError
from training.output import command

PRESET_HELP = (
    f"Start from these settings: {', '.join(preset_names())}, or the path of a TOML file, such as a run's config.toml; "
    f"left out, {', '.join(f'{preset} for {model}' for model, preset in DEFAULT_PRESETS.items())}."
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

    @property
    def config(self) -> Config:
        return Config(**{field.name: getattr(self, field.name) for field in fields(Config)})


def parse(argv: list[str]) -> Arguments:
    """default < preset (or the configuration of the run to be resumed) < command line."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")
    first.add_argument("--model", nargs="?")
    first.add_argument("--resume", nargs="?", type=Path)
    known, _ = first.parse_known_args(argv)
    preset = known.preset or DEFAULT_PRESETS.get(known.model, DEFAULT_PRESETS[Config.model])
    base = run.load_config(known.resume) if known.resume else load_preset(preset)
    arguments: Arguments = tyro.cli(
        Arguments, args=argv, default=Arguments(**vars(base)), config=(tyro.conf.FlagCreatePairsOff,)
    )
    if arguments.resume:
        if arguments.run_dir or arguments.preset:
            raise UserError("--resume goes on with a run as it is: leave out --run-dir and --preset")
        for field in fields(Config):
            if field.name not in RESUMED_WITH and getattr(arguments, field.name) != getattr(base, field.name):
                raise UserError(
                    f"{flag(field.name)} cannot change when a run is resumed; start a new one with "
                    f"--preset {arguments.resume / 'config.toml'} {flag(field.name)} …"
                )
    return arguments


@command("train.py")
def main(argv: list[str]) -> int:
    """The exit status: 0, or 1 where manual and reference differ, 2 for a mistake in what was asked for, 3 where a
    value was not finite, 130 after Ctrl-C, 141 where the reader of the output closed it, 143 after SIGTERM."""
    run_dir = None
    try:
        arguments = parse(argv)
        config = arguments.config
        if arguments.print_config:
            print(config.to_toml(), end="")
            return 0
        preset = arguments.preset or DEFAULT_PRESETS[config.model]
        name = f"{Path(preset).stem}-{config.impl}-seed{config.seed}"
        run_dir = arguments.resume or arguments.run_dir or run.free_run_dir(Path("runs"), name)
        result = run.resume(run_dir, config) if arguments.resume else run.start(config, run_dir)
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
