"""Run five checks over the gallery of wrong backwards and write docs/gallery.md.

    python -m benchmarks.gallery

Two minutes on one core. The same on every machine: nothing is timed, and everything is seeded.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from gallery import ENTRIES, OWN, Entry, Wrong, WrongRule, named, verdict
from gallery import naive as naive_tests
from gradient_check import Diagnosis
from training.terminal.output import command

PAGE = Path(__file__).parent.parent / "docs" / "gallery.md"
SEED = 0

INTRODUCTION = """\
# The gallery of wrong backwards

Known mistakes, each beside the right backward of the same layer ([gallery/](../gallery)). Written by
`python -m benchmarks.gallery`, checked by `tests/gallery/test_gallery.py`.

Five checks are run on every pair, on the same example of odd sizes in float64:

- **ones**: autograd through the same forward, a cotangent of ones, `torch.allclose`;
- **gradcheck** and **fast**: `torch.autograd.gradcheck` on an `autograd.Function` made of the pair, in its slow and its
  fast mode, with its own tolerances;
- **one difference**: a random cotangent and one central difference per tensor, at a random element, within 1e-4;
- **ours**: `gradient_check.check_backward`.

✓: the right backward is accepted and the wrong one is rejected. –: the wrong one passes. ✗: the right one is rejected.
The first four do not apply to optimizers, whole networks and an `autograd.Function` (blank, and not counted). For an
optimizer, ours compares the parameters after five recorded gradients with torch.optim's (`compare_gradients`). For a
network it compares the cost, every δ and every gradient of one step with autograd's (`check_step`). A function is
checked by `check_function`.

*Missed by* is a common kind of test that accepts both the right backward and the wrong one; the test suite runs it.
*Diagnosis* is the first diagnosis of ours. The correct kinds of each mistake are listed in the gallery. They were
written before the check was run, except for thirteen, where its answer turned out to be as true as the list. A mistake
without a kind should be called unknown: any name counts as wrong. The diagnoses were developed with this gallery, so
the figures say what they cover, not how often they would name a new mistake. Mistakes made by *our own tests* were
detected before they were added here (and, except for networks, diagnosed), so both figures leave them out."""


def accepts_ones(entry: Wrong, right: bool) -> bool:
    return naive_tests.ones.accepts(entry.pair(right), entry.layer, SEED)


def accepts_one_difference(entry: Wrong, right: bool) -> bool:
    return naive_tests.random_element.accepts(entry.pair(right), entry.layer, SEED)


def accepts_gradcheck(entry: Wrong, right: bool, fast: bool = False) -> bool:
    arguments = entry.layer.arguments(SEED)
    positions = naive_tests.differentiable(entry.layer, arguments)
    leaves = [arguments[i].requires_grad_() for i in positions]
    function = as_function(entry, right, arguments, positions)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)  # the fast mode draws its directions from the global generator
        return torch.autograd.gradcheck(function.apply, leaves, fast_mode=fast, raise_exception=False)


def accepts_gradcheck_fast(entry: Wrong, right: bool) -> bool:
    return accepts_gradcheck(entry, right, fast=True)


def accepts_ours(entry: Entry, right: bool) -> bool:
    return entry.ours(right, SEED).passed


METHODS: dict[str, Callable[[Any, bool], bool]] = {
    "ones": accepts_ones,
    "gradcheck": accepts_gradcheck,
    "fast": accepts_gradcheck_fast,
    "one difference": accepts_one_difference,
    "ours": accepts_ours,
}


def as_function(
    entry: Wrong, right: bool, arguments: Sequence[Any], positions: Sequence[int]
) -> type[torch.autograd.Function]:
    """The pair as autograd knows it: a function of the differentiable arguments."""
    forward, backward = entry.pair(right)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Any:
            fed = list(arguments)
            for i, tensor in zip(positions, tensors, strict=True):
                fed[i] = tensor
            *outputs, ctx.kept = forward(*fed)
            return tuple(outputs) if len(outputs) > 1 else outputs[0]

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Any:
            return backward(*cotangents, ctx.kept)

    return Function


@dataclass(frozen=True)
class Result:
    """What the checks made of one entry."""

    entry: Entry
    marks: dict[str, str]  # by method: ✓ – ✗, or blank where it does not apply
    diagnosis: Diagnosis | None

    @property
    def named(self) -> str:
        return verdict(self.entry, self.diagnosis)


def examine(entry: Entry) -> Result:
    marks = {
        name: mark(method, entry) if name == "ours" or isinstance(entry, Wrong) else ""
        for name, method in METHODS.items()
    }
    return Result(entry, marks, named(entry.ours(right=False, seed=SEED)))


def mark(method: Callable[[Any, bool], bool], entry: Entry) -> str:
    def accepted(right: bool) -> bool:
        try:
            return method(entry, right)
        except Exception:  # a test that raises is a test that fails
            return False

    if not accepted(right=True):
        return "✗"
    return "–" if accepted(right=False) else "✓"


def page(results: Sequence[Result]) -> str:
    lines = [INTRODUCTION, "", "| | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    own = [r for r in results if r.entry.where == OWN]
    others = [r for r in results if r.entry.where != OWN]
    applied = {name: [r.marks[name] for r in others if r.marks[name]] for name in METHODS}
    detected = [f"{marks.count('✓')} of {len(marks)}" for marks in applied.values()]
    alarms = [str(marks.count("✗")) for marks in applied.values()]
    lines += ["| detected | " + " | ".join(detected) + " |", "| false alarms | " + " | ".join(alarms) + " |"]
    of_a_kind = Counter(r.named for r in others if r.entry.diagnosis)
    nameless = Counter(r.named for r in others if not r.entry.diagnosis)
    lines += [
        "",
        f"Of the {of_a_kind.total()} mistakes that are of a known kind ours names {of_a_kind['right']} rightly and "
        f"{of_a_kind['wrong']} wrongly, and calls {of_a_kind['unknown']} unknown; of the {nameless.total()} others it "
        f"calls {nameless['–']} unknown and gives {nameless['wrong']} a name. "
        f"Not counted are the {len(own)} of our own tests, of which it rejects "
        f"{sum(r.marks['ours'] == '✓' for r in own)} and names {sum(r.named == 'right' for r in own)} rightly.",
        "",
        "| mistake | what is wrong | made by | missed by | " + " | ".join(METHODS) + " | diagnosis |",
        "|---|---|---|---|" + ":-:|" * len(METHODS) + "---|",
    ]
    return "\n".join([*lines, *map(row, results)]) + "\n"


def row(result: Result) -> str:
    entry = result.entry
    naive = "½‖θ‖² is minimized" if isinstance(entry, WrongRule) else entry.naive.text
    said = result.diagnosis.text if result.diagnosis else "unknown"
    doubt = " (wrong)" if result.named == "wrong" else ""
    cells = [entry.name, entry.what, entry.where, naive, *result.marks.values(), said + doubt]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    torch.set_num_threads(1)
    PAGE.write_text(page([examine(entry) for entry in ENTRIES]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(command("benchmarks.gallery")(tyro.cli)(main, description=__doc__))
