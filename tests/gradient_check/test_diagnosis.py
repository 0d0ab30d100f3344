"""What is unknown is called unknown; what the gallery holds is named in every precision, and no pattern says too much.

A gradient is spoilt in one way, and the diagnosis is asked with all that is known beside it, or without a forward.
"""

from dataclasses import dataclass, replace
from inspect import signature

import pytest
import torch

from gallery import ENTRIES, Wrong
from gallery.affine import LINEAR, SQUARE
from gallery.attention import ATTENTION, EMBEDDING
from gallery.diagnosed import ACTIVATED, GAIN, NOISE
from gallery.diagnosed_terms import TORCH_LAYER_NORM
from gallery.entry import Layer, normal
from gallery.naive import by_autograd, by_hand, differentiable, outputs_of, random_cotangents
from gallery.recurrent import RNN
from gradient_check.diagnosis import SAME_SHAPE, Evidence, diagnose, diagnosed
from gradient_check.diagnosis.fault import Fault, as_double
from gradient_check.report import Row
from tests.support.checking import MISTAKES, draw

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
dtypes = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


def converted(values, dtype):
    return [v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for v in values]


def asked(layer, pair, seed, dtype, blind, name=""):
    """What `diagnose` is asked about the first wrong gradient (unless named) of a pair; `blind`: without a forward."""
    right, names = (layer.forward, layer.backward), list(signature(layer.forward).parameters)
    fed = converted(layer.arguments(seed), dtype)
    outputs = outputs_of(right, layer, fed)
    cotangents = random_cotangents(outputs)
    expected = by_autograd(right, layer, converted(fed, torch.float64), converted(cotangents, torch.float64))
    actual = by_hand(pair, layer, fed, [dy.clone() for dy in cotangents])
    forward = None if blind else lambda *arguments: layer.forward(*arguments)[: layer.outputs]
    known = Evidence(dict(zip(names, fed, strict=False)), outputs, cotangents, forward, noise=ROUNDING[dtype])
    pairs = {f"d{names[i]}": p for i, *p in zip(differentiable(layer, fed), actual, expected, strict=True)}
    wrong = (n for n, (a, e) in pairs.items() if a.shape != e.shape or not (a - e).norm() <= known.noise * e.norm())
    return name or next(wrong), {n: a for n, (a, _) in pairs.items()}, {n: e for n, (_, e) in pairs.items()}, known


def about(entry, seed, dtype, blind=False):
    return asked(entry.layer, entry.pair(False), seed, dtype, blind)


def measured(name, actual, correct, known):
    """What is said where the correct gradient is known to 1e-8, and 15% of its elements are not."""
    generator = torch.Generator().manual_seed(3)
    near = {n: e + 1e-8 * torch.rand(e.shape, generator=generator, dtype=torch.float64) for n, e in correct.items()}
    doubt = {n: torch.where(torch.rand(e.shape, generator=generator) < 0.15, torch.inf, 1e-8) for n, e in near.items()}
    near = {n: e.where(doubt[n] < 1, 7.0) for n, e in near.items()}
    return diagnosed(Row(name, name, (), False), actual, near, known, doubt).diagnosis


# Not seen in the values of one run on the example, but by what the check feeds and compares beside it.
BY_THE_CHECK = {"missing", "raised", "dtype", "not linear", "stale", "strided", "in place", "kink", "nan", "conjugate"}
BEYOND = {
    "squared modulus: Wirtinger's half": "the check gives complex numbers as real ones",
    "batch of one squeezed": "only a batch of one shows it",
    "remainder of the batch lost": "only a batch that four does not divide shows it",
    "pointwise convolution: dW squeezed": "only an axis of size 1 shows it",
    "attention: one query": "only an axis of size 1 shows it",
    "slope lost beyond 5": "only numbers of all sizes show it",
    "batch norm: means per image": "the diagnosis does not know it",
    "attention: softmax over the queries": "torch's own softmax is not taken apart",
    "softmax: diagonal only": "the diagnosis does not know it",
    "layer norm: means over the batch": "the diagnosis does not know it",
    "LSTM: gate order": "the first wrong gradient, dx, adds up what the gates are mixed in",
    "weight decay on biases": "three numbers of single precision may be an accident",
}
NAMED = {
    entry.name: entry
    for entry in ENTRIES
    if isinstance(entry, Wrong) and entry.diagnosis and not BY_THE_CHECK.intersection(entry.diagnosis)
    if entry.name not in BEYOND and not entry.only
}
# Where a pattern is one of several that the values alone allow, the weaker name is true, too.
WEAKER = {"term": {"rows", "derivative forgotten"}, "wrong axis": {"shape", "term"}}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", NAMED)
def test_names_the_mistake_and_without_a_forward_says_less_but_nothing_wrong(name):
    kinds = NAMED[name].diagnosis
    for seed, dtype in ((1, torch.float64), (2, torch.float32)):
        found = diagnose(*about(NAMED[name], seed, dtype))
        assert found is not None, "unknown"
        assert found.kind in kinds, found
    for ask in (diagnose, measured):
        found = ask(*about(NAMED[name], 0, torch.float64, blind=True))
        assert found is None or found.kind in set(kinds).union(*(WEAKER.get(kind, set()) for kind in kinds)), found


@dataclass(frozen=True)
class Spoilt:
    """A layer whose backward is right but for one gradient."""

    layer: Layer
    name: str
    wrong: object  # (dy, right gradient, arguments by name) → the wrong gradient
    kind: str | None = None
    words: str = ""

    def question(self, seed, dtype, blind=False):
        pair = self.layer.forward, self.layer.backward
        name, right, expected, known = asked(self.layer, pair, seed, dtype, blind, self.name)
        return name, {**right, name: self.wrong(known.cotangents[0], right[name], **known.arguments)}, expected, known


def times(factor):
    return lambda dy, right, **_: factor * right


def replaced(dy, right, **_):
    return draw(*right.shape, seed=5).to(right.dtype)


def set_rows(rows, *, dim=0):
    """Garbage in some rows."""

    def wrong(dy, right, **_):
        result = right.clone().movedim(dim, 0)
        result[rows] = replaced(dy, right).movedim(dim, 0)[rows]
        return result.movedim(0, dim)

    return wrong


def without_a_number(dy, right, **_):
    return right.where(torch.arange(5) < 2, torch.nan)


def slope_twice(dy, right, x, W, V):
    a = torch.tanh(x @ W.T)
    y = torch.sigmoid(a @ V.T)
    return (dy * y * (1 - y) @ V * (1 - a * a) ** 2).T @ x


def in_rows(rows, factor):
    return lambda dy, right, **_: right.index_put((torch.arange(len(right))[rows],), factor * right[rows])


def where_negative(factor):
    return lambda dy, right, **_: right.where(right > 0, factor * right)


def one_further(dy, right, **_):
    return torch.cat([replaced(dy, right)[:1], right[:-1]])


def last_of_each_id(dy, right, ids, W):
    result = torch.zeros_like(W)
    for row, i in zip(dy.flatten(0, -2), ids.flatten(), strict=True):
        result[i] = row
    return result


def last_of_each_id_and_noise(dy, right, ids, W):
    """Noise for the id 4, which is not used."""
    return last_of_each_id(dy, right, ids, W) + (torch.arange(len(W)) == 4)[:, None] * replaced(dy, right)


TWO_EXAMPLES = replace(LINEAR, example=lambda g: (normal(g, 2, 5), normal(g, 4, 5), normal(g, 4)))
TWO_NEURONS = replace(LINEAR, example=lambda g: (normal(g, 7, 5), normal(g, 2, 5), normal(g, 2)))
WITH_A_GAP = replace(EMBEDDING, example=lambda g: (torch.tensor([0, 1, 2, 4]), normal(g, 8, 4)))
ALL_TWICE = replace(EMBEDDING, example=lambda g: (torch.tensor([[1, 3, 5], [5, 3, 1]]), normal(g, 7, 4)))
BY_ALL_ELEMENTS = {"rows reversed", "half of one element"}
NAN = "21 of 35 elements are not finite, the first is NaN at [0, 2]"
TOLD = {
    "any constant": Spoilt(LINEAR, "dW", times(0.3717), "factor", "0.3717"),
    "half": Spoilt(LINEAR, "dx", times(0.5), "factor", "½"),
    "half of one element": Spoilt(GAIN, "da", times(0.5), "factor", "½"),
    "half in a batch of two": Spoilt(TWO_EXAMPLES, "dW", times(0.5), "factor", "½"),
    "not finite": Spoilt(LINEAR, "dx", without_a_number, "nan", NAN),
    "from row 3": Spoilt(LINEAR, "dx", set_rows(slice(3, None)), "rows", "wrong only from row 3 on"),
    "up to row 3": Spoilt(LINEAR, "dx", set_rows(slice(0, 4)), "rows", "wrong only up to row 3"),
    "one row": Spoilt(LINEAR, "dx", set_rows(slice(2, 3)), "rows", "wrong only in row 2"),
    "one column": Spoilt(LINEAR, "dW", set_rows(slice(1, 2), dim=1), "rows", "wrong only in column 1"),
    "half in a part": Spoilt(LINEAR, "dx", in_rows(slice(4), 0.5), "factor", "up to row 3 this is ½ times the correct"),
    "sign up to row 3": Spoilt(LINEAR, "dx", in_rows(slice(4), -1), "sign", "up to row 3 the sign is wrong"),
    "zero at the end": Spoilt(LINEAR, "dx", in_rows(slice(5, None), 0), "rows", "from row 5 on"),
    "rows reversed": Spoilt(LINEAR, "dx", lambda dy, right, **_: right.flip(0), "rows", "index 0 has those of index 6"),
    "every id twice": Spoilt(ALL_TWICE, "dW", last_of_each_id, "repeated indices", "only the last cotangent counts"),
    "half where negative": Spoilt(LINEAR, "dx", where_negative(0.5), "factor", "of 35 elements this is ½ times the"),
    "zero where negative": Spoilt(
        LINEAR, "dx", where_negative(0), "rows", "elements this is zero; the rest is correct"
    ),
    "one row further": Spoilt(LINEAR, "dx", one_further, "rows", "the correct values, moved by 1 along dimension 0"),
    "strange shape": Spoilt(LINEAR, "db", lambda dy, right, **_: dy[:2, :2], "shape", "(2, 2), not (3,)"),
}
UNKNOWN = {
    "noise": Spoilt(LINEAR, "dW", replaced),
    "noise on top": Spoilt(ACTIVATED, "dW", lambda dy, right, **_: right + 0.01 * replaced(dy, right)),
    "noise in a vector": Spoilt(SQUARE, "db", replaced),
    "noise in two elements": Spoilt(TWO_NEURONS, "db", replaced),
    "noise in one element": Spoilt(GAIN, "da", replaced),
    "noise with a mask": Spoilt(NOISE, "dx", replaced),
    "noise in a recurrent cell": Spoilt(RNN, "dWh", replaced),
    "noise in attention": Spoilt(ATTENTION, "dk", replaced),
    "noise in an embedding": Spoilt(EMBEDDING, "dW", replaced),
    "noise in LayerNorm": Spoilt(TORCH_LAYER_NORM, "dx", replaced),
    "slope twice": Spoilt(ACTIVATED, "dW", slope_twice),
    "nearly half": Spoilt(LINEAR, "dW", lambda dy, right, x, W, b: right * 0.5 + 0.01 * W.flip(0)),
    "nearly the transposed": Spoilt(SQUARE, "dW", lambda dy, right, x, W, b: right.T + 0.01 * W.flip(0)),
    "nearly zero": Spoilt(LINEAR, "dW", lambda dy, right, **_: 0.01 * replaced(dy, right)),
    "nearly ones": Spoilt(LINEAR, "dW", lambda dy, right, x, W, b: (1 + 0.01 * dy).T @ x),
    "rows with a gap": Spoilt(WITH_A_GAP, "dW", set_rows([2, 4])),
    "scattered rows": Spoilt(LINEAR, "dx", set_rows([1, 4])),
    "noise in one of many elements": Spoilt(
        LINEAR, "dx", lambda dy, right, **_: right + (right == right.max()) * dy[0, 0]
    ),
    "noise where negative": Spoilt(LINEAR, "dx", lambda dy, right, **_: right.where(right > 0, replaced(dy, right))),
    "repeated ids and another": Spoilt(EMBEDDING, "dW", last_of_each_id_and_noise),
}
NAMELESS = {name: MISTAKES[name] for name in ("σ′ of the output", "cumulative sum: not reversed")}


@dtypes
@pytest.mark.parametrize("name", TOLD)
def test_says_what_the_values_show(name, dtype):
    for blind, ask in ((False, diagnose), (True, diagnose), (True, measured)):
        found = ask(*TOLD[name].question(1, dtype, blind))
        if found is None and ask is measured and name in BY_ALL_ELEMENTS:
            continue
        assert found is not None, "unknown"
        assert (found.kind, TOLD[name].words in found.text) == (TOLD[name].kind, True), found


@pytest.mark.sweep(2)
@dtypes
@pytest.mark.parametrize("name", [*UNKNOWN, *NAMELESS])
def test_does_not_name_what_it_does_not_know(name, dtype):
    """And no pattern raises, which `diagnose` would hide: what nobody knows goes through all of them."""
    for seed, blind in ((0, False), (1, True)):
        question = UNKNOWN[name].question if name in UNKNOWN else lambda *how: about(NAMELESS[name], *how)
        wrong, actual, expected, known = question(seed, dtype, blind)
        fault = Fault(wrong, as_double(actual[wrong]), as_double(expected[wrong]), actual, expected, known)
        assert not [found for pattern in SAME_SHAPE if (found := pattern(fault))]
        assert diagnose(wrong, {**actual, wrong: expected[wrong]}, expected, known) is None, "it is right now"
