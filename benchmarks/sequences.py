"""Train the presets of recurrent networks, three seeds each, and write docs/sequences.md and the README's table.

    python -m benchmarks.sequences --data-dir data --text input.txt

`--text` is the well-known Tiny Shakespeare, for figures beside those of others; it is not part of the project. About
an hour of one core. Every run is one of train.py in runs/sequences, and one that is there already is not made again.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import tyro

from benchmarks.readme import machine, write_section
from benchmarks.reproduction import ROOT, call, duration
from training.config import Config
from training.dashboard.metrics import METRICS, read_metrics
from training.families.configure import load_preset
from training.files import replacing
from training.prepare import FOUND_THREADS
from training.terminal.output import command

PAGE = ROOT / "docs" / "sequences.md"
RUNS = ROOT / "runs" / "sequences"
PROCESSOR = "processor.txt"  # in a run that is finished: its seconds on one core


@dataclass(frozen=True)
class Row:
    """A preset, on the data of this name, trained by hand or by autograd."""

    preset: str
    data: str
    impl: str = "manual"

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.impl}" + ("-tiny" if self.data == TINY else "")


TINY = "Tiny Shakespeare"
ROWS = (
    Row("rows-rnn", "MNIST"),
    Row("rows-lstm", "MNIST"),
    Row("rows-gru", "MNIST"),
    Row("char-lstm", "the bundled plays"),
    Row("char-lstm", TINY),
    Row("char-lstm", TINY, "reference"),
)


@dataclass(frozen=True)
class Result:
    value: float  # after the last step
    processor: float


def configured(row: Row, seed: int, data_dir: Path, text: Path) -> Config:
    config = replace(load_preset(row.preset), seed=seed, threads=1, impl=row.impl)  # type: ignore[arg-type]  # a str
    if row.data == "MNIST":
        return replace(config, data_dir=str(data_dir))
    return replace(config, dataset="text", data_dir=str(text)) if row.data == TINY else config


def result_of(run_dir: Path, config: Config) -> Result:
    """That of the run, which is made first unless it is there with this very configuration."""
    asked, took = run_dir / "asked.toml", run_dir / PROCESSOR
    if not (took.exists() and asked.read_text(encoding="utf-8") == config.to_toml()):
        run_dir.mkdir(parents=True)
        asked.write_text(config.to_toml(), encoding="utf-8")
        _, seconds = call("train.py", "--preset", str(asked), "--run-dir", str(run_dir))
        with replacing(took) as file:
            file.write(str(seconds).encode())
    last = [line for line in read_metrics(run_dir / METRICS) if "loss/test" in line][-1]
    value = last["accuracy/test"] if "accuracy/test" in last else last["bits/test"]
    return Result(value, float(took.read_text(encoding="utf-8")))


def table(results: Mapping[Row, Sequence[Result]]) -> Iterator[str]:
    yield "| preset | data | gradients | seeds | last evaluation | processor |"
    yield "|---|---|---|---|---|---|"
    for row, own in results.items():
        values = [result.value for result in own]
        spread = stdev(values) if len(values) > 1 else 0.0
        shown = f"{mean(values):.3f} ± {spread:.3f} bits per character"
        if row.data == "MNIST":
            shown = f"{100 * mean(values):.2f} ± {100 * spread:.2f}%"
        by = "by hand" if row.impl == "manual" else "autograd"
        preset = f"[`{row.preset}`](../training/families/presets/{row.preset}.toml)"
        took = duration([result.processor for result in own])
        yield f"| {preset} | {row.data} | {by} | {len(own)} | {shown} | {took} |"


def main(data_dir: Path, text: Path, seeds: int = 3, jobs: int = FOUND_THREADS, runs: Path = RUNS) -> None:
    """Train the presets of recurrent networks and write what they reach.

    Args:
        data_dir: Where the full MNIST lies, or is downloaded to.
        text: The file of Tiny Shakespeare, 1,115,394 characters.
        seeds: Runs of each.
        jobs: Runs at once; each uses one core.
        runs: Where the runs are kept.
    """
    wanted = [(row, seed) for row in ROWS for seed in range(seeds)]
    folders = [(runs / f"{row.name}-seed{seed}").resolve() for row, seed in wanted]
    configs = [configured(row, seed, data_dir.resolve(), text.resolve()) for row, seed in wanted]
    results: dict[Row, list[Result]] = {row: [] for row in ROWS}
    with ThreadPoolExecutor(jobs) as pool:
        for (row, seed), result in zip(wanted, pool.map(result_of, folders, configs), strict=True):
            results[row].append(result)
            print(f"{row.name} seed {seed}: {result.value:.4f} after {result.processor:.0f} s", flush=True)
    lines = list(table(results))
    explanation = (
        "Mean ± standard deviation over the seeds 0, 1, … after the last step, on MNIST's test images and on the last "
        "tenth of a text, through which the state is carried; *processor* is the time of the whole process on one "
        f"core. {machine()}. Measured by `python -m benchmarks.sequences`."
    )
    PAGE.write_text("\n".join(["# Recurrent networks", "", explanation, "", *lines, ""]), encoding="utf-8")
    readme = [line.replace("(../training", "(training") for line in lines]
    write_section("sequences", "\n".join([*readme, "", explanation]))


if __name__ == "__main__":
    sys.exit(command("benchmarks.sequences")(tyro.cli)(main))
