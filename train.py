"""Train by hand-written backpropagation, by autograd, or by both in lock step: python train.py --impl manual"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training import run
from training.config import Config
from training.config.rules import flag
from training.errors import UserError
from training.families import FAMILIES, defaults
from training.families.command_line import given, read, refuse_options_of_others
from training.families.configure import configure, default_preset, load_preset, preset_names, preset_values, settings
from training.families.networks import family_of
from training.interruption import Stopped
from training.learners.checked import GradientMismatch
from training.loop import NotFiniteError
from training.naming import differences, run_name
from training.tasks import CLASSIFICATION
from training.terminal.faults import lacks_memory
from training.terminal.output import command

PRESET_HELP = (
    f"Start from these settings, on their own data: {', '.join(preset_names())}, or the path of a TOML file, such as a "
    f"run's config.toml; left out, {', '.join(f'{family.preset} for {name}' for name, family in FAMILIES.items())}, "
    "on the data that are there."
)
ABOUT = "Train a network by hand-written backpropagation, by autograd, or by both in lock step."
RESUMED_WITH = ("epochs", "max_steps", "data_dir")


@dataclass(frozen=True)
class Start:
    """Where the run starts from, and where it is written to."""

    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME", help=PRESET_HELP)] = None
    print_config: bool = False
    """Print the configuration as TOML and stop."""
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory of the run; left out, a new one under runs/, named after the preset and what differs from it."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """Go on with the run in this directory; --epochs, --max-steps and --data-dir (data that moved) go with it."""


@dataclass(frozen=True)
class Request:
    """A command line, understood: `notes` tell about the settings that it left out, `name` is that of a new run."""

    arguments: Start
    config: Config
    notes: list[str]
    name: str = ""


def parse(argv: list[str]) -> Request:
    """default < preset (or the configuration of the run to be resumed) < command line.

    Cost, initial values, learning rate and L2 follow from the rest unless the command line, or a preset that is named
    there, sets them.
    """
    known = given(argv, ("resume", "preset", "model", *defaults.CHOICES))
    kept = known.keys() & defaults.CHOICES.keys()
    named = {"model": known["model"]} if known.get("model") in FAMILIES else {}  # an unknown one is refused below
    if known.get("resume"):
        base = vars(run.load_config(Path(known["resume"])))
        kept = set(defaults.CHOICES)
    elif known.get("preset"):
        load_preset(known["preset"])  # refuses one that is wrong in itself
        values = preset_values(known["preset"])
        base = settings({**values, **named})
        kept |= values.keys()
    else:
        base = dict(vars(load_preset(default_preset(named.get("model", Config.model)))))
        if CLASSIFICATION.name in family_of(base["model"]).tasks:
            base["dataset"] = "auto"
    family = family_of(base["model"])
    refuse_options_of_others(argv, family)
    arguments, asked = read(argv, ABOUT, Start, family, base)
    if arguments.resume:
        if arguments.run_dir or arguments.preset:
            raise UserError("--resume goes on with a run as it is: leave out --run-dir and --preset")
        for name, value in asked.items():
            if name not in RESUMED_WITH and value != base[name]:
                raise UserError(
                    f"{flag(name)} cannot change when a run is resumed; start a new one with "
                    f"--preset {arguments.resume / 'config.toml'} {flag(name)} …"
                )
    config = configure(**defaults.fill(asked, kept))
    if arguments.resume:
        return Request(arguments, config, [])
    preset, usual = arguments.preset or default_preset(config.model), load_preset(default_preset(config.model))
    different = differences(asked, base, known, kept)
    if preset_values(preset).get("model", Config.model) != config.model:
        different = {"model": config.model, **different}
    notes = defaults.notes(vars(config), asked, vars(usual), kept)
    return Request(arguments, config, notes, run_name(preset, config, different))


@command("train.py")
def main(argv: list[str]) -> int:
    run_dir = config = None
    try:
        request = parse(argv)
        arguments, config = request.arguments, request.config
        if arguments.print_config:
            print(config.to_toml(), end="")
            return 0
        run_dir = arguments.resume or arguments.run_dir or run.free_run_dir(Path("runs"), request.name)
        result = run.resume(run_dir, config) if arguments.resume else run.start(config, run_dir, request.notes)
    except GradientMismatch as error:
        print(f"train.py: manual and reference differ at {error}", file=sys.stderr)
        return 1
    except NotFiniteError as error:
        print(f"train.py: {error} (the last good checkpoint is in {run_dir})", file=sys.stderr)
        return 3
    except (OSError, MemoryError, RuntimeError, Stopped) as error:
        if run_dir and isinstance(error, FileNotFoundError) and not run_dir.exists():
            raise UserError(
                f"{run_dir} is gone: if it was moved, --resume its new path; if not, start again"
            ) from error
        if lacks_memory(error) and config:
            sizes = family_of(config.model).sizes(config)
            error.add_note(
                f"a smaller network than {sizes}, or a smaller --batch-size than {config.batch_size}, needs less"
            )
        if run_dir and (run_dir / "last.pt").exists():
            error.add_note(f"--resume {run_dir} goes on")
        raise
    print(result.summary)
    return 128 + result.signal if result.signal else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
