"""Run every lesson and write docs/lessons.md with its figures.

    python -m benchmarks.lessons

Some minutes on one core. The numbers are those of the bundled sample; the full MNIST begins with the same digits.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.readme import machine
from lessons.lesson import FIGURE, LESSONS, REPORT, paragraphs, teach
from training.data import load
from training.terminal.output import command

PAGE = Path(__file__).parent.parent / "docs" / "lessons.md"

INTRODUCTION = """\
# The lessons' claims, run and measured

Well-known claims about backpropagation and training, as programs. Each states its claim, measures it with the
hand-written gradients, and says whether it holds.

```
python -m lessons                               # list them
python -m lessons overfitting batch-sizes       # run two of them, each in less than a minute
tensorboard --logdir runs/lessons               # text, figures and curves, one run a lesson
```

The exit status is 1 if a claim does not hold. In the figures blue is up or positive, and orange is down or negative,
wherever a color has a sign. `make lessons` runs all lessons and writes this page."""


def section(number: int, facts: dict[str, Any]) -> str:
    name = facts["lesson"]
    parts = [
        f"## {number}. {facts['title']}",
        f"`python -m lessons {name}` ([lessons/{module(name)}](../lessons/{module(name)}); source: {facts['source']})",
        f"![{facts['title']}](lessons/{name}.png)",
        *paragraphs(facts),
    ]
    return "\n\n".join(parts)


def module(name: str) -> str:
    return f"{name.replace('-', '_')}.py"


def page(reports: list[dict[str, Any]]) -> str:
    sections = [section(number, facts) for number, facts in enumerate(reports, start=1)]
    seconds = sum(facts["seconds"] for facts in reports)
    source = f"Data: {reports[0]['data']}; seed {reports[0]['seed']}. All in {seconds:.0f} s, one thread. {machine()}."
    return "\n\n".join([INTRODUCTION, *sections, source]) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    data = load("sample")
    reports = []
    pictures = PAGE.with_suffix("")
    pictures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        for name in LESSONS:
            run_dir = Path(directory) / name
            report = teach(name, data, 0, run_dir)
            print(f"{name}: {'holds' if report.holds else 'DOES NOT HOLD'}: {report.verdict}", flush=True)
            reports.append(json.loads((run_dir / REPORT).read_text(encoding="utf-8")))
            shutil.copy(run_dir / FIGURE, pictures / f"{name}.png")
    PAGE.write_text(page(reports), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(command("benchmarks.lessons")(tyro.cli)(main, description=__doc__))
