"""What a caller may choose, the same for both checks, each with its refusal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gradient_check.cases import CASES
from gradient_check.compare import as_tensor
from gradient_check.oracles import ORACLES
from gradient_check.structure import as_pair, covers
from gradient_check.tolerances import SAME, Leeway

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SAME}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keywords of `check_backward` and `check_function`, whose docstrings say what they mean."""

    kwargs: Mapping[str, Any] | None = None
    not_differentiable: Sequence[str] = ()
    reference: Callable[..., Any] | None = None
    intended: Callable[..., Any] | None = None
    oracles: Sequence[str] | None = None
    dtypes: Sequence[str | torch.dtype] | None = None
    cases: Sequence[str] | None = None
    zeros: Sequence[str] = ()
    labels: Mapping[str, str] | None = None
    candidates: Mapping[str, Tensor] | None = None
    tolerance: float = 0.0
    because: str = ""
    nondeterministic: float = 0.0
    elementwise: bool = False
    order: int = 1
    seed: int = 0
    isolate: bool = False

    @classmethod
    def of(cls, check: str, given: Mapping[str, Any]) -> "Options":
        """Raises TypeError for a keyword that there is not, ValueError for a value that cannot be."""
        for name in given:
            if name not in KEYWORDS:
                raise TypeError(f"{check} has no keyword {name!r}: there are {', '.join(KEYWORDS)}")
        return cls(**given)

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}: give a whole number")
        for what, function in (("reference", self.reference), ("intended", self.intended)):
            if function is not None:
                expect_function(what, function)
        if self.intended is not None and self.reference is not None:
            raise ValueError(
                "intended and reference were given: give one, the gradient that is meant or the derivative"
            )
        for what, size in (("tolerance", self.tolerance), ("nondeterministic", self.nondeterministic)):
            if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < 1:
                raise ValueError(f"{what} is {size!r}: give what part of the norm may be off, at least 0 and below 1")
        if self.tolerance and not (isinstance(self.because, str) and self.because.strip()):
            raise ValueError(
                f"because is {self.because!r}: say why errors up to {self.tolerance:g} of the norm are right"
            )
        if self.because and not self.tolerance:
            raise ValueError(f"because is {self.because!r}, but there is no tolerance that it explains: give tolerance")
        expect_names("cases", self.cases or (), CASES, "the cases")
        for what, flag in (("elementwise", self.elementwise), ("isolate", self.isolate)):
            if not isinstance(flag, bool):
                raise ValueError(f"{what} is {flag!r}: give True or False")
        if self.dtypes is not None and (isinstance(self.dtypes, str) or not isinstance(self.dtypes, Iterable)):
            raise ValueError(f"dtypes is {self.dtypes!r}: give a list of names")
        if self.dtypes is not None and not self.formats:
            raise ValueError("dtypes is empty: give at least one, or leave it out")
        self.suspected  # noqa: B018  refuses what is no tensor
        self.titles  # noqa: B018

    @property
    def leeway(self) -> Leeway:
        return Leeway(self.tolerance, self.because, self.nondeterministic)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(CASES) if self.cases is None else tuple(self.cases)

    @property
    def formats(self) -> list[torch.dtype | None]:
        """The dtypes to check in; None is the example's own."""
        return [None] if self.dtypes is None else [_dtype(dtype) for dtype in self.dtypes]

    @property
    def suspected(self) -> dict[str, Tensor]:
        given = expect_mapping("candidates", self.candidates)
        return {name: as_tensor(as_pair(tensor), f"the candidate {name}") for name, tensor in given.items()}

    @property
    def titles(self) -> Mapping[str, str]:
        return expect_mapping("labels", self.labels)

    def asked(self, through_forward: bool) -> tuple[str, ...]:
        """The names of the oracles: all that can be asked, or those chosen; of a declared gradient there is one."""
        asked, declared = self.oracles, self.intended is not None
        if asked is None:
            there = {"reference": self.reference is not None, "autograd": through_forward}
            return ("declared",) if declared else tuple(oracle for oracle in ORACLES if there.get(oracle, True))
        expect_names("oracles", asked, ORACLES, "the oracles")
        if not asked:
            raise ValueError(f"oracles is empty: give at least one of {', '.join(ORACLES)}, or leave it out")
        if declared:
            raise ValueError(
                f"oracles is {list(asked)}, but what is intended is no derivative that they know: leave it out"
            )
        if "reference" in asked and self.reference is None:
            raise ValueError("the oracle 'reference' was asked for: give `reference`, an independent forward")
        if "autograd" in asked and not through_forward:
            raise ValueError(
                "the oracle 'autograd' cannot be asked here, because autograd through this function is what is on "
                "trial (or cannot see into NumPy): give `reference`, an independent forward that it can go through"
            )
        return tuple(oracle for oracle in ORACLES if oracle in asked)

    def label(self, leaf: str) -> str:
        """What the report calls the gradient of a leaf, of which the whole argument may have the label."""
        name = max((name for name in self.titles if covers(name, leaf)), key=len, default="")
        return f"{self.titles[name]}{leaf.removeprefix(name)}" if name else f"d{leaf}"


KEYWORDS = tuple(field.name for field in fields(Options))


def expect_mapping(what: str, given: Any) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{what} is of type {type(given).__name__}: give a dictionary by name")
    return given or {}


def expect_function(what: str, function: Any) -> None:
    if not callable(function):
        raise ValueError(f"{what} is of type {type(function).__name__}: give a function")


def expect_names(what: str, given: Any, allowed: Any, plural: str) -> None:
    if isinstance(given, str):
        raise ValueError(f"{what} is the string {given!r}: give a list of names")
    if not isinstance(given, Iterable):
        raise ValueError(f"{what} is {given!r}: give a list of names")
    for name in given:
        if not any(covers(name, one) for one in allowed):
            raise ValueError(f"{name!r} in {what} is unknown: {plural} are {', '.join(allowed)}")


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown: there are {', '.join(DTYPES)}")
    return DTYPES[name]
