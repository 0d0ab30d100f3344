"""The training loop: steps, evaluation, logging and checkpoints, the same for every implementation.

A step has a number: how many steps were completed when it was. Epoch and position in it follow from the number, so a
run can stop after any step and go on from there.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from training import checkpoint
from training.checkpoint import Checkpoint, Progress
from training.config import Config
from training.dashboard.tensorboard import MetricsWriter, rms
from training.data import Dataset, Examples, Streams
from training.evaluation import Evaluation, evaluate, examples_of
from training.evaluation.watch import Watch
from training.families.advice import remedy
from training.generation import sample
from training.learners.base import Backpropagation, Learner, all_finite
from training.learners.comparison import in_words, tensors_of, values_of
from training.schedules import ended_early, make_plateau, make_schedule
from training.tasks import Task, task_of

STEPS_PER_CALL = 10  # so many that a call's cost is spread, so few that Ctrl-C is answered at once
SNAPSHOT_EVERY = 100  # steps: so many that copying all tensors costs little, so few that a replay is short
TRAIN_TARGETS = 10_000  # about so many of the training set are evaluated, for accuracy/train or bits/train
NOT_FINITE = "the first value that is not finite is in"


class NotFiniteError(Exception):
    """A value became infinite or NaN: says which was the first, of which layer, at which step."""


class Console(Protocol):
    """Where the loop reports (training/dashboard/console.py)."""

    def steps(self, done: int) -> None: ...

    def evaluated(self, epoch: int, step: int, values: dict[str, float]) -> None: ...

    def notice(self, text: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    finished: bool  # False after an interruption
    steps: int
    task: Task
    latest: float  # the task's headline metric on the test set, when last evaluated
    best: float
    early: str = ""  # why it ended before its last step, if it did
    proof: str = ""  # what lock step has shown

    @property
    def headline(self) -> str:
        """The result in words: "test accuracy 90.40% (best 90.45%)"."""
        metric = self.task.headline
        best = f" (best {metric.shown(self.best)})" if self.best != self.task.worst else ""
        return f"test {metric.name} {metric.shown(self.latest)}{best}"


class Loop:
    """One run of `learner` in `run_dir`. `progress` is a checkpoint's when resuming; `stop` is asked between calls."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        learner: Learner,
        writer: MetricsWriter,
        console: Console,
        run_dir: Path,
        progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.data, self.learner = config, data, learner
        self.writer, self.console, self.run_dir, self.stop = writer, console, run_dir, stop
        self.dtype, self.task = getattr(torch, config.dtype), task_of(data)
        self.steps_per_epoch = data.train.steps(config.batch_size)
        self.total = config.total_steps(self.steps_per_epoch)
        self.eval_every = config.eval_every or self.steps_per_epoch
        self.schedule, self.plateau = make_schedule(config, self.steps_per_epoch), make_plateau(config)
        self.order = torch.empty(0, dtype=torch.int64)
        self.order_epoch = -1
        self.evaluation: Evaluation | None = None
        self.seconds, self.examples = 0.0, 0  # since the last logged values
        fresh: Progress = {
            "evaluated": False,
            "best": self.task.worst,
            "latest": self.task.worst,
            "waited": 0,
            "plateau": self.plateau.init(),
            "losses": torch.empty(0, dtype=torch.float64),
            "metrics": {},
            "proof": {},
            "watch": {},
        }
        self.snapshot = learner.state_dict()  # of a step before; and the calls since then, with which a replay begins
        self.since: list[tuple[Tensor, Tensor]] = []
        self.progress = fresh if progress is None else {**fresh, **progress}
        learner.metrics.update(self.progress["metrics"])
        if learner.proof:
            learner.proof.load(self.progress["proof"])
        self.watch = Watch(config, data, self.total, self.progress["watch"])

    def begin(self) -> None:
        """Save the initial values, unless that is done already."""
        if self.learner.steps == 0 and not (self.run_dir / checkpoint.FIRST).exists():
            self.save("last.pt")
            self.save(checkpoint.FIRST)

    def run(self) -> Outcome:
        """Train to the end, or until `stop()`; `last.pt` then holds where it stopped, `first.pt` where it began.

        Raises NotFiniteError and GradientMismatch; `last.pt` is then the last good checkpoint.
        """
        self.begin()
        while not self.stop():
            at_end = self.learner.steps >= self.total or bool(ended_early(self.config, self.progress, self.task))
            if (at_end or self.learner.steps % self.eval_every == 0) and not self.progress["evaluated"]:
                self.evaluate()
            elif at_end:
                return self.outcome(finished=True)
            else:
                self.train_some()
        self.save("last.pt")
        return self.outcome(finished=False)

    def outcome(self, finished: bool) -> Outcome:
        steps, early = self.learner.steps, ended_early(self.config, self.progress, self.task)
        early = early if finished and steps < self.total else ""
        proof = self.learner.proof.after(steps) if self.learner.proof else ""
        return Outcome(finished, steps, self.task, self.progress["latest"], self.progress["best"], early, proof)

    def train_some(self) -> None:
        """Take the next few steps: up to one that is logged, which goes alone, an evaluation, or an epoch's end."""
        config, step = self.config, self.learner.steps
        to_log = config.log_every - step % config.log_every
        to_histogram = config.histogram_every - step % config.histogram_every if config.histogram_every else self.total
        to_evaluation = self.eval_every - step % self.eval_every
        position = step % self.steps_per_epoch
        if position == 0:
            self.begin_sequences()
        full_batches = len(self.epoch_order()) // config.batch_size - position
        to_end = min(full_batches, self.total - step)
        steps = max(1, min(STEPS_PER_CALL, to_log - 1, to_histogram - 1, to_evaluation, to_end))
        batches = self.batches(position, steps)
        if to_log == 1:
            self.logged_step(batches)
        else:
            self.advance(batches)
        if to_histogram == 1:
            self.histograms_of(batches[0])
        self.progress["evaluated"] = False
        self.console.steps(steps)

    def begin_sequences(self) -> None:
        """Before the first mini-batch of an epoch: the learner drops what it carried to the end of the last epoch."""
        if self.data.train.carries:
            self.learner.forget()
            self.take_snapshot()

    def batches(self, position: int, steps: int) -> Tensor:
        """(steps, B) indices of training examples; B is smaller in the last batch of an epoch that does not divide."""
        size = self.config.batch_size
        return self.epoch_order()[position * size : (position + steps) * size].view(steps, -1)

    def epoch_order(self) -> Tensor:
        """The indices of the epoch that the next step belongs to."""
        epoch = self.learner.steps // self.steps_per_epoch
        if epoch != self.order_epoch:
            self.order = self.data.train.order(self.config.seed, epoch, self.config.batch_size)
            self.order_epoch = epoch
        return self.order

    def learning_rates(self, steps: int) -> Tensor:
        """η of the next steps, 0-d in float64 each."""
        first = self.learner.steps
        factors = [self.schedule(t, self.total) for t in range(first, first + steps)]
        return self.config.lr * self.progress["plateau"]["scale"] * torch.tensor(factors, dtype=torch.float64)

    def advance(self, batches: Tensor) -> None:
        """Take these steps; if a value stops being finite, take them again to name the first one, and raise."""
        learning_rates = self.learning_rates(len(batches))
        start = time.perf_counter()
        if self.learner.steps >= self.snapshot["steps"] + SNAPSHOT_EVERY:
            self.take_snapshot()
        try:
            losses = self.learner.advance(batches, learning_rates)
        except RuntimeError as error:
            if "without overflow" not in str(error):  # what torch says of a number
                raise
            after = f"after step {self.learner.steps}"
            raise NotFiniteError(f"{after} a factor is beyond {self.config.dtype}; {remedy(self.config)}") from error
        finite = all_finite([losses]) and self.learner.is_finite()
        self.seconds += time.perf_counter() - start
        self.examples += batches.numel()
        if not finite:
            self.replay(batches, learning_rates)
        self.since.append((batches, learning_rates))
        self.progress["losses"] = torch.cat([self.progress["losses"], losses.cpu().double()])

    def take_snapshot(self) -> None:
        self.snapshot, self.since = self.learner.state_dict(), []

    def logged_step(self, batches: Tensor) -> None:
        """A step with its learning rate, gradients and update measured, and the mean cost since the last such step."""
        before = {name: p.clone() for name, p in self.learner.parameters.items()}
        gradients = {name: rms(g) for name, g in self.examine(batches[0]).gradients.items()}
        learning_rate = self.learning_rates(1).item()
        self.advance(batches)
        values = {
            "loss/train": self.progress["losses"].mean().item(),
            "learning_rate": learning_rate,
            "examples_per_second": self.examples / self.seconds,
        }
        for name, p in self.learner.parameters.items():
            values[f"gradient_norm/{name}"] = gradients[name]
            size = rms(before[name])
            values[f"update_ratio/{name}"] = rms(p - before[name]) / size if size else 0.0
        self.writer.scalars(self.learner.steps, values | self.learner.metrics)
        self.learner.metrics.clear()
        self.progress["losses"] = torch.empty(0, dtype=torch.float64)
        self.seconds, self.examples = 0.0, 0

    def histograms_of(self, indices: Tensor) -> None:
        if self.config.histogram_every:
            learner = self.learner
            self.writer.histograms(learner.steps, learner.parameters, self.examine(indices), learner.buffers)

    def examine(self, indices: Tensor) -> Backpropagation:
        """Forward and backward of these training examples at the present θ."""
        return self.learner.backpropagate(*self.learner.batch(indices.to(self.data.train.device)))

    def evaluation_of(self, examples: Examples) -> Evaluation | None:
        """None if interrupted."""
        return evaluate(self.learner, examples, self.dtype, self.stop, self.task)

    def evaluate(self) -> None:
        """Evaluate, log, and save; leaves everything as it was if interrupted."""
        train = self.data.train
        on_test = self.evaluation_of(self.data.test)
        on_train = self.evaluation_of(train.first(examples_of(TRAIN_TARGETS, train))) if on_test else None
        if on_test is None or on_train is None:
            return
        step = self.learner.steps
        if not isfinite(on_test.loss + on_train.loss):
            raise NotFiniteError(f"after step {step} the cost of the test set is {on_test.loss}; {self.remedy()}")
        values = self.task.tags(on_test.values, on_train.values)
        self.writer.scalars(step, values)
        self.writer.pictures(step, self.learner.parameters)
        if isinstance(self.data.test, Streams):
            self.writer.generated(step, sample(self.learner, self.data, self.config.tokens))
        if any(p.ndim == 4 for p in self.learner.parameters.values()):  # only convolutions make maps
            first, _ = self.data.test.batch(torch.arange(1, device=self.data.test.device), self.dtype)
            self.writer.feature_maps(step, self.learner.activations(first))
        if step == 0:
            self.histograms_of(self.batches(0, 1)[0])
        self.evaluation = on_test
        self.progress["evaluated"] = True
        headline = self.progress["latest"] = on_test.values[self.task.headline.name]
        if step:
            falling = -headline if self.task.larger_is_better else headline
            value = falling if self.config.schedule == "halve" else on_test.loss
            self.progress["plateau"] = self.plateau.update(self.progress["plateau"], value)
            self.progress["waited"] += 1
            if self.task.is_better(headline, self.progress["best"]):
                self.progress["best"], self.progress["waited"] = headline, 0
                self.save("best.pt")
        notice = self.watch(step, on_train, self.learner.activations)
        self.save("last.pt")
        epoch = -(-step // self.steps_per_epoch)
        self.console.evaluated(epoch, step, values)
        if notice:
            when = f"step {step:,}" if self.config.eval_every else f"epoch {epoch}"
            self.console.notice(f"{when}: {notice}")

    def final_figures(self) -> None:
        """At the end of a run: pictures of the last evaluation, and the settings with the result for comparing runs."""
        if self.evaluation is None:  # resumed after the last evaluation
            self.evaluation = evaluate(self.learner, self.data.test, self.dtype, task=self.task)
        result = self.evaluation
        assert result is not None
        self.begin_sequences()
        self.writer.gradient_by_depth(self.learner.steps, self.examine(self.batches(0, 1)[0]))
        self.writer.final_figures(self.learner.steps, result.outputs, result.labels, self.predict)
        self.writer.hparams(self.task.hparams(result.values))

    def predict(self, x: Tensor) -> Tensor:
        """Outputs for inputs x (B, features), on the CPU."""
        x = x.to(self.data.test.device, self.dtype)
        return self.learner.outputs(x).cpu()

    def save(self, name: str) -> None:
        self.progress["metrics"] = dict(self.learner.metrics)
        self.progress["proof"] = asdict(self.learner.proof) if self.learner.proof else {}
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()}
        state = Checkpoint(
            **self.learner.state_dict(),
            format=checkpoint.FORMAT,
            config=config,
            data=checkpoint.summary(self.data),
            progress=self.progress,
        )
        self.writer.flush()  # what was logged before a checkpoint is on the disk with it
        checkpoint.save(state, self.run_dir / name)

    def remedy(self) -> str:
        if self.learner.steps == 0:
            return f"the data or the initial values (--init {self.config.init}) are too large"
        return remedy(self.config)

    def replay(self, batches: Tensor, learning_rates: Tensor) -> None:
        """Go back before these steps, take them one by one, and raise NotFiniteError at the first value to blame."""
        self.learner.load_state_dict(self.snapshot)
        for call in self.since:
            self.learner.advance(*call)
        for i in range(len(batches)):
            step = self.learner.steps + 1
            for name, tensor in tensors_of(self.examine(batches[i])).items():
                if not tensor.isfinite().all():
                    raise NotFiniteError(f"step {step}: {NOT_FINITE} {in_words(name)}; {self.remedy()}")
            self.learner.advance(batches[i : i + 1], learning_rates[i : i + 1])
            for name, tensor in values_of(self.learner.state_dict()).items():
                if not tensor.isfinite().all():
                    raise NotFiniteError(f"step {step}: {NOT_FINITE} the new {name}; {self.remedy()}")
        repeated = "but all are when the steps are repeated"
        raise NotFiniteError(f"a value was not finite by step {self.learner.steps}, {repeated}; {self.remedy()}")
