"""Make mutants with mutmut's operators and ours, test each in a fork, and write every mutant's fate to a JSON file.

    python -m benchmarks.mutate RESULTS [PATTERN …]          as benchmarks/mutation.py does, in a copy of the project

mutmut knows the mistakes of programs in general: another constant, another comparison, an argument left out. Ours are
those of a derivation: a factor, a term, a transposition or a whole function forgotten, the sides of a difference,
quotient or product swapped, a mean for a sum, the wrong sign.

mutmut writes all mutants of a function beside it, and calls the one whose name is set. So torch, the project and the
tests are loaded once; a mutant is tested in a fork of this process, by the tests that reach its function.
"""

import gc
import json
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from itertools import zip_longest
from math import ceil
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import libcst as cst
import pytest
from libcst import matchers as m
from mutmut.__main__ import create_file_mutants
from mutmut.configuration import config
from mutmut.mutation import file_mutation
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils import file_utils
from mutmut.utils.format_utils import mangled_name_from_mutant_name, orig_function_and_class_names_from_key

from training.terminal.output import command

METHODS = {"sum": "mean", "amax": "amin", "add_": "sub_", "sub_": "add_", "mul_": "div_"}
NOT_COMMUTATIVE = m.Subtract() | m.Divide() | m.MatrixMultiply() | m.Power()


def one_operand(node: cst.BinaryOperation) -> Iterator[cst.BaseExpression]:
    """a ∘ b → a, a ∘ b → b"""
    for operand in (node.left, node.right):
        yield operand.with_changes(lpar=[*node.lpar, *operand.lpar], rpar=[*operand.rpar, *node.rpar])


def operands_swapped(node: cst.BinaryOperation) -> Iterator[cst.BaseExpression]:
    """a − b → b − a, and likewise a / b, a @ b, a ** b"""
    if m.matches(node.operator, NOT_COMMUTATIVE):
        left, right = (parenthesized(operand) for operand in (node.right, node.left))
        yield node.with_changes(left=left, right=right)


def comparison_swapped(node: cst.Comparison) -> Iterator[cst.BaseExpression]:
    """a > b → b > a"""
    if m.matches(node, m.Comparison(comparisons=[m.ComparisonTarget(m.GreaterThan() | m.LessThan())])):
        target = node.comparisons[0]
        swapped = target.with_changes(comparator=parenthesized(node.left))
        yield node.with_changes(left=parenthesized(target.comparator), comparisons=[swapped])


def transposition_forgotten(node: cst.Attribute) -> Iterator[cst.BaseExpression]:
    """x.T → x"""
    if node.attr.value == "T":
        yield node.value


def function_forgotten(node: cst.Call) -> Iterator[cst.BaseExpression]:
    """f(x) → x and torch.f(x) → x; x.f(…) → x"""
    if m.matches(node, m.Call(func=m.Attribute(value=~m.Name("torch")))):
        yield cst.ensure_type(node.func, cst.Attribute).value
    elif len(node.args) == 1 and node.args[0].keyword is None and node.args[0].star == "":
        yield parenthesized(node.args[0].value)


def another_method(node: cst.Call) -> Iterator[cst.BaseExpression]:
    """x.sum(…) → x.mean(…), θ.sub_(…) → θ.add_(…) …"""
    if isinstance(node.func, cst.Attribute) and node.func.attr.value in METHODS:
        yield node.with_deep_changes(node.func.attr, value=METHODS[node.func.attr.value])


OPERATORS: list[tuple[type, Callable[[Any], Iterable[cst.CSTNode]]]] = [
    (cst.BinaryOperation, one_operand),
    (cst.BinaryOperation, operands_swapped),
    (cst.Comparison, comparison_swapped),
    (cst.Attribute, transposition_forgotten),
    (cst.Call, function_forgotten),
    (cst.Call, another_method),
]


def parenthesized(node: cst.BaseExpression) -> cst.BaseExpression:
    """The same in parentheses where another place could need them."""
    if node.lpar or isinstance(node, cst.Name | cst.BaseNumber | cst.Attribute | cst.Call | cst.Subscript):
        return node
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def write_mutants() -> dict[str, Path]:
    """Fills mutants/, which comes before the project on sys.path; the file of each mutant by its name."""
    Path("mutants").mkdir()
    set_mutant_under_test("mutant_generation")
    file_utils.copy_src_dir()
    file_utils.copy_also_copy_files()
    file_utils.setup_source_paths()
    with ProcessPoolExecutor() as pool:
        for made in pool.map(create_file_mutants, file_utils.walk_source_files()):
            if made.error:
                raise made.error
    found: dict[str, Path] = {}
    for path in sorted(file_utils.walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        found |= dict.fromkeys(data.exit_code_by_key, path)
    return found


class Trial:
    """A plugin of pytest that runs the tests once as they are, and then for each mutant until the first one fails."""

    def __init__(self, mutants: Sequence[str]) -> None:
        self.mutants = mutants
        self.fates: dict[str, str] = {}
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("not all tests could be collected")
        self.items = session.items
        reaching, seconds = self.run_once()
        if self.failed:
            pytest.exit("the tests fail without a mutant", returncode=1)
        self.killer = RawArray("i", len(self.mutants))  # the test that failed, written in the fork
        self.killers: dict[str, set[int]] = defaultdict(set)
        self.running: dict[int, int] = {}
        gc.freeze()
        for number, mutant in enumerate(self.mutants):
            function = mangled_name_from_mutant_name(mutant)
            if not (tests := reaching[function]):
                self.fates[mutant] = "no tests"
                continue
            if len(self.running) == (os.cpu_count() or 1):
                self.wait()
            tests.sort(key=lambda test: (test not in self.killers[function], seconds[test]))
            limit = ceil(time.process_time() + 20 + 10 * sum(seconds[test] for test in tests))
            if pid := os.fork():
                self.running[pid] = number
            else:
                self.test_and_exit(number, tests, limit)
        while self.running:
            self.wait()
        return True

    def run(self, tests: Sequence[int]) -> Iterator[int]:
        """Runs each, and hands on its number when it is done."""
        for test, after in zip_longest(tests, tests[1:]):
            item, following = self.items[test], None if after is None else self.items[after]
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            yield test

    def run_once(self) -> tuple[dict[str, list[int]], list[float]]:
        """The tests that reach each function, and the seconds that each test takes."""
        set_mutant_under_test("stats")
        reaching, seconds, hit, start = defaultdict(list), [], state()._stats, time.perf_counter()
        for test in self.run(range(len(self.items))):
            seconds.append(time.perf_counter() - start)
            for function in hit:
                reaching[function].append(test)
            hit.clear()
            start = time.perf_counter()
        return reaching, seconds

    def test_and_exit(self, number: int, tests: Sequence[int], limit: int) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        set_mutant_under_test(self.mutants[number])
        for test in self.run(tests):
            if self.failed:
                self.killer[number] = test
                os._exit(1)
        os._exit(0)

    def wait(self) -> None:
        pid, status = os.wait()
        number, code = self.running.pop(pid), os.waitstatus_to_exitcode(status)
        mutant = self.mutants[number]
        self.fates[mutant] = {0: "survived", 1: "killed", -signal.SIGXCPU: "timeout"}.get(code, "segfault")
        if code == 1:
            self.killers[mangled_name_from_mutant_name(mutant)].add(self.killer[number])


def described(mutant: str, path: Path, fate: str) -> dict[str, str]:
    function, owner = orig_function_and_class_names_from_key(mutant)
    diff = get_diff_for_mutant(mutant, path=path).splitlines()[2:]
    return {
        "file": path.as_posix(),
        "function": f"{owner}.{function}" if owner else function,
        "before": changed(diff, "-"),
        "after": changed(diff, "+"),
        "status": fate,
    }


def changed(diff: list[str], sign: str) -> str:
    return " ".join(line[1:].strip() for line in diff if line.startswith(sign))


def main(results: str, *patterns: str) -> None:
    file_mutation.mutation_operators = [*file_mutation.mutation_operators, *OPERATORS]
    inputs = ("examples", "examples_of")  # what the tests are fed, not what they test
    file_mutation.NEVER_MUTATE_FUNCTION_NAMES.update(inputs)
    found, here = write_mutants(), Path.cwd()
    trial = Trial([name for name in found if not patterns or any(fnmatch(name, pattern) for pattern in patterns)])
    os.chdir("mutants")
    options = ["--rootdir=.", "-q", "-s", "--assert=plain", "--tb=native", *config().pytest_add_cli_args]
    if status := pytest.main([*options, *config().pytest_add_cli_args_test_selection], plugins=[trial]):
        raise SystemExit(status)
    os.chdir(here)
    fates = [described(mutant, found[mutant], fate) for mutant, fate in trial.fates.items()]
    Path(results).write_text(json.dumps(fates), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(command("benchmarks.mutate")(main)(*sys.argv[1:]))
