"""The settings of a run as a command line: in groups, with the options of the family that is named."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import field, make_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse_from_object

from training.config import GROUPS
from training.config.rules import OneOf, flag
from training.errors import UserError
from training.families import FAMILIES
from training.families.base import Family
from training.families.configure import foreign, names_of

Start = TypeVar("Start")


def given(argv: list[str], names: Iterable[str]) -> dict[str, Any]:
    """Which of these options a command line has, with their values as text; None for one without a value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(flag(name), nargs="?")
    return vars(parser.parse_known_args(argv)[0])


def refuse_options_of_others(argv: list[str], family: Family) -> None:
    """Raises UserError for an option that only other families have."""
    own = names_of(family)
    others = [name for other in FAMILIES.values() for name in names_of(other) if name not in own]
    for name in given(argv, dict.fromkeys(others)):
        raise UserError(foreign(name, family))


def read(
    argv: list[str], about: str, start: type[Start], family: Family, values: Mapping[str, Any]
) -> tuple[Start, dict[str, Any]]:
    """What a command line says: an instance of `start`, its first group, and `values` with the settings it names.

    `family` is that of `values`. Nothing is checked but types and choices, because what is left out is not filled in.
    """
    network, *others = GROUPS
    groups: dict[str, type] = {"start": start, "network": group(network, values)}
    groups[family.name.replace("-", "_")] = group(family.options, values)  # a field's name; tyro shows it with "-"
    groups |= {kind.__name__.lower(): group(kind, values) for kind in others}
    arguments = make_dataclass(
        "Arguments", [(name, kind, field(default_factory=kind)) for name, kind in groups.items()], frozen=True
    )
    plain = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    first, *rest = vars(tyro.cli(arguments, args=argv, description=about, config=plain)).values()
    return first, {**values, **{name: value for own in rest for name, value in vars(own).items()}}


def group(kind: type, values: Mapping[str, Any]) -> type:
    """A dataclass of settings for tyro: with these values as defaults, choices from their registries, no checks."""
    hints = get_type_hints(kind, include_extras=True)
    help_of = {param.arg_name: param.description or "" for param in parse_from_object(kind).params}
    if "model" in hints:
        hints["model"] = Annotated[str, OneOf(FAMILIES)]
        families = "; ".join(f"{name}, {family.summary}" for name, family in FAMILIES.items())
        help_of["model"] = f"{help_of['model'].rstrip('.')}: {families}."
    options = [
        (name, Annotated[with_choices(hint), tyro.conf.arg(help=" ".join(help_of[name].split()))], values[name])
        for name, hint in hints.items()
    ]
    return make_dataclass(
        kind.__name__, options, frozen=True, namespace={"__doc__": parse_from_object(kind).short_description}
    )


def with_choices(hint: Any) -> Any:
    """The type of a field, with the names of a registry in the place of `str`."""
    base, *beside = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    for rule in beside:
        if isinstance(rule, OneOf):
            choice = tyro.extras.literal_type_from_choices(rule.registry)
            return choice if base is str else tuple[choice, ...]  # type: ignore[valid-type]  # made at run time
    return base
