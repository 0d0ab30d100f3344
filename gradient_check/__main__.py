"""`python -m gradient_check FILE.py[:name]`: check the backward passes of a file, outside pytest."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import copy_context
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradient_check.collect import Offer
    from gradient_check.isolation import Told
    from gradient_check.report import Report

    Reports = Callable[[int, Offer], Report | str]  # of the number of what was found

PATIENCE = 3.0  # seconds before a terminal is told what takes so long
WRONG, REFUSED, CLOSED = 1, 2, 128 + 13  # CLOSED is the status that a shell gives for SIGPIPE
DESCRIPTION = """\
Check hand-written backward passes: the functions forward and backward with an example, or NAME_forward, NAME_backward
and NAME_example, and what @gradient_check.checked(example=...) marks. What the file prints goes to stderr.
"""
STATUS = (
    "The exit status is 0 if all agree, 1 if a gradient is wrong, 2 if something was not checked or is inconclusive."
)
VERDICTS, NOTHING = ("ok", "WRONG", "inconclusive"), "not checked"  # by the exit status of a report; of no report


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if all agree, 1 if a gradient is wrong, 2 for bad input, of which stderr has a sentence."""
    parser = argparse.ArgumentParser("python -m gradient_check", description=DESCRIPTION, epilog=STATUS)
    parser.add_argument("target", metavar="FILE.py[:name]", help="all that the file offers, or one by its name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--isolate", action="store_true", help="check in a child process, whose death is a wrong row")
    parser.add_argument("--seed", type=int, default=0, help="draws cotangents and torch's random numbers (default 0)")
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an encoding may lack × and ∂
    try:
        if not 0 <= options.seed < 2**63:
            raise ValueError(f"--seed is {options.seed}: give a whole number from 0 and below 2**63")
        path, name = _split(options.target)
        found = _collected(path, name, options.seed)
    except ValueError as error:
        if options.json:
            said = {"file": options.target, "passed": False, "checks": [], "error": str(error)}
            print(json.dumps(said, allow_nan=False))
        return _refuse(str(error))
    try:
        report = partial(_report, path, name, options.seed, options.isolate)
        status = (_show_json if options.json else _show)(path, found, report)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: what is left goes nowhere, or Python would try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    return status


def _split(target: str) -> tuple[Path, str | None]:
    """The file and the name; a colon before `.py` belongs to the path."""
    before, _, after = target.rpartition(":")
    path, name = (Path(before), after) if before.endswith(".py") else (Path(target), None)
    if path.suffix != ".py":
        raise ValueError(f"{target} is no Python file: give FILE.py or FILE.py:name")
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the path of a Python file, from {Path.cwd()}")
    return path, name


def _collected(path: Path, name: str | None, seed: int) -> "list[Offer]":
    import torch

    from gradient_check.collect import collect

    torch.manual_seed(seed)
    with redirect_stdout(sys.stderr):
        return collect(path, name)


def _show(path: Path, found: "list[Offer]", check: "Reports") -> int:
    """A report as `print(report)` shows it; of several each with a heading and a verdict, and a count at the end."""
    verdicts: list[str] = []
    for number, one in enumerate(found):
        if len(found) > 1:
            print(f"{path}:{one.name}", flush=True)
        report = check(number, one)
        if isinstance(report, str):
            verdicts.append(NOTHING)
        else:
            verdicts.append(VERDICTS[report.exit_status])
            print(report)
        if len(found) > 1:
            print(f"{one.name}: {verdicts[-1]}\n", flush=True)
    if len(found) > 1:
        counts = [f"{count} {verdict}" for verdict in (*VERDICTS, NOTHING) if (count := verdicts.count(verdict))]
        print(f"{len(found)} in all: {', '.join(counts)}")
    return _status(verdicts)


def _show_json(path: Path, found: "list[Offer]", check: "Reports") -> int:
    """One object for the file: `passed`, and `checks`, each with its name and its report or its error."""
    reports = [(one.name, check(number, one)) for number, one in enumerate(found)]
    checks: list[dict[str, Any]] = [
        {"name": name, "passed": False, "error": report}
        if isinstance(report, str)
        else {"name": name, **report.to_dict()}
        for name, report in reports
    ]
    passed = all(check["passed"] for check in checks)
    print(json.dumps({"file": str(path), "passed": passed, "checks": checks}, allow_nan=False))
    return _status([NOTHING if isinstance(report, str) else VERDICTS[report.exit_status] for _, report in reports])


def _status(verdicts: Sequence[str]) -> int:
    if NOTHING in verdicts or VERDICTS[REFUSED] in verdicts:
        return REFUSED
    return max(map(VERDICTS.index, verdicts), default=0)


def _report(path: Path, name: str | None, seed: int, isolate: bool, number: int, one: "Offer") -> "Report | str":
    """The report, or the sentence why there is none, which stderr has then. Each check begins seeded, so that one alone
    gives what it gives among others."""
    import torch

    from gradient_check.collect import check_anew
    from gradient_check.isolation import WATCH, Watch, isolated

    torch.manual_seed(seed)
    try:
        with redirect_stdout(sys.stderr), _told(one.name) as told:
            if isolate and (torch.cuda.is_initialized() or not hasattr(os, "fork")):
                return isolated(partial(check_anew, path, name, number, seed), "spawn", told)
            if isolate:
                return isolated(partial(one.check, seed), "fork", told)
            context = copy_context()
            context.run(WATCH.set, Watch(told))
            return context.run(one.check, seed)
    except ValueError as error:
        _refuse(f"{path}:{one.name} could not be checked: {error}")
        return str(error)


@contextmanager
def _told(name: str) -> "Iterator[Told]":
    """A terminal is shown where the check is, if that takes long: by a bar where rich is installed, else by a line."""
    start: Callable[[], None] = partial(print, f"checking {name} …", file=sys.stderr)
    stop, show = (lambda: None), (lambda text: None)
    if sys.stderr.isatty() and find_spec("rich"):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
        # No redirection: what a fork prints would wait for a lock that the bar's thread held.
        bar = Progress(
            *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
        )
        task = bar.add_task(name, total=None)
        start, stop, show = bar.start, bar.stop, lambda text: bar.update(task, description=text)
    timer = Timer(PATIENCE, start)
    if sys.stderr.isatty():
        timer.start()
    try:
        yield lambda where: show(f"{name}: " + where.partition("\n")[0])
    finally:
        timer.cancel()
        stop()


def _refuse(sentence: str) -> int:
    print(f"gradient_check: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
