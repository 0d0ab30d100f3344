"""How long a training step takes: by hand, by autograd on the same data, and as others would do it.

    python -m benchmarks.speed

The others are autograd with torch's fused optimizer, plain NumPy (numpy_by_hand.py) and the usual DataLoader loop. All
take turns in one process, on one thread; the medians' ratios are what counts. Writes the README's table.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from statistics import median

import torch
import tyro
from PIL import Image
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from benchmarks import numpy_by_hand
from benchmarks.readme import machine, write_section
from training.config import Config
from training.data import Dataset, load
from training.families.configure import configure, load_preset
from training.families.model import Model
from training.families.networks import arranged, make_twin
from training.learners.base import Learner
from training.learners.factory import make_manual, make_reference
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner
from training.prepare import prepare
from training.terminal.output import command

ROUNDS = 15
STEPS = 100  # of each implementation in a round
LARGE_STEPS = 10  # the same, of a network with steps of milliseconds
SLOWER_ROUNDS = 9
SLOWER = {
    "lenet5": "LeNet-5, batches of 128",
    "small-cnn": "16-32-64 residual, batches of 128",
    "rows-rnn": "rnn of 128, 28 rows, batches of 100",
    "rows-gru": "gru of 128, 28 rows, batches of 100",
    "rows-lstm": "lstm of 128, 28 rows, batches of 100",
    "char-lstm": "lstm of 256, 64 characters, batches of 32",
}
RATE = 1e-3
LARGE = {"hidden": (512, 512), "activation": ("relu",), "loss": "softmax-cross-entropy", "optimizer": "adam"}


class Pictures(TorchDataset):
    """As torchvision's MNIST gives them: a PIL image each, through ToTensor, and the label."""

    def __init__(self, data: Dataset) -> None:
        from torchvision.transforms import ToTensor  # takes seconds to import, for this one competitor

        everything = torch.arange(len(data.train))
        self.x = data.train.stored(everything).view(-1, 28, 28).numpy()
        self.y = data.train.batch(everything, torch.float32)[1].tolist()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.x[index])), self.y[index]


def usual_loop(config: Config, data: Dataset, network: Model) -> Callable[[], None]:
    """STEPS steps of the loop of every tutorial."""
    model = make_twin(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    loader = DataLoader(Pictures(data), batch_size=config.batch_size, shuffle=True)

    def run() -> None:
        for step, (x, y) in enumerate(loader, start=1):
            optimizer.zero_grad()
            a = model(x.flatten(1))
            loss = nn.functional.mse_loss(a, nn.functional.one_hot(y, 10).float(), reduction="sum") / (2 * len(x))
            loss.backward()
            optimizer.step()
            if step == STEPS:
                return

    return run


def contenders(config: Config, data: Dataset, network: Model, steps: int) -> list[Callable[[], object]]:
    """So many steps by hand, and the same by autograd, from the same start."""
    manual = make_manual(config, data, network)
    return [steps_of(learner, config, data, steps) for learner in (manual, twin_of(manual, config, data, network))]


def twin_of(manual: ManualLearner, config: Config, data: Dataset, network: Model) -> ReferenceLearner:
    reference = make_reference(config, data, network, torch.float32)
    reference.load_state_dict(manual.state_dict())
    return reference


def steps_of(learner: Learner, config: Config, data: Dataset, steps: int) -> Callable[[], object]:
    rates = torch.full((steps,), RATE, dtype=torch.float64)
    return partial(learner.advance, batches_of(config, data, steps), rates)


def batches_of(config: Config, data: Dataset, steps: int) -> torch.Tensor:
    order = data.train.order(0, 0, config.batch_size)
    return order[: steps * config.batch_size].view(steps, -1)


def fused(config: Config, data: Dataset, network: Model, steps: int) -> Callable[[], object]:
    """By autograd, and torch's own update of all parameters in one pass over the memory."""
    learner = twin_of(make_manual(config, data, network), config, data, network)
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    learner.optimizer = optimizer(learner.module.parameters(), lr=RATE, fused=True)
    return steps_of(learner, config, data, steps)


def in_numpy(learner: ManualLearner) -> numpy_by_hand.Network:
    """The network of a learner, of sigmoids with the quadratic cost, at its parameters."""
    everything, parameters = torch.arange(len(learner.train)), learner.params.state_dict()
    weights, biases = ([p.numpy() for p in parameters.values() if p.ndim == ndim] for ndim in (2, 1))
    _, y = learner.train.batch(everything, torch.float32)
    return numpy_by_hand.Network(weights, biases, learner.train.stored(everything).numpy(), y.numpy())


def take_turns(functions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of processor time of each."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, own in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            own.append(time.process_time() - start)
    return [median(own[1:]) for own in times]  # the first round warms up


def live_memory(function: Callable[[], object]) -> int:
    """The most bytes that tensors made within a call hold at one time, temporaries of torch's own included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))


def memory_of_a_step(config: Config, data: Dataset, network: Model) -> list[int]:
    """Of manual and reference; not their first, in which the optimizer makes its state."""
    steps = contenders(config, data, network, 1)
    for step in steps:
        step()
    return [live_memory(step) for step in steps]


def main() -> None:
    torch.set_num_threads(1)
    data = load("sample")
    lines = [
        "| network | by hand | autograd | autograd, fused | NumPy | DataLoader loop | hand / autograd | hand / fused |",
        "|---|---|---|---|---|---|---|---|",
    ]
    large = configure(dataset="sample", lr=RATE, batch_size=128, **LARGE)
    for asked, name, steps in (
        (load_preset("3b1b"), "784-16-16-10, SGD, batches of 100", STEPS),
        (load_preset("nielsen-ch1"), "784-30-10, SGD, batches of 10", STEPS),
        (large, "784-512-512-10 relu, Adam, batches of 128", LARGE_STEPS),
    ):
        config, network = prepare(asked, data)
        functions = [*contenders(config, data, network, steps), fused(config, data, network, steps)]
        if asked is not large:
            numpy = in_numpy(make_manual(config, data, network))
            functions.append(partial(numpy.advance, batches_of(config, data, steps).numpy(), RATE))
            functions.append(usual_loop(config, data, network))
        times = [total / steps * 1e6 for total in take_turns(functions, ROUNDS)]
        cells = [f"{time:,.0f} µs" for time in times] + ["–"] * (5 - len(times))
        ratios = [f"**{times[0] / time:.2f}**" for time in times[1:3]]
        lines.append(f"| {name} | {' | '.join(cells + ratios)} |")
    lines += [
        "",
        "| network | by hand | autograd | autograd, fused | hand / autograd | hand / fused | memory by hand "
        "| memory by autograd | hand / autograd |",
        "|---" * 9 + "|",
    ]
    for preset, name in SLOWER.items():
        asked = load_preset(preset)
        read = load(asked.dataset) if asked.dataset == "shakespeare" else data
        read = arranged(asked, read)
        config, network = prepare(asked, read)
        functions = [*contenders(config, read, network, LARGE_STEPS), fused(config, read, network, LARGE_STEPS)]
        manual, *others = (total / LARGE_STEPS * 1e3 for total in take_turns(functions, SLOWER_ROUNDS))
        own, its = memory_of_a_step(config, read, network)
        cells = [f"{time:.1f} ms" for time in (manual, *others)] + [f"**{manual / time:.2f}**" for time in others]
        cells += [f"{own / 2**20:.1f} MiB", f"{its / 2**20:.1f} MiB", f"**{own / its:.2f}**"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    explanation = (
        f"A training step, gathering the batch included: median of {ROUNDS} rounds in which all take turns, "
        f"{STEPS} steps each ({LARGE_STEPS} with Adam), float32, processor time of one thread; in the second "
        f"table {SLOWER_ROUNDS} rounds of {LARGE_STEPS} steps. All but the DataLoader loop read the same data in "
        "memory; fused is autograd with torch's fused optimizer; NumPy is the step written out for this one kind of "
        "network ([`numpy_by_hand.py`](benchmarks/numpy_by_hand.py)). Memory is the most that the tensors made within "
        f"a step hold at one time. {machine()}. Measured by `python -m benchmarks.speed`."
    )
    write_section("speed", "\n".join([*lines, "", explanation]))


if __name__ == "__main__":
    sys.exit(command("benchmarks.speed")(tyro.cli)(main, description=__doc__))
