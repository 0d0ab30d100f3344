"""What a lesson is, and how one is run: claim, measurement, verdict, figure, events.

A lesson is a module of this package with four texts and a function:

    TITLE, CLAIM, SOURCE, SEE   the claim in one to three sentences, its source, what the figure shows, as plain text
    run(data, seed, run_dir)    measures it and says whether it held

`run` is given a data set of pictures, and a directory for the networks that it trains (lessons/runs.py). Its numbers
come from the hand-written code alone. The same data and seed give the same report. In figures blue is up or positive,
orange is down or negative.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from training.data import Dataset
from training.errors import UserError
from training.usual import usual_torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]  # (step, value), …

LESSONS = (
    "three-ways",
    "sensitivity",
    "fire-together",
    "one-example",
    "batch-sizes",
    "learning-rates",
    "initial-weights",
    "cost-functions",
    "vanishing-gradients",
    "overfitting",
    "universal-approximation",
    "what-layers-learn",
    "shared-nodes",
    "linear-backward",
    "vanishing-through-time",
    "why-lstm-remembers",
)
REPORT, FIGURE = "report.json", "figure.png"


@dataclass(frozen=True)
class Report:
    """What a lesson measured."""

    table: Sequence[Sequence[str]]  # the heading, then rows as long as it
    holds: bool  # whether the claim held
    verdict: str  # one or two sentences with the numbers that decided it
    figure: Figure
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)  # by chart and line, for TensorBoard


class Lesson(Protocol):
    TITLE: str
    CLAIM: str
    SOURCE: str
    SEE: str

    def run(self, data: Dataset, seed: int, run_dir: Path) -> Report: ...


def load_lesson(name: str) -> Lesson:
    """The lesson `name`, one of LESSONS; UserError if there is no such lesson."""
    if name not in LESSONS:
        near = get_close_matches(name, LESSONS, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"there is no lesson {name!r}{meant}; there are {', '.join(LESSONS)}")
    return cast(Lesson, import_module(f"lessons.{name.replace('-', '_')}"))


@usual_torch()
def teach(name: str, data: Dataset, seed: int, run_dir: Path) -> Report:
    """Run a lesson and write `run_dir`, one run for TensorBoard: events, report.json, figure.png, trained networks.

    What an earlier run of a lesson left there is replaced once this one is finished. Raises UserError for an unknown
    lesson, or a directory that holds something else.
    """
    lesson = load_lesson(name)
    if run_dir.exists() and not (run_dir / REPORT).exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"{run_dir} holds files that no lesson wrote: give another --run-dir")
    temporary = run_dir.with_name(f".{run_dir.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {run_dir.parent}: {error.strerror}; give another --run-dir") from error
    try:
        start = time.perf_counter()
        report = lesson.run(data, seed, temporary)
        facts: dict[str, Any] = {"lesson": name, "title": lesson.TITLE, "claim": lesson.CLAIM, "source": lesson.SOURCE}
        facts |= {"see": lesson.SEE, "data": data.source, "seed": seed, "seconds": time.perf_counter() - start}
        write(report, temporary, facts)
        shutil.rmtree(run_dir, ignore_errors=True)
        temporary.rename(run_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def write(report: Report, run_dir: Path, facts: Mapping[str, Any]) -> None:
    """The report with these facts as report.json, its figure as figure.png and both, with its curves, as events.

    A curve's tag is lesson/name/chart/line. Under CUSTOM SCALARS TensorBoard shows the lines of a chart together.
    """
    from torch.utils.tensorboard.summary import custom_scalars, scalar, text

    from training.dashboard.events import EventFile
    from training.dashboard.figures import drawn  # imports matplotlib
    from training.dashboard.tensorboard import image_summary

    picture = drawn(report.figure)
    picture.save(run_dir / FIGURE)
    said = {"table": [list(row) for row in report.table], "holds": report.holds, "verdict": report.verdict}
    (run_dir / REPORT).write_text(json.dumps({**facts, **said}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with closing(EventFile(run_dir)) as events:
        told = [f"**{facts['title']}**", *paragraphs({**facts, **said})]
        told += ["The figure is under IMAGES" + (", the curves are under CUSTOM SCALARS." if report.curves else ".")]
        events.add(text("lesson", "\n\n".join(told)), 0)
        events.add(image_summary("lesson", picture), 0)
        charts = {}
        for chart, lines in report.curves.items():
            tags = {line: f"lesson/{facts['lesson']}/{chart}/{line}" for line in lines}
            charts[chart] = ["Multiline", [f"^{re.escape(tag)}$" for tag in tags.values()]]
            for line, curve in lines.items():
                for step, value in curve:
                    events.add(scalar(tags[line], value), step)
        if charts:
            events.add(custom_scalars({facts["title"]: charts}), 0)


def paragraphs(facts: Mapping[str, Any]) -> list[str]:
    """The facts of report.json for readers, in Markdown: the claim, what to see, and then the numbers."""
    verdict = f"**{'Holds' if facts['holds'] else 'Does not hold'}:** {facts['verdict']}"
    return [f"**Claim.** {facts['claim']}", f"**What to see.** {facts['see']}", markdown(facts["table"]), verdict]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves with the same steps."""
    return [(points[0][0], sum(value for _, value in points) / len(points)) for points in zip(*curves, strict=True)]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; a | in a cell is escaped."""
    heading, *rows = ([cell.replace("|", "\\|") for cell in row] for row in table)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
