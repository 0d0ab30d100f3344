"""Networks of every family at small sizes, with all that a pass over them needs, none of it at a default.

PROBLEMS are what tests/models asks of every model: those here, and all that the registered families yield.
"""

from dataclasses import dataclass, replace
from itertools import product
from math import ceil

import pytest
import torch

from gradient_check import compare_gradients
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models import recurrent
from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from tests.support.both_ways import LOSSES, TWIN_LOSSES, by_autograd, by_hand, by_twin, random_parameters
from tests.support.text.recurrent import Recurrent, RecurrentTwin
from tests.support.text.transformer import Transformer, TransformerTwin
from training.data.noise import dropout_noise
from training.families import FAMILIES, base
from training.families.networks import make_twin
from training.families.text import TextProblem
from training.learners.verification import costs

GAINS = {"relu": 1.5, "leaky_relu": 1.5, "sigmoid": 3.0, "gelu": 2.0, "silu": 2.0, "gelu_tanh": 2.0}
COSTS = {name: (LOSSES[name], TWIN_LOSSES[name]) for name in LOSSES} | costs()
TWINS = {Recurrent: RecurrentTwin, Transformer: TransformerTwin}
DRAWS = 20


@dataclass(frozen=True)
class Problem:
    """A network with its cost, at random parameters, running statistics and state, and a batch."""

    of: base.Problem
    batch: int = 11
    seed: int = 1

    model = property(lambda self: self.of.model)
    loss = property(lambda self: self.of.loss)
    drops = property(lambda self: getattr(self.model, "dropout", 0.0) > 0)
    noise = property(lambda self: dropout_noise(seed=3)(0, torch.device("cpu"), torch.float64))

    @property
    def params(self):
        names = set(getattr(self.model, "activations", ())) or {getattr(self.model, "activation", "gelu")}
        names = names - {"identity"} or names
        gain = GAINS.get(*names, 1.3) if len(names) == 1 else 1.3
        return random_parameters(self.model, seed=self.seed, gain=gain)

    @property
    def data(self):
        return self.of.draw(torch.Generator().manual_seed(self.seed + 1), self.batch)

    @property
    def buffers(self):
        """The model's, moved away from their zeros and ones."""
        generator = torch.Generator().manual_seed(self.seed + 2)

        def moved(tensor):
            if not tensor.is_floating_point():
                return tensor + 5
            return tensor.double() + 0.2 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)

        return {name: moved(tensor) for name, tensor in self.model.buffers().items()}

    @property
    def memory(self):
        """What the batch before may have left."""
        x, _ = replace(self, seed=self.seed + 3).data
        tape = Tape(training=True, buffers=self.buffers, noise=self.noise)
        self.model.forward(self.params, x, tape)
        return tape.new_memory

    @property
    def pass_on(self):
        """What a pass is given beside parameters and x."""
        return {"buffers": self.buffers, "memory": self.memory, "noise": self.noise}

    @property
    def given(self):
        """Every tensor that a pass is given."""
        return {**self.params, **self.buffers, **self.memory, "x": self.data[0]}

    def twin(self):
        return TWINS.get(type(self.model), make_twin)(self.model)

    def dropped(self, probability):
        """The problem with dropout, and its noise."""
        return replace(self, of=replace(self.of, model=replace(self.model, dropout=probability))), self.noise

    def zeros(self, gradients):
        """For each gradient that is zero in exact arithmetic, the size of what cancels in it."""
        zeros = getattr(self.model, "zeros", {})
        return {f"∂C/∂{name}": sum(gradients[f"δ {d}"].norm().item() for d in of) for name, of in zeros.items()}

    def by_hand(self, x=None, y=None, dtype=torch.float64, **pass_on):
        """As in both_ways.py, of this problem; of another batch where one is given."""
        params, *data, rest = self._in(dtype, pass_on)
        batch = (given if new is None else new for given, new in zip(data, (x, y), strict=True))
        return by_hand(self.model, COSTS[self.loss][0], params, *batch, **rest)

    def by_autograd(self, **pass_on):
        params, x, y, rest = self._in(torch.float64, pass_on)
        return by_autograd(self.model, COSTS[self.loss][0], params, x, y, **rest)

    def by_twin(self, x=None, dtype=torch.float64, rounded=torch.float64, training=True):
        """In `dtype`, of numbers that were in `rounded` before."""
        params, given, y, rest = self._in(dtype, {}, rounded)
        twin, cost = self.twin().train(training), COSTS[self.loss][1]
        return by_twin(twin, cost, params, given if x is None else x, y, **rest)

    def assert_agrees(self, actual, expected, truth=None):
        __tracebackhide__ = True
        self._compared(actual, expected, truth).assert_passed()

    def judging(self, dtype=torch.float64):
        """The first draw that can judge: there the twin agrees with itself, so that nothing is zero everywhere, nor
        so badly conditioned that a mistake would pass for rounding. In bfloat16 pixels tie that do not in truth, and
        max pooling then sends a whole δ elsewhere.
        """
        for seed in range(self.seed, self.seed + DRAWS):
            one = replace(self, seed=seed)
            expected = truth = one.by_twin(rounded=dtype)
            if dtype != torch.float64:
                expected = one.by_twin(dtype=dtype)
            if one._compared(expected, expected, truth).passed:
                return one
        raise AssertionError(f"none of {DRAWS} draws can judge {self.of.title} in {dtype}")

    def _compared(self, actual, expected, truth):
        """Dropout may leave nothing of a gradient. Of a layer's several outputs some are read by nobody."""
        zeros = self.zeros(truth or expected)
        unread = {name for name in expected if name.endswith((".y", ".h", ".c")) and not expected[name].any()}
        assert not any(actual[name].any() for name in unread), unread
        kept = [{name: t for name, t in tensors.items() if name not in unread} for tensors in (actual, expected)]
        return compare_gradients(*kept, truth=truth, zeros=zeros, allow_trivial=self.drops)

    def _in(self, dtype, pass_on, rounded=torch.float64):
        def cast(tensor):
            return tensor.to(rounded).to(dtype) if tensor.is_floating_point() else tensor

        def all_of(tensors):
            return {name: cast(tensor) for name, tensor in tensors.items()}

        x, y = self.data
        own = {"buffers": all_of(self.buffers), "memory": all_of(self.memory)}
        own["noise"] = lambda call, shape, keep: self.noise(call, shape, keep).to(dtype)  # the same in every format
        return all_of(self.params), cast(x), y, own | dict(pass_on)


def perceptron(model, loss, batch, seed=1):
    return Problem(base.Problem("", loss, model, model.sizes[:1], model.sizes[-1], str(model)), batch, seed)


def pictures(model, loss, batch):
    return Problem(base.picture_problem(model, "", loss), batch)


def text(model, loss):
    return Problem(TextProblem("", loss, model, (5,), model.vocabulary, str(model)), 4)


# All pairs of depth and activation; the costs and batch sizes run through them so that every other pair occurs too.
# `mixed` takes a different activation in every layer; a cost of logits has identity in the last one.
WIDTHS = (11, 9, 6, 13, 5, 8, 12, 7, 10)  # all different, so that a transposed matrix cannot fit
BATCHES = (1, 2, 7, 33)
CASES = [
    (depth, name, list(LOSSES)[(depth + i) % len(LOSSES)], BATCHES[(depth // 2 + i) % len(BATCHES)])
    for depth, (i, name) in product(range(1, 9), enumerate((*ACTIVATIONS, "mixed")))
]


def stacked(depth, activation, loss, batch=7):
    names = list(ACTIVATIONS)
    activations = [names[l % len(names)] if activation == "mixed" else activation for l in range(depth)]
    if LOSSES[loss].from_logits:
        activations[-1] = "identity"
    return perceptron(MLP(WIDTHS[: depth + 1], tuple(activations)), loss, batch, seed=depth)


MLPS = {f"{case[0]} {case[1]} layers, {case[2]}, batch of {case[3]}": stacked(*case) for case in CASES}
# Together: 1 to 3 channels, odd and even sizes, 0 to 2 blocks, every cost, batches from 1, maps down to one pixel.
CNNS = {
    "no block": pictures(CNN((1, 5, 7), 4, (3,), 0, "relu"), "quadratic", 7),
    "two blocks": pictures(CNN((2, 9, 7), 3, (5, 4), 2, "gelu"), "softmax-cross-entropy", 5),
    "one pixel": pictures(CNN((3, 2, 3), 5, (4,), 1, "tanh"), "squared-error", 9),
    "three stages to one pixel": pictures(CNN((2, 11, 9), 4, (5, 3, 4), 1, "leaky_relu"), "sigmoid-cross-entropy", 3),
    "a batch of one": pictures(CNN((3, 7, 5), 6, (4,), 1, "silu"), "softmax-cross-entropy", 1),
    "smoothed": pictures(CNN((1, 6, 6), 3, (4, 2), 0, "softplus"), "smoothed", 11),
    "one channel, one class": pictures(CNN((1, 4, 5), 1, (1,), 0, "identity"), "quadratic", 3),
    "sigmoid": pictures(CNN((2, 5, 5), 2, (3, 2), 0, "sigmoid"), "sigmoid-cross-entropy", 13),
    "scaled tanh": pictures(CNN((2, 8, 6), 7, (3, 5), 1, "scaled_tanh"), "squared-error", 5),
    "gelu by tanh": pictures(CNN((1, 7, 9), 3, (6,), 2, "gelu_tanh"), "quadratic", 4),
}
LENETS = {
    "as published": pictures(LeNet5((1, 28, 28), 10), "softmax-cross-entropy", 3),
    "color": pictures(LeNet5((3, 32, 32), 7, "gelu"), "quadratic", 5),
    "two channels": pictures(LeNet5((2, 28, 28), 3, "relu"), "sigmoid-cross-entropy", 1),
    "unpadded": pictures(LeNet5((1, 32, 32), 2, "softplus"), "squared-error", 2),
    "smoothed tanh": pictures(LeNet5((1, 28, 28), 4, "tanh"), "smoothed", 7),
}
READERS = {"cell": Recurrent(7, 3, 6), "block": Transformer(vocabulary=7, context=8, width=6, heads=2, dropout=0.3)}
TEXTS = {f"{name}, {loss}": text(model, loss) for name, model in READERS.items() for loss in LOSSES}
WITHOUT_DROPOUT = {
    f"{kind}, {name}": problem
    for kind, problems in (("MLP", MLPS), ("LeNet-5", LENETS), ("CNN", CNNS))
    for name, problem in problems.items()
}
DROPPED = {
    f"{name}, dropout": problem.dropped(0.4)[0]
    for name, problem in WITHOUT_DROPOUT.items()
    if isinstance(problem.model, CNN)
    or (isinstance(problem.model, MLP) and len(problem.model.activations) in (2, 3, 5) and problem.batch > 1)
}
for cell in recurrent.CELLS:
    deep = recurrent.Recurrent(cell, (2, 3, 4), 5, 6, 2, cell == "gru", dropout=0.3)
    DROPPED[f"{cell}, dropout"] = pictures(deep, "quadratic", 7)
OF_FAMILIES = {
    f"{name}: {problem.title}": Problem(problem) for name, family in FAMILIES.items() for problem in family.problems()
}
PROBLEMS = WITHOUT_DROPOUT | TEXTS | DROPPED | OF_FAMILIES


def each(problems, fast=8, rest="slow"):
    """A test for each of them. Of each kind of model about `fast` have no marker, and the others are `rest`."""
    kinds = {}
    for name, problem in problems.items():
        kinds.setdefault(type(problem.model), []).append(name)
    chosen = {name for names in kinds.values() for name in names[:: ceil(len(names) / fast)]}
    marks = {True: (), False: getattr(pytest.mark, rest)}
    cases = [pytest.param(problem, id=name, marks=marks[name in chosen]) for name, problem in problems.items()]
    return pytest.mark.parametrize("problem", cases)
