"""A check in a child process, whose death is a verdict: it begins anew in another, without the case that it died in."""

import multiprocessing
import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from gradient_check.report import Diagnosis, Row, quoted
from gradient_check.subject import Subject

T = TypeVar("T")
Told = Callable[[str], None]  # of where a check is: the case and, on a second line, what is being run

LONGEST = 1_000  # bytes of what a child says of where it is
OFTEN = 0.2  # seconds between two looks at it
LOADED = "torch.fx.experimental.symbolic_shapes", "torch._decomp.decompositions_for_jvp"  # by the first use of autograd
REMEDY = "run `python -m gradient_check --isolate FILE.py`, which starts a new Python where there is no fork"


@dataclass(frozen=True)
class Death:
    """What a process was doing when it died, as it said, in which case, and how: "SIGSEGV", "exit status 3"."""

    case: str
    where: str
    how: str

    @property
    def row(self) -> Row:
        """The verdict."""
        return Row("process", "process", (), False, str(self), case=self.case, diagnosis=Diagnosis("died", str(self)))

    def __str__(self) -> str:
        return f"the process died in {self.where} ({self.how}), case: {self.case}"


@dataclass
class Watch:
    """Who is told where the check is, and the cases, by name, in which an earlier process died."""

    tell: Told = lambda where: None
    deaths: Mapping[str, Death] = field(default_factory=dict)
    isolated: bool = False
    case: str = "before the example"

    def enter(self, case: str) -> Death | None:
        """Go into a case, unless a process died there."""
        self.case = case
        self.at("the check itself")
        return self.deaths.get(case)

    def at(self, what: str) -> None:
        self.tell(f"{self.case}\n{what}")


WATCH = ContextVar("WATCH", default=Watch())  # noqa: B039 (only `case` changes, which `tell` then passes on)


def watched(subject: Subject) -> Subject:
    """The same, which says before each pass that it is in forward or in backward."""

    def run(arguments: Sequence[Any]) -> Any:
        outputs, pullback = saying("forward", subject.run)(arguments)
        return outputs, saying("backward", pullback)

    only = subject.only
    alone = only and (lambda positions: watched(only(positions)))
    return replace(subject, run=run, forward=saying("forward", subject.forward), only=alone)


def saying(what: str, function: Callable[..., T]) -> Callable[..., T]:
    """The function, which says before it runs that it does."""

    def said(*arguments: Any) -> T:
        WATCH.get().at(what)
        return function(*arguments)

    return said


def check_fork(arguments: Sequence[Any]) -> None:
    """Raises ValueError where a check of these arguments cannot go on in a fork of this process."""
    if not hasattr(os, "fork"):
        raise ValueError(f"isolate=True needs a fork, which this system has not: {REMEDY}")
    if devices := {str(v.device) for v in arguments if isinstance(v, Tensor) and v.device.type != "cpu"}:
        raise ValueError(f"isolate=True was given a tensor on {devices.pop()}, which no fork can use: {REMEDY}")


def isolated(work: Callable[[], T], method: str = "fork", told: Told = lambda where: None) -> T:
    """What `work` returns in a child. Where that dies, the next is told of the death, so that it skips the case."""
    for module in LOADED if method == "fork" else ():
        with suppress(ImportError), warnings.catch_warnings(action="ignore"):  # another version of torch has not
            import_module(module)  # once, or every child would take a second for it
    deaths: dict[str, Death] = {}
    while isinstance(result := run_in_child(partial(_with_watch, work, deaths), method, told), Death):
        if result.case in deaths:
            raise ValueError(f"{result}, and again in a new one: change it until it runs")
        deaths[result.case] = result
    return result


def _with_watch(work: Callable[[], T], deaths: Mapping[str, Death], tell: Told) -> T:
    WATCH.set(watch := Watch(tell, deaths, isolated=True))
    watch.at("the file")
    try:
        torch.ones((), requires_grad=True, device="cpu").backward()
    except RuntimeError as error:  # it had threads for devices before the fork
        raise ValueError(f"autograd cannot go on in a fork, {quoted(error)}: {REMEDY}") from error
    return work()


def run_in_child(work: Callable[[Told], T], method: str = "fork", told: Told = lambda where: None) -> T | Death:
    """What `work(tell)` returns or raises in a child process, or the child's death at the place that it told last.

    `method` is "fork" or "spawn", for which `work` must be picklable. The child runs on one thread, because a pool of
    threads does not outlive a fork. `told` hears where the child is, every now and then.
    """
    context: Any = multiprocessing.get_context(method)
    place = context.RawArray("c", LONGEST)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, place, sender))
    with warnings.catch_warnings(action="ignore"):  # Python 3.12 warns of every fork beside threads, torch's too
        process.start()
    sender.close()
    try:
        while not wait([receiver, process.sentinel], OFTEN):
            told(str(place.value, "utf-8", "ignore"))
        result, error = pickle.loads(receiver.recv_bytes())
    except EOFError:  # it died and said nothing more
        process.join()
        how = process.exitcode
        said = signal.Signals(-how).name if how < 0 else f"exit status {how}"
        case, _, where = str(place.value, "utf-8", "ignore").partition("\n")
        return Death(case, where, said)
    except BaseException:  # such as Ctrl-C
        process.kill()
        raise
    finally:
        receiver.close()
        process.join()
    if error is not None:
        raise error
    return cast(T, result)


def _child(work: Callable[[Told], Any], place: Any, sender: Connection) -> None:
    torch.set_num_threads(1)

    def tell(where: str) -> None:
        place.value = where.encode()[: LONGEST - 1]

    try:
        answer = pickle.dumps((work(tell), None))
    except ValueError as error:  # of bad input
        answer = pickle.dumps((None, ValueError(str(error))))
    except Exception:
        answer = pickle.dumps((None, RuntimeError(f"the child process failed:\n{traceback.format_exc()}")))
    sender.send_bytes(answer)
