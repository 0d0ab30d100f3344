"""Run mutmut where we are, with its operators and with ours, and write every mutant's fate to a JSON file.

    python -m benchmarks.mutate RESULTS [PATTERN …]          as benchmarks/mutation.py does, in a copy of the project

mutmut knows the mistakes of programs in general: another constant, another comparison, an argument left out. Ours are
those of a derivation: a factor, a term, a transposition or a whole function forgotten, the sides of a difference,
quotient or product swapped, a mean for a sum, the wrong sign.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import libcst as cst
from libcst import matchers as m
from mutmut.mutation import file_mutation

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


def mutants() -> Iterator[dict[str, str]]:
    """Each mutant of the last run: file, function, the lines before and after, and mutmut's word for its fate."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            function, owner = orig_function_and_class_names_from_key(name)
            diff = get_diff_for_mutant(name, path=path).splitlines()[2:]
            yield {
                "file": path.as_posix(),
                "function": f"{owner}.{function}" if owner else function,
                "before": changed(diff, "-"),
                "after": changed(diff, "+"),
                "status": status_by_exit_code[code],
            }


def changed(diff: list[str], sign: str) -> str:
    return " ".join(line[1:].strip() for line in diff if line.startswith(sign))


def main(results: str, *patterns: str) -> None:
    from mutmut.__main__ import _run

    file_mutation.mutation_operators = [*file_mutation.mutation_operators, *OPERATORS]
    inputs = ("examples", "examples_of")  # what the tests are fed, not what they test
    file_mutation.NEVER_MUTATE_FUNCTION_NAMES.update(inputs)
    _run(patterns, None)
    Path(results).write_text(json.dumps(list(mutants())), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(command("benchmarks.mutate")(main)(*sys.argv[1:]))
