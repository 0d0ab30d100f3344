"""What a setting may hold: rules that stand beside a field of the configuration, in its annotation."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from math import inf
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from training.errors import UserError


@dataclass(frozen=True, eq=False)
class Range:
    """Which values are allowed; `allowed` says so in words."""

    allowed: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        require(name, value, self.holds(value), self.allowed)


@dataclass(frozen=True, eq=False)
class OneOf:
    """A name in a registry, or a tuple of such names. The registry is looked into when a value is checked."""

    registry: Collection[str]

    def check(self, name: str, value: Any) -> None:
        for item in value if isinstance(value, tuple) else (value,):
            if item not in self.registry:
                near = get_close_matches(str(item), self.registry, n=1)
                meant = f" (did you mean {near[0]!r}?)" if near else ""
                raise UserError(f"{name} is {item!r}{meant}, but it must be one of {', '.join(self.registry)}")


WHOLE = Range("a whole number from 0", lambda n: n >= 0)
COUNT = Range("a whole number from 1", lambda n: n >= 1)
UP_TO_1000 = Range("a whole number from 0 to 1000", lambda n: 0 <= n <= 1000)
SIZES = Range("one or more whole numbers from 1", lambda sizes: bool(sizes) and min(sizes) >= 1)
NUMBER = Range("a finite number from 0", lambda x: 0 <= x < inf)
SEED = Range("a whole number from 0 to 2⁶³ − 1", lambda n: 0 <= n < 2**63)
POSITIVE = Range("a positive number", lambda x: 0 < x < inf)
FRACTION = Range("from 0 to below 1", lambda x: 0 <= x < 1)


def require(name: str, value: Any, passed: bool, allowed: str) -> None:
    """Raises UserError with the option's flag, its value and what is allowed, unless `passed`."""
    if not passed:
        shown = " ".join(map(str, value)) or "empty" if isinstance(value, tuple) else value
        raise UserError(f"{flag(name)} is {shown}, but it must be {allowed}")


def require_parts(what: str, thing: Any, file: str, *parts: str) -> None:
    """Raises UserError for the first part that was forgotten where something was added to the project."""
    for part in parts:
        if not hasattr(thing, part):
            raise UserError(f"the {what} has no {part}: {file} has to define it (docs/adding.md)")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@cache
def rules(kind: type) -> dict[str, tuple[Range | OneOf, ...]]:
    """The rules of each field of a dataclass that has any."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is Annotated:
            found[name] = tuple(rule for rule in get_args(hint)[1:] if isinstance(rule, Range | OneOf))
    return found


def check(settings: Any) -> None:
    """Raises UserError for the first field of a dataclass that breaks one of its rules."""
    kind: type = type(settings)
    for name, own in rules(kind).items():
        for rule in own:
            rule.check(name, getattr(settings, name))


def typed(name: str, hint: Any, value: Any) -> Any:
    """A value from a TOML file as a field of type `hint` holds it; UserError if it is of another type."""
    if get_origin(hint) is Annotated:
        base, *beside = get_args(hint)
        result = typed(name, base, value)
        for rule in beside:
            if isinstance(rule, OneOf):
                rule.check(name, result)
        return result
    if get_origin(hint) is Literal:
        OneOf(get_args(hint)).check(name, value)
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{name} is {value!r}, but it must be a list")
        return tuple(typed(name, get_args(hint)[0], item) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        kind = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}[hint]
        raise UserError(f"{name} is {value!r}, but it must be {kind}")
    return value
