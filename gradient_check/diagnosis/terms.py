"""The terms of a gradient, from autograd's own graph.

A gradient is a sum over the paths from the outputs to an argument. An edge of the graph is one node's one input; a
backward pass with that edge cut lacks the paths through it, and

    term(edge) = gradient − gradient with the edge cut

is what a backward pass that forgot them lacks. In place of nothing an edge may also carry another wrong gradient,
such as the node's cotangent unchanged (its derivative forgotten).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import Node, get_gradient_edge

Edge = tuple[Node, int]
Change = Callable[[Tensor, Tensor], Tensor]  # (gradient of the node's input, of its output) → another one for the input

WALK = 20_000  # nodes up to which a graph is looked at
DEPTHS = 4  # how far down two edges are compared to call them alike


@dataclass(frozen=True)
class Term:
    """What goes through some edges: `words` says through which, for a person."""

    words: str
    gradient: Tensor


class Graph:
    """The graph between the outputs of forward(*arguments) and one argument.

    Every floating-point argument is a leaf, so that a node can be told by the arguments that it works on.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        arguments: Mapping[str, Any],
        cotangents: Sequence[Tensor],
        argument: str,
        double: bool = True,
        apart: bool = True,
    ) -> None:
        fed = {key: _fed(value, double) for key, value in arguments.items()}
        with torch.enable_grad(), functions_taken_apart() if apart else nullcontext():
            result = forward(*fed.values())
        outputs = result[: len(cotangents)] if isinstance(result, tuple | list) else (result,)
        self.numbers = [i for i, y in enumerate(outputs) if y.requires_grad]  # of the outputs that matter
        self.outputs = tuple(outputs[i] for i in self.numbers)
        self.cotangents = tuple(cotangents[i].detach().clone().to(outputs[i].dtype) for i in self.numbers)
        self.forward, self.argument, self.taken = forward, argument, (double, apart)
        self.leaf = fed[argument]
        wanted = {key: v for key, v in fed.items() if isinstance(v, Tensor) and v.requires_grad}
        self.leaves: dict[Node | None, str] = {get_gradient_edge(v).node: key for key, v in wanted.items()}
        self.nodes, self.edges = self._walk()
        self.work = 1 + len(self.nodes) * max(t.numel() for t in (*self.outputs, *wanted.values()))  # of a pass, about
        self.value = self.gradient()

    def gradient(
        self, changes: Mapping[Edge, Change] | None = None, cotangents: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The gradient on the CPU in float64, with the gradients of some edges changed."""
        handles = [node.register_hook(_hook(position, change)) for (node, position), change in (changes or {}).items()]
        try:
            dys = self.cotangents if cotangents is None else cotangents
            (result,) = torch.autograd.grad(self.outputs, self.leaf, dys, retain_graph=True, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        return (torch.zeros_like(self.leaf) if result is None else result).detach().double().cpu()

    def _walk(self) -> tuple[list[Node], list[Edge]]:
        """The nodes and edges that carry gradient to the leaf, consumers first."""
        users: dict[Node | None, list[Node]] = {y.grad_fn: [] for y in self.outputs}
        queue: list[Any] = list(users)
        for node in queue:
            for target in (target for target, _ in node.next_functions if target is not None):
                if target not in users:
                    queue.append(target)
                users.setdefault(target, []).append(node)
            if len(queue) > WALK:
                raise ValueError("the graph is too large to look at")
        end = get_gradient_edge(self.leaf).node
        pending, reaching = [end], {end}
        for node in pending:
            new = set(users.get(node, ())) - reaching
            pending += new
            reaching |= new
        nodes = [node for node in queue if node in reaching and node is not end]
        edges = [(n, i) for n in nodes for i, (target, _) in enumerate(n.next_functions) if target in reaching]
        return nodes, edges

    def groups(self, edges: Sequence[Edge], passes: int) -> list[tuple[Edge, ...]]:
        """Edges one by one, and all that look alike at once, such as the same step at every time; `passes` at most.

        Where there are too many, those that are alike come first.
        """
        alike: list[tuple[Edge, ...]] = []
        alone: list[tuple[Edge, ...]] = [(edge,) for edge in edges]
        for depth in range(DEPTHS):
            by_looks: dict[Any, list[Edge]] = {}
            for node, position in edges:
                by_looks.setdefault((self._looks(node, depth), position), []).append((node, position))
            alike += [tuple(group) for group in by_looks.values()]
        return list(dict.fromkeys(alone + alike if len(alone) <= passes else alike + alone))[:passes]

    def _looks(self, node: Node | None, depth: int) -> Any:
        """What a node is and works on, `depth` nodes down: equal for the same step at different times."""
        if node is None or node in self.leaves or depth == 0:
            return self.leaves.get(node, "" if node is None else node.name())
        return node.name(), tuple((self._looks(below, depth - 1), i) for below, i in node.next_functions)

    def leaf_below(self, node: Node, position: int) -> str:
        """The argument that enters at an edge, if but for views it comes straight from there; else nothing."""
        target = node.next_functions[position][0]
        while target is not None and target not in self.leaves and kind(target) in VIEWS:
            target = target.next_functions[0][0]
        return self.leaves.get(target, "")

    def terms(self, passes: int) -> list[Term]:
        """What is missing with each edge, or all like edges, cut: the distinct ones, with the most telling words."""
        found: list[tuple[int, Term]] = []
        scale = self.value.norm()
        for edges in self.groups(self.edges, passes):
            gradient = self.value - self.gradient(dict.fromkeys(edges, _nothing))
            size = gradient.norm()
            if not 1e-12 * scale < size or (self.value - gradient).norm() <= 1e-12 * scale:
                continue  # nothing, or everything, goes through here
            rank, words = self._words(edges)
            same = (i for i, (_, term) in enumerate(found) if (term.gradient - gradient).norm() <= 1e-12 * size)
            at = next(same, len(found))
            if at == len(found) or rank > found[at][0]:
                found[at : at + 1] = [(rank, Term(words, gradient))]
        return [term for _, term in found]

    def _words(self, edges: Sequence[Edge]) -> tuple[int, str]:
        """How telling, and the words for, what is cut."""
        node, position = edges[0]
        below, partner = node.next_functions[position][0], self.partner(node, position)
        partner = partner if all(self.partner(*edge) == partner for edge in edges) else ""
        above = NAMES.get(kind(node), (0, kind(node)))[1] + (f" with {partner}" if partner else "")
        rank, words = NAMES.get(kind(below), (1, kind(below)))
        if len({kind(n.next_functions[i][0]) for n, i in edges}) > 1:  # they have only what is above in common
            rank, words = NAMES.get(kind(node), (1, ""))[0], above
        elif below in self.leaves or kind(below) in VIEWS:
            rank, words = 5, f"{self.argument} in {above}"
        elif partner and rank < 5:
            rank, words = 5, above
        return rank, words + (f", in {len(edges)} places" if len(edges) > 1 else "")

    def partner(self, node: Node, position: int) -> str:
        """The arguments that a node combines an input with."""
        others = (self.leaf_below(node, i) for i in range(len(node.next_functions)) if i != position)
        return " and ".join(sorted({name for name in others if name}))


def kind(node: Node | None) -> str:
    """`Mul` for MulBackward0."""
    name = "" if node is None else node.name()
    return name.rstrip("0123456789").removesuffix("Backward").removeprefix("torch::autograd::")


VIEWS = {
    *("T", "Transpose", "Permute", "View", "UnsafeView", "Reshape", "ReshapeAlias", "Unsqueeze", "Squeeze", "Expand"),
    *("Clone", "Alias", "ToCopy", "Contiguous", "Copy", "ViewCopy"),
}

# how telling a node's name is, and the words for it
NAMES = {
    "Var": (6, "the variance"), "VarMean": (6, "the variance"), "Std": (6, "the standard deviation"),
    "LinalgVectorNorm": (6, "the norm"), "Norm": (6, "the norm"), "Mean": (6, "the mean"), "Sum": (6, "the sum"),
    "Logsumexp": (6, "the log-sum-exp"), "Amax": (6, "the maximum"), "Max": (6, "the maximum"),
    "Rsqrt": (5, "1/√"), "Sqrt": (5, "the square root"), "Pow": (4, "the power"), "Exp": (4, "the exponential"),
    "Log": (4, "the logarithm"), "Tanh": (4, "tanh"), "Sigmoid": (4, "the sigmoid"), "Relu": (4, "relu"),
    "Softmax": (4, "the softmax"), "Embedding": (4, "the embedding"), "Convolution": (4, "the convolution"),
    "Mm": (3, "the matrix product"), "Addmm": (3, "the matrix product"), "Bmm": (3, "the matrix product"),
    "Mv": (3, "the matrix product"), "Div": (2, "a division"), "Mul": (2, "a product"),
    "Cat": (1, "a concatenation"), "Stack": (1, "a stack"), "Sub": (1, "a difference"), "Add": (1, "a sum"),
}  # fmt: skip


def _fed(value: Any, double: bool) -> Any:
    """An argument for a run of our own: nothing is shared with the caller's."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().clone()
    return (value.double() if double else value).requires_grad_() if value.is_floating_point() else value


def _nothing(d_input: Tensor, d_output: Tensor) -> Tensor:
    return torch.zeros_like(d_input)


def _hook(position: int, change: Change) -> Callable[[Any, Any], tuple[Any, ...]]:
    def hook(d_inputs: Any, d_outputs: Any) -> tuple[Any, ...]:
        known = d_inputs[position] is not None
        return tuple(change(d, d_outputs[0]) if known and i == position else d for i, d in enumerate(d_inputs))

    return hook


@contextmanager
def functions_taken_apart() -> Iterator[None]:
    """Inside of it only the forward of a custom Function is run, which autograd goes through."""
    apply = vars(Function)["apply"]
    Function.apply = classmethod(_forward_alone)
    try:
        yield
    finally:
        Function.apply = apply


class _Context:
    """Takes what a forward keeps for its backward, and forgets it."""

    def __init__(self, wanted: int) -> None:
        self.needs_input_grad = (True,) * wanted

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None  # save_for_backward, mark_dirty, …


def _forward_alone(cls: Any, *args: Any) -> Any:
    own_context = cls.setup_context is Function.setup_context
    return cls.forward(_Context(len(args)), *args) if own_context else cls.forward(*args)
