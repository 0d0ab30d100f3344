"""What a Python file offers to be checked: pairs of functions by their names, and what `checked` marks."""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from gradient_check.check import check_backward, check_function
from gradient_check.marks import Mark, mark_of
from gradient_check.options import KEYWORDS
from gradient_check.report import Report, quoted

ROLES = ("forward", "backward", "example")
OPTIONS = ("reference", "intended", "not_differentiable", "kwargs")
REMEDY = (
    "write forward, backward and example at the top level (or NAME_forward, NAME_backward and NAME_example), "
    "or mark a function or class with @gradient_check.checked(example=…)"
)


@dataclass(frozen=True)
class Offer:
    """One thing to check. `check(seed)` gives its report; it raises ValueError, with a sentence, for bad input."""

    name: str
    check: Callable[[int], Report]


def load(path: Path) -> ModuleType:
    """Run the file as a module named like it. Nothing is written beside it, and no old bytecode is read.

    Raises ValueError if the file raises anything or exits.
    """
    file = path.resolve()
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    sys.path.insert(0, str(file.parent))  # as Python does for a script
    sys.modules.setdefault(file.stem, module)  # where dataclasses look for it
    try:
        exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        guard = 'put what exits under `if __name__ == "__main__":`'
        remedy = guard if isinstance(error, SystemExit) else f"change it until `python {path}` runs"
        raise ValueError(f"{path} does not import, {_placed(error, file)}: {remedy}") from error
    return module


def collect(path: Path, name: str | None = None) -> list[Offer]:
    """All that the file offers, in its order, or what has this name.

    Raises ValueError for a file that does not import or offers nothing, and for an unknown name.
    """
    found = list(_found(vars(load(path)), path.resolve()))
    if not found:
        raise ValueError(f"{path} has nothing to check: {REMEDY}")
    if name is None:
        return found
    if not (chosen := [one for one in found if one.name == name]):
        names = ", ".join(dict.fromkeys(one.name for one in found))
        raise ValueError(f"{path} has nothing to check of the name {name!r}: give one of {names}, or no name for all")
    return chosen


def check_anew(path: Path, name: str | None, number: int, seed: int) -> Report:
    """One check in a Python that has not seen the file yet."""
    torch.manual_seed(seed)
    with redirect_stdout(sys.stderr):
        found = collect(path, name)[number]
        torch.manual_seed(seed)
        return found.check(seed)


def _found(names: Mapping[str, Any], file: Path) -> Iterator[Offer]:
    seen: set[int | str] = set()  # marked objects by their id, pairs by their prefix
    for name, value in list(names.items()):
        if mark := mark_of(value):
            if id(value) not in seen:
                yield Offer(name, partial(_check_marked, name, value, mark, file))
            seen.add(id(value))
        elif (prefix := _prefix(name)) is not None and prefix not in seen:
            seen.add(prefix)
            roles = [role for role in ROLES if prefix + role in names and not mark_of(names[prefix + role])]
            if len(roles) > 1:  # one alone, as a forward that needs no backward, is no pair
                yield Offer(prefix[:-1] or "forward", partial(_check_pair, names, prefix, roles, file))


def _prefix(name: str) -> str | None:
    """`tanh_` for tanh_forward, empty for forward, None for what is private or has no such name."""
    role = next((role for role in ROLES if name == role or name.endswith(f"_{role}")), None)
    return None if role is None or name.startswith("_") else name.removesuffix(role)


def _check_pair(names: Mapping[str, Any], prefix: str, roles: list[str], file: Path, seed: int) -> Report:
    if missing := [prefix + role for role in ROLES if role not in roles]:
        there = " and ".join(prefix + role for role in roles)
        raise ValueError(f"the file has {there}, but no {missing[0]}: write {missing[0]} {_meaning(missing[0])}")
    options = {option: names[prefix + option] for option in OPTIONS if prefix + option in names}
    example = _example(names[f"{prefix}example"], f"{prefix}example", file, seed)
    forward, backward = names[f"{prefix}forward"], names[f"{prefix}backward"]
    return _from_forward(partial(check_backward, forward, backward, example, seed=seed, **options), file)


def _meaning(role: str) -> str:
    if role.endswith("example"):
        return "(a list of forward's arguments, or a function that returns one)"
    return "(output, cache = forward(*example); gradients = backward(d_output, cache)), or rename the others"


def _check_marked(name: str, value: Any, mark: Mark, file: Path, seed: int) -> Report:
    check: Callable[..., Report] = check_function if mark.forward is None else check_backward
    known = (*(["outputs"] if check is check_backward else []), *KEYWORDS)
    for option in mark.options:
        if option not in known:
            allowed = ", ".join(("example", "forward", "init", *known))
            raise ValueError(f"@checked has no option {option!r}: give {allowed}")
    subjects = (_function(name, value, mark, file),) if mark.forward is None else (mark.forward, value)
    example = _example(mark.example, "the example", file, seed)
    return _from_forward(partial(check, *subjects, example, **{"seed": seed, **mark.options}), file)


def _function(name: str, value: Any, mark: Mark, file: Path) -> Any:
    """What `check_function` takes for a marked class; anything else as it is."""
    if not isinstance(value, type):
        return value
    if issubclass(value, torch.autograd.Function):
        return value.apply
    if not issubclass(value, nn.Module):
        raise ValueError(f"{name} is a class: mark an autograd.Function, an nn.Module or a function")
    try:
        return value(*mark.init)
    except Exception as error:
        made = f"{name}({', '.join(map(repr, mark.init))})"
        raise ValueError(f"{made} raised {_placed(error, file)}: give @checked the arguments in init=(…)") from error


def _example(given: Any, name: str, file: Path, seed: int) -> Any:
    """The list itself, or what the function returns; a function that needs an argument gets a generator."""
    if not callable(given):
        return given
    needed = [
        p.name
        for p in inspect.signature(given).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if len(needed) > 1:
        raise ValueError(f"{name} needs {', '.join(needed)}: let it take nothing, or one torch.Generator")
    try:
        return given(*[torch.Generator().manual_seed(seed) for _ in needed])
    except Exception as error:
        what = "a torch.Generator" if needed else "nothing"
        raise ValueError(f"{name} was given {what} and raised {_placed(error, file)}: let it return a list") from error


def _from_forward(check: Callable[[], Report], file: Path) -> Report:
    """The check's report; a ValueError that is not this package's own is what forward says to its example."""
    try:
        return check()
    except ValueError as error:
        frames = traceback.extract_tb(error.__traceback__)
        if Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
            raise
        raise ValueError(f"forward raised {_placed(error, file)}: give an example that it takes") from error


def _placed(error: BaseException, file: Path) -> str:
    """The exception as `quoted` says it, and where in the file it came up."""
    if isinstance(error, SyntaxError):  # which says the place itself
        return quoted(error)
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{quoted(error)} ({file.name}, line {own[-1]})" if own else quoted(error)
