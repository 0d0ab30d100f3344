"""Train every preset with five seeds, as a user would, and write the README's table of results and its figure.

    python -m benchmarks.results --data-dir data --seeds 5

The runs take turns with nothing else, so that their times mean something; about ten minutes on two cores.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

import tyro

from benchmarks.readme import README, machine, write_section
from training.config import load_preset
from training.figures import curves
from training.tensorboard import read_metrics

ROOT = Path(__file__).parent.parent
NETWORKS = {
    "3b1b": "784-16-16-10 sigmoid, quadratic cost, batches of 100, start 1/√fan_in, cosine",
    "nielsen-ch1": "784-30-10 sigmoid, quadratic cost, lr 3, batches of 10, N(0, 1)",
    "points": "2-16-16-2 tanh, softmax cross-entropy, momentum 0.9",
}
COLLAPSED = 0.5  # a class of which the network recognizes less than this is lost


@dataclass(frozen=True)
class Run:
    last: float  # accuracy/test after the last epoch
    best: float  # and after the best one
    lost: list[str]  # classes that it does not recognize
    seconds: float  # of the whole process


def train(preset: str, seed: int, data_dir: Path, run_dir: Path, *options: str) -> Run:
    """One run of train.py and of predict.py on the test set, each in a process of its own."""
    data = [] if preset == "points" else ["--dataset", "mnist"]
    where = ["--data-dir", str(data_dir)]
    command = [sys.executable, "train.py", "--preset", preset, "--seed", str(seed), "--run-dir", str(run_dir)]
    start = time.perf_counter()
    subprocess.run([*command, *data, *where, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    accuracies = [m["accuracy/test"] for m in read_metrics(run_dir / "metrics.jsonl") if "accuracy/test" in m]
    name = load_preset(preset).dataset if preset == "points" else "mnist"
    command = [sys.executable, "predict.py", "--checkpoint", str(run_dir), "--dataset", name, *where, "--json"]
    confusion = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)["confusion"]
    lost = [str(c) for c, row in enumerate(confusion) if row[c] < COLLAPSED * sum(row)]
    return Run(accuracies[-1], max(accuracies[1:]), lost, seconds)


def row(preset: str, runs: list[Run]) -> str:
    last = [100 * run.last for run in runs]
    lost = [f"seed {seed}: {', '.join(run.lost)}" for seed, run in enumerate(runs) if run.lost]
    return (
        f"| `{preset}` | {NETWORKS[preset]} | {mean(last):.2f} ± {stdev(last):.2f}% | {median(last):.2f}% | "
        f"{100 * max(run.best for run in runs):.2f}% | {'; '.join(lost) or 'none'} | "
        f"{mean(run.seconds for run in runs):.1f} ± {stdev(run.seconds for run in runs):.1f} s |"
    )


def main(data_dir: Path = ROOT / "data", seeds: int = 5) -> None:
    """`data_dir` holds the full MNIST, or receives it."""
    table = [
        "| preset | network | test accuracy | median | best epoch of all | classes lost | whole run |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as directory:
        for preset in NETWORKS:
            runs = []
            for seed in range(seeds):
                runs.append(train(preset, seed, data_dir, Path(directory) / f"{preset}-{seed}"))
                print(preset, seed, runs[-1], flush=True)
            table.append(row(preset, runs))
        reference = Path(directory) / "reference"
        train("3b1b", 0, data_dir, reference, "--impl", "reference")
        metrics = {"manual": Path(directory) / "3b1b-0", "reference": reference}
        curves({name: run / "metrics.jsonl" for name, run in metrics.items()}, README.parent / "docs" / "curves.png")
    explanation = (
        f"Full MNIST (60,000/10,000), seeds 0 to {seeds - 1}, accuracy on the test images after the last epoch, mean ± "
        f"standard deviation; *classes lost* lists the seeds that ended up recognizing less than half of a class; the "
        f"time is that of the whole process. {machine()}. Measured by `python -m benchmarks.results`."
    )
    write_section("results", "\n".join([*table, "", explanation]))


if __name__ == "__main__":
    tyro.cli(main)
