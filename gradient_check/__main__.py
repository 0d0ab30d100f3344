"""`python -m gradient_check FILE.py[:name]`: check the backward passes of a file, outside pytest."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradient_check.collect import Found
    from gradient_check.report import Report

PATIENCE = 3.0  # seconds before a terminal is told what takes so long
WRONG, REFUSED, CLOSED = 1, 2, 128 + 13  # CLOSED is the status that a shell gives for SIGPIPE
DESCRIPTION = """\
Check hand-written backward passes: the functions forward and backward with an example, or NAME_forward, NAME_backward
and NAME_example, and what @gradient_check.checked(example=...) marks. What the file prints goes to stderr.
"""
STATUS = "The exit status is 0 if all agree, 1 if a gradient is wrong, 2 if something could not be checked."


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if all agree, 1 if a gradient is wrong, 2 for bad input, of which stderr has a sentence."""
    parser = argparse.ArgumentParser("python -m gradient_check", description=DESCRIPTION, epilog=STATUS)
    parser.add_argument("target", metavar="FILE.py[:name]", help="all that the file offers, or one by its name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
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
        return _refuse(str(error))
    try:
        status = (_show_json if options.json else _show)(path, found, options.seed)
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


def _collected(path: Path, name: str | None, seed: int) -> "list[Found]":
    import torch

    from gradient_check.collect import collect

    torch.manual_seed(seed)
    with redirect_stdout(sys.stderr):
        return collect(path, name)


def _show(path: Path, found: "list[Found]", seed: int) -> int:
    """A report as `print(report)` shows it; of several each with a heading and a verdict, and a count at the end."""
    verdicts: list[str] = []
    for one in found:
        if len(found) > 1:
            print(f"{path}:{one.name}", flush=True)
        report = _report(path, one, seed)
        if isinstance(report, str):
            verdicts.append("not checked")
        else:
            verdicts.append("ok" if report.passed else "WRONG")
            print(report)
        if len(found) > 1:
            print(f"{one.name}: {verdicts[-1]}\n", flush=True)
    if len(found) > 1:
        counts = [
            f"{count} {verdict}" for verdict in ("ok", "WRONG", "not checked") if (count := verdicts.count(verdict))
        ]
        print(f"{len(found)} in all: {', '.join(counts)}")
    return REFUSED if "not checked" in verdicts else WRONG if "WRONG" in verdicts else 0


def _show_json(path: Path, found: "list[Found]", seed: int) -> int:
    """One object for the file: `passed`, and `checks`, each with its name and its report or its error."""
    reports = [(one.name, _report(path, one, seed)) for one in found]
    checks: list[dict[str, Any]] = [
        {"name": name, "passed": False, "error": report}
        if isinstance(report, str)
        else {"name": name, **report.to_dict()}
        for name, report in reports
    ]
    passed = all(check["passed"] for check in checks)
    print(json.dumps({"file": str(path), "passed": passed, "checks": checks}, allow_nan=False))
    return REFUSED if any("error" in check for check in checks) else 0 if passed else WRONG


def _report(path: Path, one: "Found", seed: int) -> "Report | str":
    """The report, or the sentence why there is none, which stderr has then. Each check begins seeded, so that one alone
    gives what it gives among others."""
    import torch

    torch.manual_seed(seed)
    try:
        with redirect_stdout(sys.stderr), _told(one.name):
            return one.check(seed)
    except ValueError as error:
        _refuse(f"{path}:{one.name} could not be checked: {error}")
        return str(error)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """A terminal is told what is being checked where that takes long."""
    timer = Timer(PATIENCE, print, [f"checking {name} …"], {"file": sys.stderr})
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _refuse(sentence: str) -> int:
    print(f"gradient_check: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
