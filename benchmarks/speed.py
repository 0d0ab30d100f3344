"""How long a training step takes: by hand, by autograd on the same data, and in the usual DataLoader loop.

    python -m benchmarks.speed

The three take turns in one process, on one thread; the medians' ratios are what counts. Writes the README's table.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from statistics import median

import torch
from PIL import Image
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import ToTensor

from benchmarks.readme import machine, write_section
from training.config import Config
from training.data import Dataset, load
from training.families.configure import load_preset
from training.families.model import Model
from training.families.networks import make_twin
from training.learners.factory import make_manual, make_reference
from training.prepare import prepare
from training.terminal.output import command

ROUNDS = 15
STEPS = 100  # of each implementation in a round
CNN_ROUNDS, CNN_STEPS = 7, 10
RATE = 1e-3


class Pictures(TorchDataset):
    """As torchvision's MNIST gives them: a PIL image each, through ToTensor, and the label."""

    def __init__(self, data: Dataset) -> None:
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
    reference = make_reference(config, data, network, torch.float32)
    reference.load_state_dict(manual.state_dict())
    order = data.train.order(0, 0, config.batch_size)
    batches = order[: steps * config.batch_size].view(steps, -1)
    rates = torch.full((steps,), RATE, dtype=torch.float64)
    return [partial(learner.advance, batches, rates) for learner in (manual, reference)]


def take_turns(functions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            own.append(time.perf_counter() - start)
    return [median(own[1:]) for own in times]  # the first round warms up


def live_memory(function: Callable[[], object]) -> int:
    """The most bytes that tensors made within a call hold at one time, temporaries of torch's own included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
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


@command("benchmarks.speed")
def main() -> None:
    torch.set_num_threads(1)
    data = load("sample")
    lines = [
        "| network | by hand | autograd, same data path | DataLoader loop | hand / autograd | hand / DataLoader |",
        "|---|---|---|---|---|---|",
    ]
    for preset, name in (("3b1b", "784-16-16-10, batches of 100"), ("nielsen-ch1", "784-30-10, batches of 10")):
        config, network = prepare(load_preset(preset), data)
        seconds = take_turns([*contenders(config, data, network, STEPS), usual_loop(config, data, network)], ROUNDS)
        manual, reference, usual = (total / STEPS * 1e6 for total in seconds)
        lines.append(
            f"| {name} | {manual:.0f} µs | {reference:.0f} µs | {usual:,.0f} µs | "
            f"**{manual / reference:.2f}** | {manual / usual:.3f} |"
        )
    lines += [
        "",
        "| network | by hand | autograd | hand / autograd | memory by hand | memory by autograd | hand / autograd |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, name in (("lenet5", "LeNet-5, batches of 128"), ("small-cnn", "16-32-64 residual, batches of 128")):
        config, network = prepare(load_preset(preset), data)
        seconds = take_turns(contenders(config, data, network, CNN_STEPS), CNN_ROUNDS)
        manual, reference = (total / CNN_STEPS * 1e3 for total in seconds)
        own, its = memory_of_a_step(config, data, network)
        lines.append(
            f"| {name} | {manual:.1f} ms | {reference:.1f} ms | **{manual / reference:.2f}** | "
            f"{own / 2**20:.1f} MiB | {its / 2**20:.1f} MiB | **{own / its:.2f}** |"
        )
    explanation = (
        f"A training step, gathering the batch included: median of {ROUNDS} rounds in which the three take turns, "
        f"{STEPS} steps each, float32, one thread; of the convolutional networks {CNN_ROUNDS} rounds of {CNN_STEPS} "
        "steps. Memory is the most that the tensors made within a step hold at one time. "
        f"{machine()}. Measured by `python -m benchmarks.speed`."
    )
    write_section("speed", "\n".join([*lines, "", explanation]))


if __name__ == "__main__":
    sys.exit(main())
