"""Train the presets of published results, several seeds each, and write docs/reproduction.md and the README's table.

    python -m benchmarks.reproduction --data-dir data

About two hours on two cores. Every run is one of train.py, in runs/reproduction; stopped and started again, it goes on
where it was. A run uses one core, and `--jobs` are made at a time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import tyro
from rich.live import Live
from rich.table import Table

from benchmarks.published import PUBLISHED, Published
from benchmarks.readme import machine, write_section
from training.config import Config
from training.dashboard.figures import curves
from training.dashboard.metrics import METRICS, read_metrics
from training.errors import UserError
from training.families.configure import from_mapping, load_preset
from training.prepare import FOUND_THREADS
from training.terminal.output import Console, command

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reproduction.md"
RUNS = ROOT / "runs" / "reproduction"
RESULT = "result.json"
LOST = 0.5  # a class of which the network recognizes less than this is lost


@dataclass(frozen=True)
class Run:
    """What came of one preset with one seed."""

    config: str  # as TOML, what was asked for
    accuracies: list[float]  # after every epoch
    lost: list[str]  # classes that it does not recognize in the end
    seconds: float | None  # of the whole process; None if it was interrupted in between
    processor: float | None  # seconds of all cores together, which others on the machine do not prolong

    @property
    def last(self) -> float:
        return self.accuracies[-1]

    @property
    def best(self) -> float:
        return max(self.accuracies)


@dataclass(frozen=True)
class Job:
    preset: str
    seed: int
    config: Config  # what the preset says, with seed and data
    run_dir: Path

    def done(self) -> Run | None:
        """What came of it, if it is finished and was run with this very configuration."""
        path = self.run_dir / RESULT
        if not path.exists():
            return None
        run = Run(**json.loads(path.read_text(encoding="utf-8")))
        return run if from_mapping(tomllib.loads(run.config)) == self.config else None


def jobs_of(entries: Sequence[Published], seeds: int, data_dir: Path, runs: Path) -> list[Job]:
    """`seeds` runs of every entry, or where that is 0 its own number of them."""
    jobs = []
    for entry in entries:
        for seed in range(seeds or entry.seeds):
            config = replace(load_preset(entry.preset), threads=1)
            if config.dataset in ("auto", "mnist", "fashion-mnist"):
                dataset = "mnist" if config.dataset == "auto" else config.dataset
                config = replace(config, dataset=dataset, data_dir=str(data_dir))
            jobs.append(Job(entry.preset, seed, replace(config, seed=seed), runs / f"{entry.preset}-seed{seed}"))
    return jobs


def carry_out(job: Job) -> Run:
    """Run train.py to the end, from where an interrupted run left off, and write its result.json.

    Raises UserError with what train.py said, if it failed.
    """
    run_dir = job.run_dir
    asked = run_dir / "asked.toml"
    resumed = (run_dir / "last.pt").exists() and asked.exists() and asked.read_text() == job.config.to_toml()
    if not resumed:
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
        asked.write_text(job.config.to_toml(), encoding="utf-8")
    options = ["--resume", str(run_dir)] if resumed else ["--preset", str(asked), "--run-dir", str(run_dir)]
    start = time.perf_counter()
    _, processor = call("train.py", *options)
    seconds = time.perf_counter() - start
    config = job.config
    data = ["--dataset", config.dataset, "--data-dir", config.data_dir]
    if config.validation:
        data += ["--validation", str(config.validation)]
    said, _ = call("predict.py", "--checkpoint", str(run_dir), *data, "--json")
    confusion = json.loads(said)["confusion"]
    run = Run(
        config=config.to_toml(),
        accuracies=[m["accuracy/test"] for m in read_metrics(run_dir / METRICS) if "accuracy/test" in m][1:],
        lost=[str(c) for c, row in enumerate(confusion) if row[c] < LOST * sum(row)],
        seconds=None if resumed else seconds,
        processor=None if resumed else processor,
    )
    temporary = run_dir / f"{RESULT}.tmp"  # so that one that is stopped here leaves no half a result
    temporary.write_text(json.dumps(asdict(run)), encoding="utf-8")
    temporary.replace(run_dir / RESULT)
    return run


def call(script: str, *options: str) -> tuple[str, float]:
    """What the script printed, and its seconds of processor time. Raises UserError with its last words if it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        process = subprocess.Popen([sys.executable, script, *options], cwd=ROOT, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise UserError(f"{script} {' '.join(options)} failed: {err.read().strip()}")
        return out.read(), usage.ru_utime + usage.ru_stime


def carry_out_all(jobs: Sequence[Job], at_once: int) -> Iterator[tuple[Job, Run]]:
    """All runs, as they finish."""
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(carry_out, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def progress(entries: Sequence[Published], jobs: Sequence[Job], finished: dict[Path, Run]) -> Table:
    """A row per preset with the last accuracy of every seed that is through."""
    table = Table("preset", "published", *(f"seed {seed}" for seed in sorted({job.seed for job in jobs})))
    for entry in entries:
        own = [finished.get(job.run_dir) for job in jobs if job.preset == entry.preset]
        table.add_row(entry.preset, entry.figure, *(f"{run.last:.2%}" if run else "…" for run in own))
    return table


def percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread}%"


def verdict(entry: Published, runs: Sequence[Run]) -> str:
    """Whether the published figure was reached, by the rule by which it was picked; if not, how far out it lies."""
    ours = entry.rule.ours(runs)
    if entry.fails:
        return "yes, it fails too" if ours < entry.fails else f"no: {ours:.2%}"
    if entry.value is None:
        return "–"
    if ours >= entry.value:
        return "yes"
    values = [entry.rule.of(run) for run in runs]
    short = f"no, {100 * (entry.value - ours):.2f} points short"
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{short}, {(entry.value - mean(values)) / spread:.1f} σ above our mean" if spread else short


def duration(seconds: Sequence[float | None]) -> str:
    known = [s for s in seconds if s is not None]
    spread = f" ± {stdev(known):.0f}" if len(known) > 1 else ""
    return f"{mean(known):.0f}{spread} s" if known else "interrupted"


def lost(runs: Sequence[Run]) -> str:
    return "; ".join(f"seed {seed}: {', '.join(run.lost)}" for seed, run in enumerate(runs) if run.lost) or "none"


def table(entries: Sequence[Published], runs: Callable[[str], Sequence[Run]]) -> list[str]:
    heading = ["preset", "seeds", "published", "picked by", "ours, so picked", "reached"]
    heading += ["last epoch", "best epoch", "lost", "processor", "whole run"]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for entry in entries:
        own = runs(entry.preset)
        cells = [f"[`{entry.preset}`](../training/families/presets/{entry.preset}.toml)", f"{len(own)}"]
        cells += [entry.figure, entry.rule.text]
        cells += [f"{entry.rule.ours(own):.2%}", verdict(entry, own), percent([run.last for run in own])]
        cells += [f"{percent([run.best for run in own])}, {max(run.best for run in own):.2%}"]
        cells += ["–" if entry.fails else lost(own)]
        cells += [duration([run.processor for run in own]), duration([run.seconds for run in own])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(entries: Sequence[Published], runs: Callable[[str], Sequence[Run]], at_once: int) -> str:
    notes = [f"- **`{e.preset}`**: {e.network}. {e.source}{' ' + e.note if e.note else ''}" for e in entries]
    return "\n".join(
        [
            "# Published results, reproduced",
            "",
            "Every preset is trained by hand-written backpropagation, with the seeds 0, 1, … (column *seeds*: how "
            "many), and evaluated as its source did: on the same split, with the same rule for picking the figure "
            "(*picked by*). Most sources give the best epoch, of one run or of the best of several, on the same "
            "examples that picked it. Such a figure is too optimistic, so the columns *last epoch* (mean ± standard "
            "deviation) and *best epoch* (the same, and the best of all) stand beside it. If the figure was not "
            "reached, σ is the standard deviation between our seeds. *Lost* lists the classes with a recall below "
            "one half at the end of a run.",
            "",
            *table(entries, runs),
            "",
            f"*Processor* is the CPU time of the process, on one core; *whole run* is the elapsed time, with {at_once} "
            f"runs at once and other work on the machine. {machine()}. "
            "Measured and written by `make reproduce` (`python -m benchmarks.reproduction`).",
            "",
            "## What they are",
            "",
            *notes,
            "",
        ]
    )


def summary(entries: Sequence[Published], runs: Callable[[str], Sequence[Run]]) -> str:
    """The README's table."""
    lines = [
        "| preset | network | published | ours, picked alike | last epoch | seeds | processor |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in (entry for entry in entries if entry.in_readme):
        own = runs(e.preset)
        cells = [f"`{e.preset}`", e.network, e.figure, f"{e.rule.ours(own):.2%}", percent([run.last for run in own])]
        lines.append(f"| {' | '.join([*cells, f'{len(own)}', duration([run.processor for run in own])])} |")
    explanation = (
        "Full MNIST, or Fashion-MNIST; *last epoch* is mean ± standard deviation over the seeds 0, 1, …, *processor* "
        f"the time of the whole process on one core. {machine()}. Measured by `make reproduce`; [all of them, and by "
        "which rules](docs/reproduction.md)."
    )
    return "\n".join([*lines, "", explanation])


def draw_curves(jobs: Sequence[Job]) -> None:
    """docs/curves.png: 3b1b by hand, and the same by autograd in a run of its own."""
    manual = next(job for job in jobs if (job.preset, job.seed) == ("3b1b", 0))
    config = replace(manual.config, impl="reference")
    reference = Job("3b1b", 0, config, manual.run_dir.with_name("3b1b-seed0-reference"))
    if reference.done() is None:
        carry_out(reference)
    named = {"manual": manual.run_dir / METRICS, "reference": reference.run_dir / METRICS}
    curves(named, ROOT / "docs" / "curves.png")


def main(
    data_dir: Path = ROOT / "data",
    seeds: int = 0,
    only: tuple[str, ...] = (),
    jobs: int = FOUND_THREADS,
    runs: Path = RUNS,
) -> None:
    """Reproduce published results.

    Args:
        data_dir: Where the full MNIST lies, or is downloaded to.
        seeds: Runs of every preset; 0 leaves it to the preset, five or three.
        only: Presets to run now; the page is written once all are through.
        jobs: Runs at once; each uses one core.
        runs: Where the runs are kept.
    """
    names = [entry.preset for entry in PUBLISHED]
    for name in only:
        if name not in names:
            raise UserError(f"there is no published figure for {name!r}; there are {', '.join(names)}")
    if seeds < 0 or jobs < 1:
        raise UserError(f"--seeds is {seeds} and --jobs is {jobs}, but they must be whole numbers from 0 and from 1")
    everything = jobs_of(PUBLISHED, seeds, data_dir.resolve(), runs.resolve())
    wanted = [job for job in everything if not only or job.preset in only]
    finished = {job.run_dir: run for job in everything if (run := job.done())}
    entries = [entry for entry in PUBLISHED if not only or entry.preset in only]
    console = Console()
    with Live(progress(entries, wanted, finished), console=console, transient=True) as live:
        for job, run in carry_out_all([job for job in wanted if job.run_dir not in finished], jobs):
            finished[job.run_dir] = run
            live.update(progress(entries, wanted, finished))
            if not console.is_terminal:
                print(
                    f"{job.preset} seed {job.seed}: {run.last:.2%}, best {run.best:.2%}, {duration([run.seconds])}",
                    flush=True,
                )
    console.print(progress(entries, wanted, finished))
    if missing := [job for job in everything if job.run_dir not in finished]:
        print(f"{len(missing)} of {len(everything)} runs are still to be made; then {PAGE.name} is written")
        return

    def runs_of(preset: str) -> list[Run]:
        return [finished[job.run_dir] for job in everything if job.preset == preset]

    draw_curves(everything)
    PAGE.write_text(page(PUBLISHED, runs_of, jobs), encoding="utf-8")
    write_section("results", summary(PUBLISHED, runs_of))


if __name__ == "__main__":
    sys.exit(command("benchmarks.reproduction")(tyro.cli)(main))
