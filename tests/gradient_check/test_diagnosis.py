"""What is unknown is called unknown; what the gallery holds is named in every precision, and no pattern says too much.

A gradient is spoilt in one way, and the diagnosis is asked with all that is known beside it, or without a forward.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor

from gallery import ENTRIES, Wrong
from gallery.affine import LINEAR, SQUARE
from gallery.attention import ATTENTION, EMBEDDING
from gallery.diagnosed import ACTIVATED, GAIN, NOISE
from gallery.diagnosed_terms import LSTMS, TORCH_LAYER_NORM
from gallery.elementwise import CUMSUM, TANH
from gallery.entry import Layer, Pair
from gallery.naive import by_autograd, by_hand, differentiable, outputs_of, random_cotangents
from gallery.recurrent import RNN
from gradient_check.diagnosis import SAME_SHAPE, Evidence, diagnose
from gradient_check.patterns.case import Case, plain
from gradient_check.report import Diagnosis
from tests.support.checking import draw

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def converted(values: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    return [v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def asked(
    layer: Layer, pair: Pair, arguments: Sequence[Any], dtype: torch.dtype, *, blind: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor], Evidence]:
    """What the pair's backward returned, what is right, and what is known; `blind`: no forward to run again."""
    right, names = (layer.forward, layer.backward), list(signature(layer.forward).parameters)
    fed = converted(arguments, dtype)
    outputs = outputs_of(right, layer, fed)
    cotangents = random_cotangents(outputs)
    expected = by_autograd(right, layer, converted(fed, torch.float64), converted(cotangents, torch.float64))
    actual = by_hand(pair, layer, fed, [dy.clone() for dy in cotangents])
    gradients = [f"d{names[i]}" for i in differentiable(layer, fed)]
    forward = None if blind else lambda *arguments: layer.forward(*arguments)[: layer.outputs]
    known = Evidence(dict(zip(names, fed, strict=True)), outputs, cotangents, forward, noise=ROUNDING[dtype])
    return dict(zip(gradients, actual, strict=True)), dict(zip(gradients, expected, strict=True)), known


def first_said(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], known: Evidence) -> Diagnosis | None:
    """The diagnosis of the first gradient that is wrong."""
    for name, right in expected.items():
        given = actual[name]
        if given.shape != right.shape or not (given - right).norm() <= known.noise * right.norm():
            return diagnose(name, actual, expected, known)
    raise AssertionError("nothing is wrong")


# What the gallery holds

# Not seen in the values of one run on the example, but by what the check feeds and compares beside it.
BY_THE_CHECK = {"missing", "raised", "dtype", "not linear", "stale", "strided", "in place", "kink", "nan"}
BEYOND = {
    "batch of one squeezed": "only a batch of one shows it",
    "remainder of the batch lost": "only a batch that four does not divide shows it",
    "batch norm: means per image": "the diagnosis does not know it",
    "layer norm: means over the batch": "the diagnosis does not know it",
    "weight decay on biases": "three numbers of single precision may be an accident",
}
NAMED = {
    entry.name: entry
    for entry in ENTRIES
    if isinstance(entry, Wrong) and entry.diagnosis and not BY_THE_CHECK.intersection(entry.diagnosis)
    if entry.name not in BEYOND
}
# Where a pattern is one of several that the values alone allow, the weaker name is true, too.
WEAKER = {"term": {"rows", "derivative forgotten"}, "wrong axis": {"shape", "term"}}


def said_of(entry: Wrong, seed: int, dtype: torch.dtype, *, blind: bool = False) -> Diagnosis | None:
    return first_said(*asked(entry.layer, entry.pair(False), entry.layer.arguments(seed), dtype, blind=blind))


@pytest.mark.sweep(4)
@dtypes
@pytest.mark.parametrize("name", NAMED)
def test_names_the_mistake(name: str, dtype: torch.dtype) -> None:
    found = said_of(NAMED[name], 1 if dtype == torch.float64 else 2, dtype)
    assert found is not None, "unknown"
    assert found.kind in NAMED[name].diagnosis, found


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", NAMED)
def test_without_a_forward_it_says_less_but_nothing_wrong(name: str) -> None:
    found = said_of(NAMED[name], 0, torch.float64, blind=True)
    allowed = set(NAMED[name].diagnosis).union(*(WEAKER.get(known, set()) for known in NAMED[name].diagnosis))
    assert found is None or found.kind in allowed, found


@pytest.mark.parametrize(
    "name",
    [
        "weight: sign",
        "weight: divided by the batch again",
        "squared error: ½",
        "dx: zeros",
        "dW transposed",
        "cotangent ignored",
    ],
)
def test_names_simple_mistakes_in_bfloat16(name: str) -> None:
    found = said_of(NAMED[name], 0, torch.bfloat16)
    assert found is not None
    assert found.kind in NAMED[name].diagnosis


# What is spoilt here


@dataclass(frozen=True)
class Spoilt:
    """A layer whose backward is right but for one gradient."""

    layer: Layer
    name: str
    wrong: Callable[..., Tensor]  # (dy, right gradient, arguments by name) → the wrong gradient
    kind: str | None = None
    words: str = ""
    example: Sequence[Any] | None = None

    def ask(
        self, seed: int, dtype: torch.dtype, *, blind: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Evidence]:
        layer, arguments = self.layer, self.example or self.layer.arguments(seed)
        right, expected, known = asked(layer, (layer.forward, layer.backward), arguments, dtype, blind=blind)
        wrong = self.wrong(known.cotangents[0], right[self.name], **known.arguments)
        return {**right, self.name: wrong}, expected, known

    def said(self, seed: int, dtype: torch.dtype, *, blind: bool = False) -> Diagnosis | None:
        return diagnose(self.name, *self.ask(seed, dtype, blind=blind))


def times(factor: float) -> Callable[..., Tensor]:
    return lambda dy, right, **_: factor * right


def replaced(dy: Tensor, right: Tensor, **_: Any) -> Tensor:
    return draw(*right.shape, seed=5).to(right.dtype)


def set_rows(rows: Any, *, dim: int = 0) -> Callable[..., Tensor]:
    """Garbage in some rows."""

    def wrong(dy: Tensor, right: Tensor, **_: Any) -> Tensor:
        result = right.clone().movedim(dim, 0)
        result[rows] = replaced(dy, right).movedim(dim, 0)[rows]
        return result.movedim(0, dim)

    return wrong


def gates_reordered(dy: Tensor, right: Tensor, **_: Any) -> Tensor:
    i, f, g, o = right.chunk(4)
    return torch.cat([i, f, o, g])


def slope_twice(dy: Tensor, right: Tensor, x: Tensor, W: Tensor, V: Tensor) -> Tensor:
    a = torch.tanh(x @ W.T)
    y = torch.sigmoid(a @ V.T)
    return (dy * y * (1 - y) @ V * (1 - a * a) ** 2).T @ x


def last_of_each_id(dy: Tensor, right: Tensor, ids: Tensor, W: Tensor) -> Tensor:
    """And noise for the id 4, which is not used."""
    result = torch.zeros_like(W)
    for row, i in zip(dy.flatten(0, -2), ids.flatten(), strict=True):
        result[i] = row
    return result + (torch.arange(len(W)) == 4)[:, None] * replaced(dy, right)


TOLD = {
    "any constant": Spoilt(LINEAR, "dW", times(0.3717), "factor", "0.3717"),
    "half": Spoilt(LINEAR, "dx", times(0.5), "factor", "½"),
    "half of one element": Spoilt(GAIN, "da", times(0.5), "factor", "½"),
    "half in a batch of two": Spoilt(
        LINEAR, "dW", times(0.5), "factor", "½", [draw(2, 5), draw(4, 5, seed=1), draw(4, seed=2)]
    ),
    "not finite": Spoilt(
        LINEAR,
        "dx",
        lambda dy, right, **_: right.where(torch.arange(5) < 2, torch.nan),
        "nan",
        "21 of 35 elements are not finite, the first is NaN at [0, 2]",
    ),
    "from row 3": Spoilt(LINEAR, "dx", set_rows(slice(3, None)), "rows", "right up to row 2, wrong from row 3 on"),
    "up to row 3": Spoilt(LINEAR, "dx", set_rows(slice(0, 4)), "rows", "wrong up to row 3, right from row 4 on"),
    "one row": Spoilt(LINEAR, "dx", set_rows(slice(2, 3)), "rows", "only row 2 is wrong"),
    "one column": Spoilt(LINEAR, "dW", set_rows(slice(1, 2), dim=1), "rows", "only column 1 is wrong"),
    "strange shape": Spoilt(LINEAR, "db", lambda dy, right, **_: dy[:2, :2], "shape", "(2, 2), not (3,)"),
}
UNKNOWN = {
    "noise": Spoilt(LINEAR, "dW", replaced),
    "noise on top": Spoilt(ACTIVATED, "dW", lambda dy, right, **_: right + 0.01 * replaced(dy, right)),
    "noise in a vector": Spoilt(SQUARE, "db", replaced),
    "noise in two elements": Spoilt(
        LINEAR, "db", replaced, None, "", [draw(7, 5), draw(2, 5, seed=1), draw(2, seed=2)]
    ),
    "noise in one element": Spoilt(GAIN, "da", replaced),
    "noise with a mask": Spoilt(NOISE, "dx", replaced),
    "noise in a recurrent cell": Spoilt(RNN, "dWh", replaced),
    "noise in attention": Spoilt(ATTENTION, "dk", replaced),
    "noise in an embedding": Spoilt(EMBEDDING, "dW", replaced),
    "noise in LayerNorm": Spoilt(TORCH_LAYER_NORM, "dx", replaced),
    "gates in another order": Spoilt(LSTMS, "dWx", gates_reordered),
    "slope twice": Spoilt(ACTIVATED, "dW", slope_twice),
    "slope of another function": Spoilt(TANH, "dz", lambda dy, right, z: dy * z.sigmoid() * (1 - z.sigmoid())),
    "nearly half": Spoilt(LINEAR, "dW", lambda dy, right, x, W, b: right * 0.5 + 0.01 * W.flip(0)),
    "nearly the transposed": Spoilt(SQUARE, "dW", lambda dy, right, x, W, b: right.T + 0.01 * W.flip(0)),
    "nearly zero": Spoilt(LINEAR, "dW", lambda dy, right, **_: 0.01 * replaced(dy, right)),
    "nearly ones": Spoilt(LINEAR, "dW", lambda dy, right, x, W, b: (1 + 0.01 * dy).T @ x),
    "flipped": Spoilt(CUMSUM, "dx", lambda dy, right, x: dy.cumsum(1)),
    "rows with a gap": Spoilt(EMBEDDING, "dW", set_rows([2, 4]), None, "", [torch.tensor([0, 1, 2, 4]), draw(8, 4)]),
    "scattered rows": Spoilt(LINEAR, "dx", set_rows([1, 4])),
    "repeated ids and another": Spoilt(EMBEDDING, "dW", last_of_each_id),
}


@dtypes
@pytest.mark.parametrize("name", TOLD)
def test_says_what_the_values_show(name: str, dtype: torch.dtype) -> None:
    for blind in (False, True):
        found = TOLD[name].said(1, dtype, blind=blind)
        assert found is not None, "unknown"
        assert found.kind == TOLD[name].kind, found
        assert TOLD[name].words in found.text


@pytest.mark.sweep(4)
@dtypes
@pytest.mark.parametrize("name", UNKNOWN)
def test_does_not_name_what_it_does_not_know(name: str, dtype: torch.dtype) -> None:
    assert UNKNOWN[name].said(0, dtype) is None
    assert UNKNOWN[name].said(1, dtype, blind=True) is None


@pytest.mark.parametrize("name", UNKNOWN)
def test_no_pattern_raises(name: str) -> None:
    """`diagnose` would hide it. What nobody knows goes through all of them."""
    spoilt = UNKNOWN[name]
    actual, expected, known = spoilt.ask(0, torch.float64)
    case = Case(spoilt.name, plain(actual[spoilt.name]), plain(expected[spoilt.name]), actual, expected, known)
    assert not [found for pattern in SAME_SHAPE if (found := pattern(case))]


@pytest.mark.parametrize("name", [*TOLD, *UNKNOWN])
def test_a_right_gradient_has_no_diagnosis(name: str) -> None:
    spoilt = (TOLD | UNKNOWN)[name]
    actual, expected, known = spoilt.ask(0, torch.float64)
    assert diagnose(spoilt.name, {**actual, spoilt.name: expected[spoilt.name]}, expected, known) is None
