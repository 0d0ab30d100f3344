"""Ask the gradient check about backward passes that it has never seen, and write docs/unseen.md.

    python -m benchmarks.unseen

Each question is asked in a process of its own, so that a death is counted and not suffered. A few minutes on one core.
"""

import multiprocessing
import re
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
import tyro
from rich.progress import track

from benchmarks.readme import machine
from benchmarks.unseen import SUBJECTS
from benchmarks.unseen.subject import Subject
from gradient_check import Report
from training.terminal.output import command

PAGE = Path(__file__).parents[2] / "docs" / "unseen.md"
LIMIT = 120  # seconds for one question
TEXT = """\
# Unseen backwards

What the gradient check says of {wrong} wrong and {right} right backward passes that were written without knowledge of
its inside, before it was last changed, and that it is not tuned to
([benchmarks/unseen/](../benchmarks/unseen/)). Written by `python -m benchmarks.unseen`; do not edit.

{table}

A diagnosis is right if it is a true statement about the mistake; what counts as true was written down beside each
mistake before the check was asked. {machine}.

## What it got wrong

{failures}
"""


@dataclass(frozen=True)
class Answer:
    """What came of one question."""

    subject: Subject
    given: bool  # the reference
    verdict: str  # "passed", "failed", "refused" or "died"
    said: str = ""  # the first diagnosis, or the sentence of the refusal
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return self.verdict == ("failed" if self.subject.wrong else "passed")

    @property
    def diagnosis(self) -> str:
        """ "right", "wrong", or "" for none."""
        if self.verdict != "failed" or not self.said:
            return ""
        return "right" if any(re.search(pattern, self.said) for pattern in self.subject.true) else "wrong"


def first_diagnosis(report: Report) -> str:
    found = [row.diagnosis for row in report.failures if row.diagnosis]
    return f"{found[0].kind}: {found[0].text}".splitlines()[0] if found else ""


def answer(number: int, given: bool, end: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    try:
        report = SUBJECTS[number].ask(given)
    except Exception as error:  # whatever it is, a user would have got no verdict
        end.send(("refused", f"{type(error).__name__}: {error}".splitlines()[0], time.perf_counter() - start))
        return
    seconds = time.perf_counter() - start
    end.send(("passed" if report.passed else "failed", first_diagnosis(report), seconds))


def asked(number: int, given: bool) -> Answer:
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=answer, args=(number, given, there))
    process.start()
    there.close()
    try:
        verdict, said, seconds = here.recv() if here.poll(LIMIT) else ("died", f"no answer in {LIMIT} seconds", LIMIT)
    except EOFError:
        process.join()
        verdict, said, seconds = "died", f"the process ended with status {process.exitcode}", 0.0
    process.kill()
    process.join()
    return Answer(SUBJECTS[number], given, verdict, said, seconds)


def share(count: int, of: int) -> str:
    return f"{count} of {of} ({count / of:.0%})" if of else "–"


def table(answers: Sequence[Answer]) -> list[str]:
    rows = ["| | default call | with a reference |", "|---|---|---|"]
    columns = [[a for a in answers if a.given == given] for given in (False, True)]
    wrong, right = ([[a for a in column if a.subject.wrong == w] for column in columns] for w in (True, False))
    by_column: dict[str, Iterable[str]] = {
        "wrong ones found": (share(sum(a.is_right for a in some), len(some)) for some in wrong),
        "alarms on right ones": (share(sum(a.verdict == "failed" for a in some), len(some)) for some in right),
        "right diagnosis, of all wrong ones": (
            share(sum(a.diagnosis == "right" for a in some), len(some)) for some in wrong
        ),
        "wrong diagnosis, of all wrong ones": (
            share(sum(a.diagnosis == "wrong" for a in some), len(some)) for some in wrong
        ),
        "no verdict: refused": (str(sum(a.verdict == "refused" for a in some)) for some in columns),
        "no verdict: the process died": (str(sum(a.verdict == "died" for a in some)) for some in columns),
        "seconds, median": (f"{median(a.seconds for a in some):.2f}" for some in columns),
        "seconds, longest": (f"{max(a.seconds for a in some):.1f}" for some in columns),
    }
    return rows + [f"| {name} | {' | '.join(cells)} |" for name, cells in by_column.items()]


def failure(a: Answer) -> str:
    how = "with its reference" if a.given else "default call"
    return (
        f"- **{a.subject.name}** ({how}): {a.subject.what}. {a.verdict.capitalize()}{f': {a.said}' if a.said else ''}."
    )


def main() -> None:
    questions = [(i, given) for i, s in enumerate(SUBJECTS) for given in ((False, True) if s.reference else (False,))]
    answers = [asked(*question) for question in track(questions, "Asking")]
    failures = [failure(a) for a in answers if not a.is_right or a.diagnosis == "wrong"]
    PAGE.write_text(
        TEXT.format(
            wrong=sum(s.wrong for s in SUBJECTS),
            right=sum(not s.wrong for s in SUBJECTS),
            table="\n".join(table(answers)),
            machine=machine(),
            failures="\n".join(failures),
        ),
        encoding="utf-8",
    )
    print("\n".join(table(answers)))


if __name__ == "__main__":
    sys.exit(command("benchmarks.unseen")(tyro.cli)(main, description=__doc__))
