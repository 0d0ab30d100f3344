"""A run from a configuration, or from a run directory to be resumed: what train.py does."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training import checkpoint
from training.checkpoint import Checkpoint
from training.config import Config
from training.dashboard.by_step import inside
from training.dashboard.console import RunConsole, print_layers
from training.dashboard.figures import curves
from training.dashboard.metrics import METRICS, read_metrics
from training.dashboard.tensorboard import MetricsWriter
from training.data import Dataset, expand
from training.errors import UserError
from training.families.configure import load_preset
from training.families.model import Model
from training.families.networks import arranged, loaded, make_model
from training.files import cannot_write, claimed, replacing
from training.interruption import Interruption
from training.learners.factory import make_learner, make_loss
from training.loop import Loop, Outcome
from training.prepare import FOUND_THREADS, prepare, require_longer_than_warmup, resolve_device
from training.schedules import ended_early
from training.tasks import Task, task_of
from training.usual import usual_torch


@dataclass(frozen=True)
class Result:
    outcome: Outcome
    run_dir: Path
    seconds: float  # of training, evaluation and logging
    signal: int  # what ended it early; 0 if nothing did

    @property
    def summary(self) -> str:
        outcome = self.outcome
        state = "" if outcome.finished else f"stopped at step {outcome.steps:,} (--resume {self.run_dir} goes on); "
        if outcome.early:
            state = f"ended early at step {outcome.steps:,}, {outcome.early}; "
        return (
            f"{state}{outcome.headline} "
            f"after {self.seconds:.1f} s; run in {self.run_dir}, curves in {self.run_dir / 'curves.png'}; "
            f"to look inside: tensorboard --logdir {self.run_dir.parent}"
            + (f"\n{outcome.proof}" if outcome.proof else "")
        )


@usual_torch()
def start(config: Config, run_dir: Path, notes: Sequence[str] = ()) -> Result:
    """Train from the beginning in a new run directory; `notes` on the configuration are told first.

    Raises UserError for bad data, a device that is not there, or a directory that holds another run; NotFiniteError
    and GradientMismatch from the training itself.
    """
    data = load_data(config)
    config, model = prepare(config, data)
    with _new(run_dir):
        create(run_dir, config)
        return _run(config, data, model, run_dir, None, notes)


@usual_torch()
def resume(run_dir: Path, config: Config) -> Result:
    """Go on with a run where its `last.pt` stands, bit for bit as if it had not stopped.

    `config` is the run's own (`load_config`), or has other epochs or max_steps, for which the rest of the schedule is
    then laid out, or another data_dir, where the same data lie now. Raises UserError if there is no run to resume, if
    its data are not there, or if it is beyond the end already.
    """
    with claimed(run_dir):
        return _resume(run_dir, config)


def _resume(run_dir: Path, config: Config) -> Result:
    saved = checkpoint.load(run_dir)
    moved = config.data_dir != saved["config"]["data_dir"]  # by the user, who then knows where to
    data = load_data(config if moved else replace(config, data_dir=checkpoint.data_dir(saved)))
    if different := checkpoint.differences(saved["data"], data):
        raise UserError(
            f"the data in {data.path} are not those that the run in {run_dir} was trained on: {'; '.join(different)}; "
            "give the place of the same data by --data-dir, or begin a new run"
        )
    if not saved["data"]["hashes"]:
        print("note: an earlier version began this run and kept no hashes of its data: whether they changed is unknown")
    resolve_device(config.device, config.dtype)
    require_longer_than_warmup(config, data)
    model = make_model(config, data)
    return _run(config, data, model, run_dir, saved)


def load_config(run_dir: Path) -> Config:
    if not (run_dir / "config.toml").is_file():
        raise UserError(f"{run_dir} holds no run to resume: it has no config.toml")
    return load_preset(str(run_dir / "config.toml"))


def load_data(config: Config) -> Dataset:
    return expand(arranged(config, loaded(config)), config.expand)


def _run(
    config: Config, data: Dataset, model: Model, run_dir: Path, saved: Checkpoint | None, notes: Sequence[str] = ()
) -> Result:
    torch.set_num_threads(config.threads)
    data = data.to(config.device)
    learner = make_learner(config, data, model)
    total, task = config.total_steps(data.train.steps(config.batch_size)), task_of(data)
    if saved is not None:
        try:
            learner.load_state_dict(saved)
        except ValueError as error:
            raise UserError(f"the checkpoint in {run_dir} is not of this network: {error}") from error
        if learner.steps > total:
            raise UserError(
                f"the run in {run_dir} is at step {learner.steps:,} already, and --epochs and --max-steps end it at "
                f"step {total:,}: give more"
            )
        early = ended_early(config, saved["progress"], task) if learner.steps < total else ""
        if (early or learner.steps >= total) and is_complete(run_dir, learner.steps, task):
            more = f"it ended early, {early}" if early else "more --epochs, or --max-steps, go on with it"
            print(data.source)
            print(f"this run is finished, at step {learner.steps:,}: {more}")
            progress = saved["progress"]
            proof = learner.proof.load(progress.get("proof", {})).after(learner.steps) if learner.proof else ""
            outcome = Outcome(True, learner.steps, task, progress["latest"], progress["best"], proof=proof)
            return Result(outcome, run_dir, seconds=0.0, signal=0)
        if saved["format"] == 1 and getattr(model, "dropout", None):
            notes = ["note: an earlier version began this run and drew other masks for dropout: the next steps differ"]
        if config != load_config(run_dir):
            with replacing(run_dir / "config.toml") as file:
                file.write(config.to_toml().encode())
    first, _ = data.train.batch(torch.arange(1, device=learner.device), getattr(torch, config.dtype))
    begun = saved is not None and (learner.steps > 0 or saved["progress"]["evaluated"])  # else nothing is logged yet
    start_step = learner.steps + 1 if begun else 0
    writer = MetricsWriter(run_dir, config, data, start_step=start_step, environment=environment(config))
    console = RunConsole(config, data.train, task, total, start=learner.steps)
    began = time.perf_counter()
    with Interruption() as stop, closing(writer):
        loop = Loop(config, data, learner, writer, console, run_dir, saved and saved["progress"], stop)
        loop.begin()
        reading = data.train.reading(config.batch_size)
        print(data.source, *filter(None, [reading]), *notes, sep="\n", flush=True)
        print_layers(config.model, model, learner.state_dict()["model"], first)
        with console:
            outcome = loop.run()
            if outcome.finished:
                loop.final_figures()
                if found := inside(model, make_loss(config), learner, data.test):
                    writer.by_step(learner.steps, found)
    seconds = time.perf_counter() - began
    with replacing(run_dir / "curves.png") as file:
        curves({run_dir.name: run_dir / METRICS}, file, task)
    return Result(outcome, run_dir, seconds, stop.signal)


def is_complete(run_dir: Path, step: int, task: Task) -> bool:
    """Whether the last that a run logs is there for this step."""
    path, tag = run_dir / METRICS, f"hparam/{task.headline.name}"
    return path.exists() and any(line["step"] == step and tag in line for line in read_metrics(path))


def free_run_dir(parent: Path, name: str) -> Path:
    """`parent/name`, or with -2, -3, … behind it where that is taken."""
    run_dir, number = parent / name, 2
    while run_dir.exists():
        run_dir, number = parent / f"{name}-{number}", number + 1
    return run_dir


@contextmanager
def _new(run_dir: Path) -> Iterator[None]:
    """The directory is this process's alone, and what it makes there goes if it ends before its first checkpoint."""
    was_there = run_dir.exists()
    with claimed(run_dir):
        before = set(run_dir.iterdir())
        try:
            yield
        except BaseException:
            if not (run_dir / "last.pt").exists():
                with suppress(OSError):
                    for path in set(run_dir.iterdir()) - before:
                        path.unlink()
                    if not was_there:
                        run_dir.rmdir()
            raise


def create(run_dir: Path, config: Config) -> None:
    """Make the run directory with the resolved configuration and the environment in it.

    Raises UserError if it holds a run already, or if it cannot be written to.
    """
    if str(run_dir) != str(run_dir).encode(errors="replace").decode():
        raise UserError(f"{str(run_dir)!a} is not UTF-8, and TensorBoard reads no such name: give another --run-dir")
    if any((run_dir / name).exists() for name in ("last.pt", "best.pt", checkpoint.FIRST)):
        raise UserError(f"{run_dir} already holds a run: give another --run-dir, or go on with --resume {run_dir}")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        details = json.dumps(environment(config), indent=2)
        (run_dir / "environment.json").write_text(details + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(run_dir, error) from error


def environment(config: Config) -> Mapping[str, Any]:
    """What a run depends on beside its configuration."""
    device = torch.cuda.get_device_name(config.device) if config.device.startswith("cuda") else platform.machine()
    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the build's own suffix
        **{name: version(name) for name in ("tensorboard", "numpy")},
        "platform": platform.platform(),
        "device": f"{config.device} ({device})",
        "threads": config.threads,
        "threads_found": FOUND_THREADS,
        "git_commit": git_commit(),
    }


def git_commit() -> str:
    """The commit of this checkout, with `+changes` if it was changed since; empty outside of git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
