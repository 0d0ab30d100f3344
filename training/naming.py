"""The name of a run: its preset, what differs from it, the implementation and the seed.

`3b1b-relu-adam-lr0.01-manual-seed0`. A setting that follows from another one (families/defaults.py) is not named.
"""

import hashlib
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from training.config import Config
from training.families import defaults
from training.families.networks import family_of

LONGEST = 60  # characters of the preset's part, and of the differences that are spelled out
ENDING = re.compile(r"-(manual|reference|both)-seed\d+(-\d+)?$")  # of a run's own name, which may begin another's
APART = ("model", "impl", "seed")


def run_name(preset: str, config: Config, different: Mapping[str, Any]) -> str:
    """Of letters, digits, and `.`, `+`, `_` and `-` within: a file name on every system."""
    parts = [_part(name, value) for name, value in different.items()]
    spelled: list[str] = []
    for part in parts:
        if len("-".join([*spelled, part])) <= LONGEST:
            spelled.append(part)
    if left_out := len(parts) - len(spelled):
        digest = hashlib.sha256("-".join(parts).encode()).hexdigest()[:6]
        spelled = [*spelled, f"{left_out}-more-{digest}"]
    return "-".join([_of_preset(preset), *spelled, config.impl, f"seed{config.seed}"])


def differences(
    asked: Mapping[str, Any], base: Mapping[str, Any], given: Collection[str], kept: Collection[str]
) -> dict[str, Any]:
    """The settings `asked` for that are not those of `base`, the network's own options first.

    `kept` are those of defaults.CHOICES that are not filled in. One that the command line has, and therefore is in
    `given`, differs if it is not what would be filled in without it.
    """
    own = [field.name for field in fields(family_of(asked["model"]).options)]
    result = {}
    for name in [*own, *(name for name in asked if name not in own and name not in APART)]:
        if name not in defaults.CHOICES:
            differs = asked[name] != base[name]
        elif name == "lr" and not defaults.has_rate(asked):
            differs = name in given
        else:
            differs = name in given and asked[name] != defaults.fill(asked, {*kept} - {name})[name]
        if differs:
            result[name] = asked[name]
    return result


def _part(name: str, value: Any) -> str:
    """`adam`, `lr0.01`, `l2_0.0001`, `hidden100-30`, `no-expand`, and of a path its last part without the ending."""
    if value is True:
        return name
    if value is False or value in ((), ""):
        return f"no-{name}"
    if name == "data_dir":
        return _plain(Path(value).absolute().stem) or name
    values = value if isinstance(value, tuple) else (value,)
    if isinstance(values[0], str):
        return "-".join(map(_plain, values))
    return f"{name}{'_' * name[-1].isdigit()}{'-'.join(str(number).removesuffix('.0') for number in values)}"


def _of_preset(preset: str) -> str:
    """Its name; of the `config.toml` of a run, what the run's name begins with."""
    path = Path(preset).absolute()
    stem = path.parent.name if path.name == "config.toml" else path.stem if preset.endswith(".toml") else preset
    return _plain(ENDING.sub("", stem))[:LONGEST].strip("-_") or "run"


def _plain(text: str) -> str:
    """ASCII letters, digits, `_` and `-`."""
    letters = unicodedata.normalize("NFKD", text)
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return re.sub(r"[^A-Za-z0-9_-]+", "_", letters).strip("_-")
