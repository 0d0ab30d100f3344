"""How long it takes to check the backward pass of a 64-64-10 network, batch of 32: torch.autograd.gradcheck and ours.

    python -m benchmarks.gradcheck

All take turns in one process, on one thread, in float64; the ratios of the medians count. Writes the README's table.
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.readme import machine, write_section
from gradient_check import check_backward, check_function
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from training.terminal.output import command

ROUNDS = 3
MODEL = MLP((64, 64, 10), ("tanh", "identity"))
NAMES = list(MODEL.shapes)
BATCH = 32


def forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Any]:
    params = dict(zip(NAMES, parameters, strict=True))
    tape = Tape()
    output = MODEL.forward(params, x, tape)
    return output, (params, tape.caches)


def backward(d_output: Tensor, cache: Any) -> tuple[Tensor | None, ...]:
    params, caches = cache
    gradients: dict[str, Tensor] = {}
    tape = Tape(need_dx=True, caches=dict(caches))  # a copy: the check goes back several times, and a tape once
    dx = MODEL.backward(params, d_output, gradients, tape)
    return dx, *(gradients[name] for name in NAMES)


class Network(torch.autograd.Function):
    """The hand-written pair as gradcheck needs it."""

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        output, ctx.cache = forward(*arguments)
        return output

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> Any:
        return backward(d_output, ctx.cache)


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    example = [torch.randn(BATCH, 64, generator=generator, dtype=torch.float64)]
    example += [torch.randn(shape, generator=generator, dtype=torch.float64) / 8 for shape in MODEL.shapes.values()]
    leaves = [tensor.clone().requires_grad_() for tensor in example]

    fed = len({row.case for row in check_backward(forward, backward, example).rows if row.case})
    contenders: dict[str, Callable[[], bool]] = {
        "`gradcheck`, slow mode": lambda: torch.autograd.gradcheck(Network.apply, leaves),
        "`gradcheck`, fast mode": lambda: torch.autograd.gradcheck(Network.apply, leaves, fast_mode=True),
        "`check_backward(cases=[])`": lambda: check_backward(forward, backward, example, cases=[]).passed,
        "`check_function(cases=[])`": lambda: check_function(Network.apply, example, cases=[]).passed,
        "`check_backward`": lambda: check_backward(forward, backward, example).passed,
    }
    verdicts = {
        "`gradcheck`, slow mode": "every element, by differences",
        "`gradcheck`, fast mode": "one number for all",
        "`check_backward(cases=[])`": "every element, by autograd; differences and dot product besides",
        "`check_function(cases=[])`": "every element, by differences in random directions",
        "`check_backward`": f"the same as the first of ours, and {fed} other cases fed",
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS + 1):
        for name, check in contenders.items():
            start = time.perf_counter()
            if not check():
                raise SystemExit(f"{name} rejects a right backward")
            times[name].append(time.perf_counter() - start)
    medians = {name: median(own[1:]) for name, own in times.items()}  # the first round warms up
    slow = medians["`gradcheck`, slow mode"]
    lines = ["| check | its verdict | time | slow mode takes |", "|---|---|---|---|"]
    for name, seconds in medians.items():
        lines.append(f"| {name} | {verdicts[name]} | {seconds * 1e3:,.0f} ms | {slow / seconds:,.0f} × as long |")
    explanation = (
        f"A hand-written 64-64-10 network, batch of {BATCH}, {sum(map(Tensor.numel, example)):,} elements: median "
        f"of {ROUNDS} rounds in which they take turns, float64, one thread. {machine()}. "
        f"Measured by `python -m benchmarks.gradcheck`."
    )
    write_section("gradcheck", "\n".join([*lines, "", explanation]))


if __name__ == "__main__":
    sys.exit(command("benchmarks.gradcheck")(tyro.cli)(main, description=__doc__))
