"""What is wrong with a gradient, where the pattern is known.

Each pattern is a hypothesis that says what a backward pass with that mistake returns; it is named only if that *is*
what was returned: the remainder is below the noise, below a twentieth of the error, and no accident (a fit of k numbers
to n elements within r of the error happens by chance with a probability of about rⁿ⁻ᵏ). The simplest come first.
Patterns that need forward run again take autograd's own graph apart (`terms`). No pattern: None, "unknown".
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import combinations, permutations
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor

from gradient_check.report import Diagnosis
from gradient_check.terms import VIEWS, Change, Edge, Graph, Term, kind

ACCIDENT = 1e-6  # how improbable a fit by chance must be
PASSES = 300  # backward passes that one pattern may take
WORK = 30_000_000  # elements that they may move
KNOWN = -1  # a factor that is a known number is worth an element, or a bias of one could never be told
DIAGONAL = 300  # elements up to which a Jacobian's diagonal is computed


@dataclass(frozen=True)
class Evidence:
    """What is known beside the two gradients; every field may be empty.

    `arguments` are forward's, by name, as fed; `outputs` what it returned and `cotangents` the gradients fed for them.
    `forward` is one that autograd can go through, called as forward(*arguments.values()), or None. `candidates` are
    terms that the caller suspects. Two tensors nearer than `noise`, relative to the norm, are the same.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[Tensor] = ()
    cotangents: Sequence[Tensor] = ()
    forward: Callable[..., Any] | None = None
    candidates: Mapping[str, Tensor] = field(default_factory=dict)
    noise: float = 1e-9


def diagnose(
    name: str, actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor], evidence: Evidence
) -> Diagnosis | None:
    """The known mistake that turns expected[name] into actual[name], or None. Never raises.

    `name` is that of the gradient, `d` + the argument's.
    """
    given, wanted = actual.get(name), expected.get(name)
    if given is None or wanted is None or given.is_complex() or wanted.is_complex():
        return None
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        case = Case(name, _plain(given), _plain(wanted), actual, expected, evidence)
        for pattern in OTHER_SHAPE if given.shape != wanted.shape else SAME_SHAPE:
            with suppress(Exception):  # forward, fed with something else, may raise: then that is not the mistake
                if (found := pattern(case)) is not None:
                    return found
    return None


@dataclass
class Case:
    """One wrong gradient: `given` is what backward returned, `wanted` the truth, both float64 on the CPU."""

    name: str
    given: Tensor
    wanted: Tensor
    actual: Mapping[str, Tensor | None]
    expected: Mapping[str, Tensor]
    evidence: Evidence

    @cached_property
    def argument(self) -> str:
        """The argument's name, or nothing where the gradient is not one of an argument's."""
        argument = self.name[1:]
        return argument if self.name.startswith("d") and argument in self.evidence.arguments else ""

    @cached_property
    def error(self) -> Tensor:
        return self.given - self.wanted

    @cached_property
    def wrong(self) -> Tensor:
        """Which elements are wrong."""
        rms = self.wanted.norm() / max(1, self.wanted.count_nonzero()) ** 0.5
        return ~(self.error.abs() <= self.evidence.noise * torch.maximum(self.wanted.abs(), rms))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The floating-point arguments and outputs by name."""
        found = {k: v for k, v in self.evidence.arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
        for i, output in enumerate(self.evidence.outputs):
            found[_numbered("the output", i, len(self.evidence.outputs))] = output
        return {key: _plain(value) for key, value in found.items()}

    @cached_property
    def graph(self) -> Graph | None:
        """Autograd's graph, if the gradient that it gives is the right one."""
        forward, arguments = self.evidence.forward, self.evidence.arguments
        if forward is None or not self.argument or not self.evidence.cotangents:
            return None
        for double, spelled in ((True, True), (True, False), (False, False)):
            with suppress(Exception):
                graph = Graph(
                    forward, arguments, self.evidence.cotangents, self.argument, double=double, spelled=spelled
                )
                if _distance(graph.value, self.wanted) <= self.evidence.noise * self.wanted.norm():
                    return graph
        return None

    @cached_property
    def terms(self) -> list[Term]:
        """The terms of the gradient, as autograd's graph shows them."""
        return [] if self.graph is None else self.graph.terms(self.passes)

    @property
    def passes(self) -> int:
        """How many backward passes a pattern may take."""
        return 0 if self.graph is None else min(PASSES, WORK // self.graph.work)

    def again(self, **changed: Any) -> Tensor | None:
        """The gradient that autograd gives when some arguments are others."""
        forward = self.evidence.forward
        if self.graph is None or forward is None:
            return None
        arguments = {**self.evidence.arguments, **changed}
        return Graph(forward, arguments, self.graph.cotangents, self.argument, spelled=False).value

    def is_(self, hypothesis: Tensor | None, free: int = 0, scale: float | None = None) -> bool:
        """Whether the hypothesis, with `free` numbers fitted, is what backward returned."""
        return hypothesis is not None and same(self.given, hypothesis, self.wanted, self.evidence.noise, free, scale)


def same(
    given: Tensor, hypothesis: Tensor, wanted: Tensor, noise: float, free: int = 0, scale: float | None = None
) -> bool:
    """Whether `hypothesis` is `given`, in a way that explains why that is not `wanted`, and not by chance."""
    if hypothesis.shape != given.shape:
        return False
    error = _distance(given, wanted) if given.shape == wanted.shape else given.norm().item()
    size = max(given.norm().item(), wanted.norm().item()) if scale is None else scale
    limit = min(noise * size, 0.05 * error)
    remainder = _distance(given, hypothesis)
    if not (remainder <= limit and error > 0):
        return False
    elements = int(((given != 0) | (hypothesis != 0)).sum())
    return limit == 0 or (limit / error) ** (elements - free) <= ACCIDENT


Pattern = Callable[[Case], Diagnosis | None]


# Another shape


def swapped(case: Case) -> Diagnosis | None:
    """Another argument's gradient, which is not where it belongs."""
    for other, right in case.expected.items():
        there = case.actual.get(other)
        if other == case.name or there is None or right.shape != case.given.shape:
            continue
        misplaced = there.shape != right.shape or _distance(_plain(there), _plain(right)) > 1e-3 * right.norm()
        if misplaced and same(case.given, _plain(right), case.wanted, case.evidence.noise):
            return Diagnosis("swapped", f"it is the right value of {other}, which has another")
    return None


def transposed_shape(case: Case) -> Diagnosis | None:
    for order in permutations(range(case.wanted.ndim)) if case.wanted.ndim <= 4 else ():
        if same(case.given, case.wanted.permute(order), case.wanted, case.evidence.noise):
            return Diagnosis("transposed", f"it is the transposed of the right value{_order(order)}")
    return None


def wrong_axis(case: Case) -> Diagnosis | None:
    """Summed over other dimensions than the argument was broadcast over."""
    for full in unreduced(case):
        right = _reduced_dims(full, case.wanted)
        for n in range(full.ndim + 1):
            for dims in combinations(range(full.ndim), n):
                if dims == right:
                    continue
                summed = full.sum(dims) if dims else full
                if summed.numel() == 1:
                    summed = summed.reshape(()).expand(case.given.shape)
                if summed.squeeze().shape != case.given.squeeze().shape:
                    continue
                for words, value in (("summed", summed), ("averaged", summed * summed.numel() / full.numel())):
                    if dims and case.is_(value.reshape(case.given.shape)):
                        return Diagnosis(
                            "wrong axis",
                            f"{words} over {_dims(dims)} of the {_shape(full)} gradient instead of {_dims(right)}",
                        )
    return None


def unreduced(case: Case) -> Iterator[Tensor]:
    """The gradients from before they were summed over the dimensions that the argument was broadcast over."""
    graph = case.graph
    if graph is None:
        return
    for node, position in graph.edges:
        if graph.leaf_below(node, position) != case.argument or kind(node) not in BROADCASTING:
            continue
        found: list[Tensor] = []

        def look(d_input: Tensor, d_output: Tensor, node: Any = node, i: int = position, found: Any = found) -> Tensor:
            found.append(BROADCASTING[kind(node)](node, i, d_output).double().cpu())
            return d_input

        with suppress(Exception):
            graph.gradient({(node, position): look})
            if found and found[0].numel() > case.wanted.numel():
                yield found[0]


def wrong_axis_inside(case: Case) -> Diagnosis | None:
    """A sum or mean on the way, such as softmax's, is over other dimensions in backward than in forward."""
    graph = case.graph
    passes = case.passes
    for node, position in graph.edges if graph is not None else ():
        below = node.next_functions[position][0]
        if kind(node) not in BROADCASTING or kind(below) not in ("Sum", "Mean"):
            continue
        full: list[Tensor] = []

        def look(d_input: Tensor, d_output: Tensor, node: Any = node, i: int = position, full: Any = full) -> Tensor:
            full.append(BROADCASTING[kind(node)](node, i, d_output))
            return d_input

        for dims in _subsets(graph.cotangents[0].ndim):
            if (passes := passes - 1) < 0:
                return None

            def over(
                d_input: Tensor, d_output: Tensor, dims: Any = dims, below: Any = below, full: Any = full
            ) -> Tensor:
                size = d_input.numel() / d_output.numel() if kind(below) == "Mean" else 1.0
                return full[-1].sum(dims, keepdim=True).expand_as(d_input) / size

            with suppress(RuntimeError, IndexError):
                if graph is not None and case.is_(graph.gradient({(node, position): look, (below, 0): over})):
                    what = "mean" if kind(below) == "Mean" else "sum"
                    return Diagnosis("wrong axis", f"a {what} on the way is taken over {_dims(dims)}")
    return None


def _subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    """The non-empty sets of dimensions."""
    for n in range(1, ndim + 1):
        yield from combinations(range(ndim), n)


def _sum_of(node: Any, position: int, d_output: Tensor) -> Tensor:
    return d_output


def _difference_of(node: Any, position: int, d_output: Tensor) -> Tensor:
    return -d_output if position else d_output


def _product_of(node: Any, position: int, d_output: Tensor) -> Tensor:
    return d_output * (node._saved_self if position else node._saved_other)


def _quotient_of(node: Any, position: int, d_output: Tensor) -> Tensor:
    other = node._saved_other
    return -d_output * node._saved_self / other**2 if position else d_output / other


# the gradient of a broadcasting node's input before it is summed
BROADCASTING: dict[str, Callable[[Any, int, Tensor], Tensor]] = {
    "Add": _sum_of,
    "Addmm": _sum_of,
    "Sub": _difference_of,
    "Mul": _product_of,
    "Div": _quotient_of,
}


def shape(case: Case) -> Diagnosis:
    """A dimension kept, not summed, or lost; if nothing is known of the values, just both shapes."""
    given, wanted, noise = case.given, case.wanted, case.evidence.noise
    both = f"{_shape(given)}, not {_shape(wanted)}"
    if given.numel() == wanted.numel() and same(given, wanted.reshape(given.shape), wanted, noise):
        return Diagnosis("shape", f"the right values in the shape {both}")
    for dims in _subsets(given.ndim):
        for summed in (given.sum(dims), given.sum(dims, keepdim=True)):
            if summed.shape == wanted.shape and _distance(summed, wanted) <= noise * wanted.norm():
                return Diagnosis("shape", f"its shape is {both}: it was not summed over {_dims(dims)}")
    for dims in _subsets(wanted.ndim):
        for summed in (wanted.sum(dims), wanted.sum(dims, keepdim=True)):
            if summed.shape == given.shape and same(given, summed, wanted, noise):
                return Diagnosis("shape", f"its shape is {both}: it was summed over {_dims(dims)}, too")
    return Diagnosis("shape", f"its shape is {both}")


# The same shape: from the two gradients alone


def nan(case: Case) -> Diagnosis | None:
    bad = ~case.given.isfinite()
    if not bad.any():
        return None
    first = [int(i) for i in bad.nonzero()[0]]
    what = "NaN" if case.given[tuple(first)].isnan() else "infinity"
    where = f"{int(bad.sum())} of {bad.numel()} elements are not finite, the first is {what} at {first}"
    for name, tensor in case.tensors.items():
        if tensor.shape == bad.shape and not bad.all() and torch.equal(tensor == 0, bad):
            return Diagnosis("nan", f"{where}: exactly where {name} is 0")
    return Diagnosis("nan", where)


def zero(case: Case) -> Diagnosis | None:
    if case.given.norm() <= 1e-12 * case.wanted.norm():
        return Diagnosis("zero", "it is zero everywhere")
    return None


def sign(case: Case) -> Diagnosis | None:
    if case.is_(-case.wanted, free=KNOWN):
        return Diagnosis("sign", "the sign is wrong: it is −1 times the right value")
    return None


def factor(case: Case) -> Diagnosis | None:
    """A constant times the right value."""
    square = case.wanted.pow(2).sum()
    if square == 0:
        return None
    c = float((case.given * case.wanted).sum() / square)
    known = _factor(case, c)
    if not case.is_(c * case.wanted, free=KNOWN if known else 2, scale=case.given.norm().item()):
        return None
    return known or Diagnosis("factor", f"it is {c:.6g} times the right value")


def _factor(case: Case, c: float) -> Diagnosis | None:
    near = min(case.evidence.noise, 1e-3)

    def is_(value: float) -> bool:
        return abs(c - value) <= near * abs(value)

    for key, value in case.evidence.arguments.items():
        scalar = float(value) if isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1) else 1.0
        if scalar not in (0.0, 1.0) and isfinite(scalar) and (is_(1 / scalar) or is_(scalar)):
            how = "not multiplied in" if is_(1 / scalar) else "multiplied in once too often"
            return Diagnosis("missing factor", f"it is {c:.6g} times the right value: {key} = {scalar:.6g} was {how}")
    if case.evidence.noise > 1e-3 and abs(c) < 10 and not is_(c):
        return None
    sizes = list(_sizes(case))
    for size, words, averaged in sorted(sizes, key=lambda entry: not entry[2]):
        if is_(1 / size) or is_(size):
            what = f"1/{size}" if is_(1 / size) else str(size)
            if size == 2:
                return Diagnosis("factor", f"it is {_fraction(c)} times the right value (2 is {words}, too)")
            text = f"it is {what} times the right value ({size} = {words})"
            return Diagnosis("batch factor", f"{text}: mean against sum") if averaged else Diagnosis("factor", text)
    for size, words, _ in sizes:
        if size > 2 and (is_((size - 1) / size) or is_(size / (size - 1))):
            what = f"{size - 1}/{size}" if is_((size - 1) / size) else f"{size}/{size - 1}"
            return Diagnosis("factor", f"it is {what} times the right value ({size} = {words})")
    fraction = Fraction(c).limit_denominator(12)
    if fraction and is_(float(fraction)) and abs(fraction.numerator) <= 12:
        return Diagnosis("factor", f"it is {_fraction(float(fraction))} times the right value")
    for size, words, _ in sizes:
        if is_(size**-0.5) or is_(size**0.5):
            what = f"1/√{size}" if is_(size**-0.5) else f"√{size}"
            return Diagnosis("factor", f"it is {what} times the right value ({size} = {words})")
    return None


def _sizes(case: Case) -> Iterator[tuple[int, str, bool]]:
    """Sizes of runs of dimensions, what they are, and whether one takes means over them; the output's come first."""
    for i, output in enumerate(case.evidence.outputs):
        yield from ((*run, True) for run in _runs(output, _numbered("the output", i, len(case.evidence.outputs))))
    for key, value in case.evidence.arguments.items():
        if isinstance(value, Tensor):
            for size, words in _runs(value, key):
                # a lone last dimension is summed over by products; nobody takes its mean
                yield size, words, value.ndim == 1 or words != f"{_dims([value.ndim - 1])} of {key}"


def _runs(tensor: Tensor, name: str) -> Iterator[tuple[int, str]]:
    for start in range(tensor.ndim):
        for stop in range(start + 1, tensor.ndim + 1):
            size = prod(tensor.shape[start:stop])
            if size > 1:
                yield size, f"{_dims(range(start, stop))} of {name}"


def transposed(case: Case) -> Diagnosis | None:
    for i, j in combinations(range(case.wanted.ndim), 2):
        if case.wanted.shape[i] == case.wanted.shape[j] and case.is_(case.wanted.transpose(i, j)):
            where = "" if case.wanted.ndim == 2 else f" in dimensions {i} and {j}"
            return Diagnosis("transposed", f"it is the transposed of the right value{where}")
    return None


# The same shape: with what was fed


def ones(case: Case) -> Diagnosis | None:
    text = "it is the gradient for a cotangent of ones: the cotangent was ignored"
    if case.graph is None and [dy.numel() for dy in case.evidence.cotangents] == [1]:
        if case.is_(case.wanted / _plain(case.evidence.cotangents[0])):
            return Diagnosis("ones", text)
    elif case.graph is not None:
        value = case.graph.gradient(cotangents=[torch.ones_like(dy) for dy in case.graph.cotangents])
        if case.is_(value):
            return Diagnosis("ones", text)
    return None


def output_ignored(case: Case) -> Diagnosis | None:
    """One of several outputs' cotangents does not count."""
    graph = case.graph
    for i in range(len(graph.cotangents)) if graph is not None and len(graph.cotangents) > 1 else ():
        dys = [torch.zeros_like(dy) if j == i else dy for j, dy in enumerate(graph.cotangents)]
        if case.is_(graph.gradient(cotangents=dys)):
            return Diagnosis("term", f"a term is missing: the cotangent of output {i}")
    return None


def mask_ignored(case: Case) -> Diagnosis | None:
    """A mask, an argument of zeros and one other value, was left out of the backward pass, or of all."""
    masks = {}
    for key, value in case.evidence.arguments.items():
        if isinstance(value, Tensor) and key != case.argument and (value.dtype == torch.bool or _is_mask(value)):
            masks[key] = value
    for key, mask in masks.items():
        text = f"the mask {key} was ignored"
        numbers = _plain(mask)
        for keep in (numbers, (numbers != 0).double(), (numbers == 0).double()):
            if keep.isfinite().all() and case.wanted.norm() > 0 and _multiplied(case, keep):
                return Diagnosis("mask ignored", text)
        for value in {0, 1, *mask[mask != 0][:1].tolist()}:
            with suppress(Exception):
                if case.is_(case.again(**{key: torch.full_like(mask, value)})):
                    return Diagnosis("mask ignored", text)
    for edge, mask, words in _masking(case):
        values = [1.0] if mask.dtype == torch.bool else {1.0, mask[mask != 0][0].item()}
        for value in values:
            if case.graph is not None and case.is_(case.graph.gradient({edge: lambda _, dy, v=value: dy * v})):
                return Diagnosis("mask ignored", f"the mask {words}was ignored".replace("  ", " "))
    return None


def _masking(case: Case) -> Iterator[tuple[Edge, Tensor, str]]:
    """Where the graph masks: by an argument, or by a pattern that is the same for every example."""
    masks = {k: v for k, v in case.evidence.arguments.items() if isinstance(v, Tensor) and k != case.argument}
    for node, position in case.graph.edges if case.graph is not None else ():
        saved: Any = {"Mul": ("_saved_self" if position else "_saved_other"), "Where": "_saved_condition"}
        saved = getattr(node, saved.get(kind(node), "_saved_mask"), None)
        if not isinstance(saved, Tensor) or not (saved.dtype == torch.bool or _is_mask(saved)):
            continue
        words = [
            k
            for k, v in masks.items()
            if v.numel() == saved.numel() and torch.equal(_plain(v).flatten() != 0, (_plain(saved) != 0).flatten())
        ]
        if words:
            yield (node, position), saved, words[0] + " "
        elif kind(node) == "MaskedFill" or saved.ndim < case.graph.cotangents[0].ndim:
            yield (node, position), saved, ""


def missing_factor(case: Case) -> Diagnosis | None:
    """An argument, or a function of an output, by which the gradient was not multiplied."""
    cotangents = [_plain(dy) for dy in case.evidence.cotangents if dy.shape == case.given.shape]
    for key, tensor in case.tensors.items():
        own = key == case.argument or key.startswith("the output")
        for words, factor, curved in _functions(key, tensor, own):
            if _multiplied(case, factor):
                if own and (curved or any(_distance(case.given, dy) == 0 for dy in cotangents)):
                    return Diagnosis("derivative forgotten", f"the derivative {words} was not multiplied in")
                return Diagnosis("missing factor", f"{words} was not multiplied in")
    return None


def _functions(key: str, a: Tensor, own: bool) -> Iterator[tuple[str, Tensor, bool]]:
    """Factors made of a tensor, what they are called, and whether they can only be an activation's derivative."""
    y = "y" if key.startswith("the output") else key
    if own:
        yield f"1 − {y}²", 1 - a * a, True
        yield f"{y}(1 − {y})", a * (1 - a), True
        yield f"[{y} > 0]", (a > 0).double(), True
        yield f"2{y}", 2 * a, True
    yield y, a, False
    yield f"1/{y}", 1 / a, False
    yield f"{y}²", a * a, False
    yield f"√{y}", a.sqrt(), False
    yield f"exp({y})", a.exp(), False


def _multiplied(case: Case, factor: Tensor) -> bool:
    """Whether what was returned, times the factor, is right."""
    for spread in _spread(factor, case.given):
        if bool((spread == spread.flatten()[0]).all()):
            continue  # a constant: that has its own name
        value = case.given * spread
        if not value.isfinite().all():
            continue
        remainder, size = _distance(value, case.wanted), case.wanted.norm().item()
        informative = int((case.wanted != 0).sum())
        if size and remainder <= case.evidence.noise * size and case.evidence.noise**informative <= ACCIDENT:
            return _distance(case.given, case.wanted) > 20 * remainder
    return False


def _spread(factor: Tensor, like: Tensor) -> Iterator[Tensor]:
    """A factor broadcast to a shape: from the last dimensions, as torch does, from the first, or along the second."""
    after = like.ndim - factor.ndim
    shapes = {tuple(factor.shape), (*factor.shape, *[1] * after), (1, *factor.shape, *[1] * (after - 1))}
    for shape in sorted(shapes, key=len):
        sizes = zip(reversed(shape), reversed(like.shape), strict=False)
        if len(shape) <= like.ndim and all(size in (1, wanted) for size, wanted in sizes):
            yield factor.reshape(shape).expand(like.shape)


def local_derivative(case: Case) -> Diagnosis | None:
    """One operation's derivative, or a product's other factor, left out somewhere on the way."""
    graph = case.graph
    if graph is None:
        return None
    curved = [(n, i) for n, i in graph.edges if kind(n) not in LINEAR and len(graph_inputs(n)) == 1]
    products = [(n, i) for n, i in graph.edges if kind(n) == "Mul" or (kind(n) == "Div" and i == 0)]
    passes = case.passes
    for edges in (*graph.groups(curved), *graph.groups(products)):
        if (passes := passes - 1) < 0:
            break
        node, position = edges[0]
        with suppress(Exception):
            if case.is_(graph.gradient(dict.fromkeys(edges, _unchanged))):
                times = f" ({len(edges)} times)" if len(edges) > 1 else ""
                if kind(node) not in LINEAR:
                    return Diagnosis(
                        "derivative forgotten", f"the derivative of {_function(node)} was forgotten{times}"
                    )
                saved = getattr(node, "_saved_self" if position else "_saved_other", None)
                what = f"{graph.partner(node, position) or 'the other factor of a product'} was not multiplied in"
                if kind(node) == "Div":
                    what = f"the division by {graph.partner(node, position) or 'the divisor'} was forgotten"
                elif isinstance(saved, Tensor) and (saved.dtype == torch.bool or _is_mask(saved)):
                    return Diagnosis("derivative forgotten", f"the gradient passes where it is 0{times}")
                return Diagnosis("missing factor", what + times)
    return None


def graph_inputs(node: Any) -> list[Any]:
    return [target for target, _ in node.next_functions if target is not None]


def _unchanged(d_input: Tensor, d_output: Tensor) -> Tensor:
    return d_output.sum_to_size(d_input.shape)


def _function(node: Any) -> str:
    return kind(node).lower()


# nodes whose derivative is no function of a value, or is dealt with elsewhere
LINEAR = VIEWS | {
    *("Add", "Sub", "Mul", "Div", "Neg", "Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Dot", "Convolution", "Sum", "Mean"),
    *("Slice", "Select", "Index", "IndexSelect", "Gather", "Embedding", "Cat", "Stack", "Split", "SplitWithSizes"),
    *("Flip", "Roll", "Cumsum", "MaskedFill", "Where", "Rsub", "Tril", "Triu", "Diagonal", "AccumulateGrad"),
    *("Unbind", "ConstantPadNd", "AsStrided", "Scatter", "ScatterAdd", "IndexAdd", "Repeat", "CopySlices", "Cumprod"),
}


def candidate(case: Case) -> Diagnosis | None:
    """A term that the caller suspects."""
    for key, value in case.evidence.candidates.items():
        if value.shape == case.wanted.shape and (found := _by_term(case, _plain(value), key, fitted=True)):
            return found
    return None


def _by_term(case: Case, term: Tensor, words: str, *, fitted: bool) -> Diagnosis | None:
    for c, text in ((1, "is missing"), (2, "has the wrong sign"), (-1, "is counted twice")):
        if case.is_(case.wanted - c * term):
            return Diagnosis("term", f"a term {text}: {words}")
    size = term.pow(2).sum()
    if fitted and size > 0:
        c = float((term * case.error).sum() / size)
        if case.is_(case.wanted + c * term, free=2):
            return Diagnosis("term", f"a term is {1 + c:.6g} times its right value: {words}")
    return None


def path_missing(case: Case) -> Diagnosis | None:
    """A path of autograd's graph is missing, has the wrong sign, or is counted twice."""
    for term in case.terms:
        if found := _by_term(case, term.gradient, f"the path through {term.words}", fitted=False):
            return found
    return None


def path_wrong(case: Case) -> Diagnosis | None:
    """Two paths are missing, all but one, or one has another factor."""
    for term in case.terms:
        if case.is_(term.gradient):
            return Diagnosis("term", f"terms are missing: there is only the path through {term.words}")
    for one, other in combinations(case.terms[:60], 2):
        if case.is_(case.wanted - one.gradient - other.gradient):
            return Diagnosis("term", f"two terms are missing: the paths through {one.words} and {other.words}")
    for term in case.terms:
        if found := _by_term(case, term.gradient, f"the path through {term.words}", fitted=True):
            return found
    return None


def diagonal(case: Case) -> Diagnosis | None:
    """Only the Jacobian's diagonal: each element's own effect on its own output."""
    graph = case.graph
    if graph is None or len(graph.outputs) != 1 or graph.outputs[0].shape != case.wanted.shape:
        return None
    dy, n = graph.cotangents[0].flatten(), case.wanted.numel()
    if n > DIAGONAL:
        return None
    result = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        unit = torch.zeros_like(dy)
        unit[i] = dy[i]
        result[i] = graph.gradient(cotangents=[unit.view_as(graph.cotangents[0])]).flatten()[i]
    if case.is_(result.view_as(case.wanted)):
        return Diagnosis("term", "the terms off the Jacobian's diagonal are missing")
    return None


def cotangent_unchanged(case: Case) -> Diagnosis | None:
    for dy in case.evidence.cotangents:
        if case.is_(_plain(dy)):
            return Diagnosis("derivative forgotten", "it is the cotangent, unchanged")
        if case.given.ndim < dy.ndim and case.is_(_plain(dy).sum_to_size(case.given.shape)):
            return Diagnosis(
                "missing factor", f"it is the sum of the cotangent: what {case.argument} multiplies is missing"
            )
    return None


def transposed_factor(case: Case) -> Diagnosis | None:
    """A square matrix that backward multiplies by, or the cotangent, was transposed."""
    for key, value in case.evidence.arguments.items():
        if isinstance(value, Tensor) and key != case.argument and value.is_floating_point() and _is_square(value):
            with suppress(Exception):
                if case.is_(case.again(**{key: value.mT.contiguous()})):
                    return Diagnosis(
                        "transposed", f"{key} was transposed where it should not be, or the other way round"
                    )
    graph = case.graph
    for edge in graph.edges if graph is not None else ():
        if kind(edge[0]) in PRODUCTS and graph is not None:
            for words, change in _turned(graph, *edge):
                with suppress(RuntimeError):
                    if case.is_(graph.gradient({edge: change})):
                        return Diagnosis(
                            "transposed", f"{words} has to be transposed in the gradient of the matrix product"
                        )
    return None


# the positions of the two matrices, and the attributes that hold them
PRODUCTS = {
    "Mm": (0, "_saved_self", "_saved_mat2"),
    "Bmm": (0, "_saved_self", "_saved_mat2"),
    "Addmm": (1, "_saved_mat1", "_saved_mat2"),
}


def _turned(graph: Graph, node: Any, position: int) -> Iterator[tuple[str, Change]]:
    """The gradient of one matrix of a product where the other, or the cotangent, is transposed and should not be."""
    first, left, right = PRODUCTS[kind(node)]
    if position == first:
        other = getattr(node, right)
        yield graph.partner(node, position) or "the other matrix", lambda _, dy: dy @ other
        yield "the cotangent", lambda _, dy: dy.mT @ other.mT
    elif position == first + 1:
        other = getattr(node, left)
        yield graph.partner(node, position) or "the other matrix", lambda _, dy: other @ dy
        yield "the cotangent", lambda _, dy: other.mT @ dy.mT


def weight_decay(case: Case) -> Diagnosis | None:
    argument = case.tensors.get(case.argument)
    if argument is None or argument.norm() == 0:
        return None
    c = float((argument * case.error).sum() / argument.pow(2).sum())
    if case.is_(case.wanted + c * argument, free=2):
        return Diagnosis("weight decay", f"{c:.6g} times {case.argument} itself was added")
    return None


# The same shape: where it is wrong


def repeated_indices(case: Case) -> Diagnosis | None:
    """Wrong only in elements that an index names more than once."""
    right_used = ~case.wrong & (case.wanted != 0)
    for key, ids in case.evidence.arguments.items():
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            continue
        ids = ids.detach().cpu()
        for dim, size in enumerate(case.wanted.shape):
            if not ids.numel() or int(ids.min()) < -size or int(ids.max()) >= size:
                continue
            values, counts = (ids.flatten() % size).unique(return_counts=True)
            often = torch.zeros(size, dtype=torch.bool)
            often[values[counts > 1]] = True
            once = torch.zeros(size, dtype=torch.bool)
            once[values[counts == 1]] = True
            line = [1] * case.wanted.ndim
            line[dim] = size
            if (case.wrong & ~often.view(line)).any() or not (right_used & once.view(line)).any():
                continue
            which = case.wrong.any(dim=tuple(d for d in range(case.wanted.ndim) if d != dim)).nonzero().flatten()
            listed = ", ".join(str(int(i)) for i in which[:5]) + (", …" if len(which) > 5 else "")
            return Diagnosis(
                "repeated indices",
                f"wrong only where {key} holds an index more than once: at {listed} of dimension {dim}",
            )
        if ids.ndim == case.wanted.ndim:
            for dim in range(ids.ndim):
                with suppress(RuntimeError):
                    uses = torch.zeros(case.wanted.shape, dtype=torch.int64).scatter_add_(
                        dim, ids, torch.ones_like(ids)
                    )
                    if not (case.wrong & (uses <= 1)).any() and (right_used & (uses == 1)).any():
                        return Diagnosis("repeated indices", f"wrong only where {key} holds an index more than once")
    return None


def constant_error(case: Case) -> Diagnosis | None:
    """The error is the same along some dimensions: a mean or a sum is missing or wrong."""
    for dims in _subsets(case.error.ndim):
        size = prod(case.error.shape[d] for d in dims)
        mean = case.error.mean(dims, keepdim=True).expand_as(case.error)
        if size >= 3 and case.is_(case.wanted + mean, free=case.error.numel() // size):
            where = "everywhere" if len(dims) == case.error.ndim else f"along {_dims(dims)}"
            return Diagnosis("term", f"the error is the same {where}: a term with a sum or mean is missing or wrong")
    return None


def proportional_error(case: Case) -> Diagnosis | None:
    """The error is, row by row, proportional to something known."""
    known = dict(case.tensors)
    for i, dy in enumerate(case.evidence.cotangents):
        known[_numbered("the cotangent", i, len(case.evidence.cotangents))] = _plain(dy)
    for key, value in (*case.evidence.candidates.items(), *known.items()):
        if value.shape != case.error.shape:
            continue
        value = _plain(value)
        for dims in (tuple(range(value.ndim)), *((d,) for d in range(value.ndim) if value.ndim > 1)):
            size = prod(value.shape[d] for d in dims)
            square = value.pow(2).sum(dims, keepdim=True)
            c = (value * case.error).sum(dims, keepdim=True) / square.where(square > 0, 1.0)
            if size >= 3 and case.is_(case.wanted + c * value, free=value.numel() // size + 1):
                each = "" if len(dims) == value.ndim else f" along {_dims(dims)}"
                return Diagnosis("term", f"the error is proportional to {key}{each}: a term is missing or wrong")
    return None


def examples_left_out(case: Case) -> Diagnosis | None:
    """As if some rows of the cotangent were not there."""
    graph = case.graph
    if graph is None:
        return None
    for dim in range(graph.cotangents[0].ndim):
        size = graph.cotangents[0].shape[dim]
        if size < 2 or size > case.passes or any(dy.ndim <= dim or dy.shape[dim] != size for dy in graph.cotangents):
            continue
        parts = []
        for k in range(size):
            dys = [torch.zeros_like(dy) for dy in graph.cotangents]
            for dy, full in zip(dys, graph.cotangents, strict=True):
                dy.select(dim, k).copy_(full.select(dim, k))
            parts.append(graph.gradient(cotangents=dys))
        upto = torch.stack([torch.zeros_like(case.wanted), *parts]).cumsum(0)
        for words, start, stop in _parts_lost(size):
            if case.is_(case.wanted - (upto[stop] - upto[start])):
                return Diagnosis("rows", f"{words} of dimension {dim} of the cotangent left out")
    return None


def _parts_lost(size: int) -> Iterator[tuple[str, int, int]]:
    """One row, those from one on, those up to one."""
    for k in range(size):
        yield f"row {k}", k, k + 1
    for k in range(1, size - 1):
        yield f"all from row {k} on", k, size
        yield f"all up to row {k}", 0, k + 1


def rows(case: Case) -> Diagnosis | None:
    """Right up to a row, wrong from there on; or the other way round; or one row alone."""
    known = case.wrong | (case.wanted != 0) | (case.given != 0)
    for dim, size in enumerate(case.wanted.shape):
        others = tuple(d for d in range(case.wanted.ndim) if d != dim)
        wrong = case.wrong.any(others) if others else case.wrong
        informative = known.any(others) if others else known
        bad, good = wrong.nonzero().flatten().tolist(), (informative & ~wrong).nonzero().flatten().tolist()
        if size < 3 or not bad or not good or case.wrong.sum() < 0.5 * known.index_select(dim, torch.tensor(bad)).sum():
            continue
        if _permuted(case, dim, bad):
            return None
        names = [_line(dim, k, case.wanted.ndim) for k in range(size)]
        if len(bad) == 1:
            return Diagnosis("rows", f"only {names[bad[0]]} is wrong")
        if good[-1] < bad[0] and size > 3:
            return Diagnosis("rows", f"right up to {names[bad[0] - 1]}, wrong from {names[bad[0]]} on")
        if good[0] > bad[-1] and size > 3:
            return Diagnosis("rows", f"wrong up to {names[bad[-1]]}, right from {names[bad[-1] + 1]} on")
    return None


def _line(dim: int, k: int, ndim: int) -> str:
    if ndim > 2:
        return f"index {k} of dimension {dim}"
    return f"{('row', 'column')[dim] if ndim == 2 else 'element'} {k}"


def _permuted(case: Case, dim: int, bad: Sequence[int]) -> bool:
    """Whether the wrong rows are right ones in another order."""
    given, wanted = (
        t.index_select(dim, torch.tensor(bad)).movedim(dim, 0).flatten(1) for t in (case.given, case.wanted)
    )
    if len(bad) < 2 or len(bad) > 500:
        return False
    near = torch.cdist(given, wanted, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    return bool((near <= 10 * case.evidence.noise * wanted.norm()).all())


OTHER_SHAPE: tuple[Pattern, ...] = (swapped, transposed_shape, wrong_axis, shape)
SAME_SHAPE: tuple[Pattern, ...] = (
    nan,
    zero,
    sign,
    ones,
    factor,
    swapped,
    transposed,
    output_ignored,
    mask_ignored,
    missing_factor,
    candidate,
    path_missing,
    local_derivative,
    wrong_axis,
    wrong_axis_inside,
    path_wrong,
    diagonal,
    cotangent_unchanged,
    transposed_factor,
    repeated_indices,
    weight_decay,
    constant_error,
    proportional_error,
    examples_left_out,
    rows,
)


# Words and numbers


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU in float64, safe to compute with under any grad mode."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def _distance(a: Tensor, b: Tensor) -> float:
    return (a - b).norm().item()


def _is_mask(tensor: Tensor) -> bool:
    """Whether there are zeros and one other value in it, each more than never."""
    if not tensor.is_floating_point() or tensor.numel() < 3:
        return False
    other = tensor[tensor != 0]
    return 0 < other.numel() < tensor.numel() and bool((other == other[0]).all())


def _is_square(tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2]


def _reduced_dims(full: Tensor, like: Tensor) -> tuple[int, ...]:
    """The dimensions that broadcasting `like` to `full` added or stretched."""
    lead = full.ndim - like.ndim
    return tuple(d for d in range(full.ndim) if d < lead or like.shape[d - lead] != full.shape[d])


def _numbered(what: str, i: int, n: int) -> str:
    return what if n == 1 else f"{what} {i}"


def _dims(dims: Sequence[int]) -> str:
    return ("dimension " if len(dims) == 1 else "dimensions ") + "·".join(map(str, dims))


def _order(order: Sequence[int]) -> str:
    return "" if len(order) == 2 else f" (its dimensions in the order {', '.join(map(str, order))})"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _fraction(c: float) -> str:
    fraction = Fraction(c).limit_denominator(12)
    return {Fraction(1, 2): "½", Fraction(1, 3): "⅓", Fraction(1, 4): "¼"}.get(fraction, str(fraction))
