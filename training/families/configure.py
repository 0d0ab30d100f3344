"""How a configuration is put together: from settings by name, from a preset, or from another TOML file.

default < preset < command line; what all of them leave out follows from what they set (families/defaults.py).
"""

import codecs
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from training.config import Config
from training.config.rules import flag, typed
from training.errors import UserError
from training.families import FAMILIES, defaults
from training.families.base import PRESETS, Family
from training.families.networks import family_of


def configure(**values: Any) -> Config:
    """The configuration of the family that `model` names, with these settings and the defaults of all others.

    Raises UserError for a value out of its range, an unknown model, and an option of another family.
    """
    family = family_of(values.get("model", Config.model))
    return family.config(**own_settings(values, family))


def own_settings(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """`values` without the options of other families.

    Configurations once held the options of every family. So one that has its own family's default is left out; for any
    other value UserError says where it belongs.
    """
    own, result = names_of(family), {}
    for name, value in values.items():
        users = [other for other in FAMILIES.values() if name in names_of(other)]
        if name in own or not users:
            result[name] = value
        elif all(value != getattr(other.config, name) for other in users):
            raise UserError(foreign(name, family))
    return result


def foreign(name: str, family: Family) -> str:
    """The sentence about an option that other families have."""
    users = " and ".join(other.name for other in FAMILIES.values() if name in names_of(other))
    return f"{flag(name)} goes with --model {users}, not with {family.name}: leave it out, or the preset that sets it"


def names_of(family: Family) -> list[str]:
    return [field.name for field in fields(family.config)]


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A configuration from plain values, strictly: names and types must be those of its fields."""
    return configure(**checked(values))


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the fields hold them; UserError for a name or a type that is none of theirs."""
    family = family_of(typed("model", str, values.get("model", Config.model)))
    hints: dict[str, Any] = {}
    for other in (*FAMILIES.values(), family):
        hints |= get_type_hints(other.config, include_extras=True)
    result = {}
    for name, value in values.items():
        if name not in hints:
            near = get_close_matches(name, hints, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(names_of(family))}"
            raise UserError(f"unknown key {name!r}; {meant}")
        result[name] = typed(name, hints[name], value)
    return result


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def default_preset(model: str) -> str:
    """The preset of a family, where only the model is named."""
    return family_of(model).preset


def load_preset(name: str) -> Config:
    """The configuration of a preset: what its file sets, and what follows from that.

    Raises UserError as `preset_values` does, or for values that do not go together.
    """
    values = preset_values(name)
    try:
        return configure(**defaults.fill(settings(values), values.keys()))
    except UserError as error:
        raise UserError(f"{preset_path(name)}: {error}") from error


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of the family that `values` name: theirs, and the defaults of the others."""
    family = family_of(values.get("model", Config.model))
    return {**vars(family.config()), **own_settings(values, family)}


def preset_values(name: str) -> dict[str, Any]:
    """What the file of a preset sets: one that ships with the project, by its name, or a TOML file, by its path.

    Raises UserError for an unknown name, a file that is not TOML, an unknown key (naming the nearest) or an ill-typed
    value.
    """
    path = preset_path(name)
    if not path.is_file():
        raise UserError(f"there is no preset {name!r}; give {', '.join(preset_names())} or the path of a .toml file")
    try:
        return checked(tomllib.loads(_text(path.read_bytes())))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not a TOML file in UTF-8 (line {line}: {error.reason}): save it as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _text(content: bytes) -> str:
    """UTF-8 as TOML has it; with a byte order mark, as Windows editors save it, UTF-16 too.

    Raises UnicodeDecodeError for anything else, such as UTF-16 without the mark: TOML has no zero bytes.
    """
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    if "\0" in text:
        raise UnicodeDecodeError("utf-8", content, content.index(0), content.index(0) + 1, "zero byte")
    return text


def preset_path(name: str) -> Path:
    return Path(name) if name.lower().endswith(".toml") else PRESETS / f"{name}.toml"
