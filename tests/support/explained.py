"""A small network to explain, the same one by autograd, and what an explanation's page holds."""

import json
import re
from math import prod
from types import SimpleNamespace

import torch

from explanation.numbers import explain
from reference.mlp import ACTIVATIONS
from tests.support.both_ways import TWIN_LOSSES, random_parameters
from tests.support.running import manual_of
from training.data import Dataset, Split
from training.families.configure import configure
from training.prediction import Trained

RATES = (0.01, 0.3)


def a_network(activation=("sigmoid",), loss="quadratic", hidden=(6, 4), shape=(5,)):
    """One at random parameters that tells three classes, named with what HTML must escape, and seven examples."""
    smoothing = {"loss": "softmax-cross-entropy", "label_smoothing": 0.15} if loss == "smoothed" else {"loss": loss}
    config = configure(dataset="npz", hidden=hidden, activation=activation, dtype="float64", **smoothing)
    x = torch.rand(7, prod(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([2, 0, 1, 1, 2, 0, 2])
    data = Dataset("npz", Split(x, y), Split(x, y), shape, ("<b>&", "</script>", "c"), "")
    learner = manual_of(config, data)
    learner.params.load_state_dict(random_parameters(learner.model, seed=0, gain=2.0))
    return Trained(config, data, learner), x, y


def explained(trained, x, y):
    return explain(trained, x, y, [f"training example {i}" for i in range(len(y))], RATES)


class Autograd:
    """The same network by autograd: of the project only the twin's activations and costs."""

    def __init__(self, trained, theta=None):
        config = trained.config
        self.activations = [ACTIVATIONS[name]() for name in config.activations]
        self.loss = TWIN_LOSSES["smoothed" if config.label_smoothing else config.loss]
        self.theta = (trained.learner.params.theta if theta is None else theta).clone().requires_grad_()
        shapes = trained.learner.model.shapes.values()  # of W and b in turn
        pieces = zip(self.theta.split([prod(shape) for shape in shapes]), shapes, strict=True)
        parameters = [piece.view(shape) for piece, shape in pieces]
        self.W, self.b = parameters[::2], parameters[1::2]

    def forward(self, x):
        zs, activations = [], [x]
        for W, b, sigma in zip(self.W, self.b, self.activations, strict=True):
            zs.append(activations[-1] @ W.T + b)
            activations.append(sigma(zs[-1]))
        return zs, activations

    def cost(self, x, y):
        return self.loss(self.forward(x)[1][-1], y, len(y))

    def costs(self, x, y):
        return torch.stack([self.cost(x[i : i + 1], y[i : i + 1]).detach() for i in range(len(y))])

    def gradient(self, x, y):
        return torch.autograd.grad(self.cost(x, y), self.theta)[0]

    def gradients(self, x, y):
        """Of each example's cost, a row each."""
        return torch.stack([self.gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(y))])

    def parts(self, x, y):
        """Of one example, a list entry per layer: z, a and da (the input first), dz, dW, db, slope σ′(z); and cost."""
        zs, activations = self.forward(x.clone().requires_grad_())
        C = self.loss(activations[-1], y, len(y))
        da, dz, dW, db = (
            torch.autograd.grad(C, of, retain_graph=True, materialize_grads=True)
            for of in (activations, zs, self.W, self.b)
        )
        pairs = zip(self.activations, zs, strict=True)
        slope = [torch.autograd.grad(sigma(z).sum(), z, retain_graph=True)[0][0] for sigma, z in pairs]
        z, a = ([tensor.detach()[0] for tensor in tensors] for tensors in (zs, activations))
        da, dz = ([gradient[0] for gradient in gradients] for gradients in (da, dz))
        return SimpleNamespace(cost=C.item(), z=z, a=a, da=da, dz=dz, dW=dW, db=db, slope=slope)


def data_of(text):
    """The data that a page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def as_number(text):
    """From three digits, as one writes them: −1.5·10⁻⁷."""
    mantissa, _, exponent = text.replace("−", "-").partition("·10")
    return float(mantissa) * 10.0 ** int(exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)


def said(text, id_):
    """The number that an element holds."""
    found = re.search(rf'<b id="{id_}">(.*?)</b>', text)
    assert found, id_
    return as_number(found[1])
