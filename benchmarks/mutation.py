"""Break every function of manual_backprop in every small way, one at a time: do the fast tests notice?

    python -m benchmarks.mutation                                               all, and write docs/mutation.md
    python -m benchmarks.mutation --only '*derivative*' '*backward*'            these functions only, and write nothing

The exit status is 1 if a mutant survives that mutation_survivors.toml does not argue away. It runs in a temporary copy
of the project, so that nobody ever imports a mutant by accident.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tyro

from benchmarks.readme import machine
from training.terminal.output import command

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "mutation.md"
ARGUMENTS = Path(__file__).with_name("mutation_survivors.toml")
NEEDED = (
    "manual_backprop",
    "reference",
    "gradient_check",
    "gallery",
    "training",
    "benchmarks",
    "tests",
    "pyproject.toml",
)
NOTICED = ("killed", "timeout")
TEXT = """\
# Mutation score

**{score}.**

A mutant is `manual_backprop` with one small mistake in one function. It is noticed if a fast test of
`manual_backprop` fails. Written by `make mutation`; do not edit.

{table}

The mistakes are those that [mutmut](https://github.com/boxed/mutmut) makes (another constant, operator or comparison,
an argument left out or None, …) and those that one makes in a derivation ([mutate.py](../benchmarks/mutate.py)): a
factor, a term, a transposition or a whole function forgotten, the sides of a difference, quotient or product swapped,
a mean for a sum, the wrong sign. Code outside of functions (`LEAK`, the tables of names), properties
(`MLP.shapes`) and `examples`, the inputs of the tests, are not mutated.

{measured}

## Survivors

Each with the reason why no test can kill it
([mutation_survivors.toml](../benchmarks/mutation_survivors.toml)).

{survivors}
"""


@dataclass(frozen=True)
class Mutant:
    """One changed line of one function; it has no number, because numbers move when the code does."""

    file: str
    function: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}, {self.function}\n- {self.before}\n+ {self.after}"


Fates = Sequence[tuple[Mutant, str]]  # each mutant and what became of it, in mutmut's words
Arguments = Mapping[Mutant, str]  # why no test can kill it


def read_arguments(path: Path = ARGUMENTS) -> dict[Mutant, str]:
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["survivor"]
    return {Mutant(e["file"], e["function"], e["before"], e["after"]): e["why"] for e in entries}


def run(only: Sequence[str] = ()) -> Fates:
    """mutmut's verdicts on the functions whose names match, or on all."""
    with tempfile.TemporaryDirectory() as directory:
        copy, results = Path(directory) / "copy", Path(directory) / "results.json"
        copy.mkdir()
        for name in NEEDED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy / name)
        command = [sys.executable, "-m", "benchmarks.mutate", str(results), *only]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # mutmut forks, and a fork inherits no threads
        child = subprocess.run(
            command, cwd=copy, env=one_thread, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if child.returncode:
            said = [line for line in child.stdout.splitlines() if not "\u2800" <= line[:1] <= "\u28ff"]  # no spinner
            raise SystemExit("\n".join(["mutmut failed:", *said[-40:]]))
        mutants = json.loads(results.read_text(encoding="utf-8"))
    return [(Mutant(**mutant), status) for mutant in mutants if (status := mutant.pop("status")) != "not checked"]


def complaints(fates: Fates, arguments: Arguments, *, complete: bool) -> list[str]:
    """Survivors without an argument and, of a complete run, arguments without a survivor."""
    survivors = {mutant: status for mutant, status in fates if status not in NOTICED}
    found = [f"{status}: {mutant}" for mutant, status in survivors.items() if mutant not in arguments]
    if complete:
        found += [f"no longer survives: {mutant}" for mutant in arguments if mutant not in survivors]
    return found


def score(fates: Fates) -> str:
    noticed = sum(status in NOTICED for _, status in fates)
    return f"{noticed} of {len(fates)} mutants noticed ({noticed / len(fates):.1%})"


def page(fates: Fates, arguments: Arguments, measured: str) -> str:
    """docs/mutation.md"""
    table = ["| file | mutants | killed | timed out | survived |", "|---|---|---|---|---|"]
    for file in dict.fromkeys(mutant.file for mutant, _ in fates):
        own = [status for mutant, status in fates if mutant.file == file]
        killed, timed_out = own.count("killed"), own.count("timeout")
        table.append(f"| `{file}` | {len(own)} | {killed} | {timed_out} | {len(own) - killed - timed_out} |")
    survivors = dict.fromkeys(mutant for mutant, status in fates if status not in NOTICED)
    reasons = [
        f"`{m.file}`, `{m.function}`:\n\n```diff\n- {m.before}\n+ {m.after}\n```\n\n{arguments.get(m, 'Wants a test.')}"
        for m in survivors
    ]
    return TEXT.format(
        score=score(fates),
        table="\n".join(table),
        measured=f"{measured}; mutmut {version('mutmut')}; {machine()}.",
        survivors="\n\n".join(reasons) or "None.",
    )


def main(only: tuple[str, ...] = ()) -> None:
    """`only` names functions: 'manual_backprop.losses.*', '*backward*'."""
    start, arguments = time.perf_counter(), read_arguments()
    fates = run(only)
    processor = os.times().children_user + os.times().children_system
    measured = f"{time.perf_counter() - start:.0f} s, {processor:.0f} s of processor time"
    if not only:
        PAGE.write_text(page(fates, arguments, measured), encoding="utf-8")
    print(f"{score(fates)} in {measured}")
    if found := complaints(fates, arguments, complete=not only):
        raise SystemExit("\n\n".join(found))


if __name__ == "__main__":
    sys.exit(command("benchmarks.mutation")(tyro.cli)(main))
