"""A small network to explain, the same one by autograd, and what an explanation's page holds."""

import json
import re
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from explanation.numbers import Explanation, explain
from reference.mlp import ACTIVATIONS
from tests.support.both_ways import TWIN_LOSSES, random_parameters
from tests.support.running import manual_of
from training.data import Dataset, Split
from training.families.configure import configure
from training.prediction import Trained

RATES = (0.01, 0.3)


def a_network(
    activation: tuple[str, ...] = ("sigmoid",),
    loss: str = "quadratic",
    hidden: tuple[int, ...] = (6, 4),
    shape: tuple[int, ...] = (5,),
) -> tuple[Trained, Tensor, Tensor]:
    """One at random parameters that tells three classes, named with what HTML must escape, and seven examples."""
    smoothing = {"loss": "softmax-cross-entropy", "label_smoothing": 0.15} if loss == "smoothed" else {"loss": loss}
    config = configure(dataset="npz", hidden=hidden, activation=activation, dtype="float64", **smoothing)  # type: ignore[arg-type]
    x = torch.rand(7, prod(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([2, 0, 1, 1, 2, 0, 2])
    data = Dataset("npz", Split(x, y), Split(x, y), shape, ("<b>&", "</script>", "c"), "")
    learner = manual_of(config, data)
    learner.params.load_state_dict(random_parameters(learner.model, seed=0, gain=2.0))
    return Trained(config, data, learner), x, y


def explained(trained: Trained, x: Tensor, y: Tensor) -> Explanation:
    return explain(trained, x, y, range(len(y)), RATES)


class Autograd:
    """The same network by autograd: of the project only the twin's activations and costs."""

    def __init__(self, trained: Trained, theta: Tensor | None = None) -> None:
        config = trained.config
        self.activations = [ACTIVATIONS[name]() for name in config.activations]
        self.loss = TWIN_LOSSES["smoothed" if config.label_smoothing else config.loss]
        self.theta = (trained.learner.params.theta if theta is None else theta).clone().requires_grad_()
        self.W, self.b, start = [], [], 0
        for n_out, n_in in (s for s in trained.learner.model.shapes.values() if len(s) == 2):
            self.W.append(self.theta[start : start + n_out * n_in].view(n_out, n_in))
            self.b.append(self.theta[start + n_out * n_in : start + n_out * (n_in + 1)])
            start += n_out * (n_in + 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        zs, activations = [], [x]
        for W, b, sigma in zip(self.W, self.b, self.activations, strict=True):
            zs.append(activations[-1] @ W.T + b)
            activations.append(sigma(zs[-1]))
        return zs, activations

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.forward(x)[1][-1], y, len(y))

    def costs(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([self.cost(x[i : i + 1], y[i : i + 1]).detach() for i in range(len(y))])

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.autograd.grad(self.cost(x, y), self.theta)[0]

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each example's cost, a row each."""
        return torch.stack([self.gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(y))])

    def parts(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        """Of one example, a list entry per layer: z, a and da (the input first), dz, dW, db, slope σ′(z); and cost."""
        zs, activations = self.forward(x.clone().requires_grad_())
        C = self.loss(activations[-1], y, len(y))

        def gradients(of: list[Tensor]) -> list[Tensor]:
            return list(torch.autograd.grad(C, of, retain_graph=True, materialize_grads=True))

        pairs = zip(self.activations, zs, strict=True)
        return SimpleNamespace(
            cost=C.item(),
            z=[z.detach()[0] for z in zs],
            a=[a.detach()[0] for a in activations],
            da=[g[0] for g in gradients(activations)],
            dz=[g[0] for g in gradients(zs)],
            dW=gradients(self.W),
            db=gradients(self.b),
            slope=[torch.autograd.grad(sigma(z).sum(), z, retain_graph=True)[0][0] for sigma, z in pairs],
        )


def data_of(text: str) -> dict[str, Any]:
    """The data that a page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def as_number(text: str) -> float:
    """From three digits, as one writes them: −1.5·10⁻⁷."""
    mantissa, _, exponent = text.replace("−", "-").partition("·10")
    return float(mantissa) * 10.0 ** int(exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)


def said(text: str, id_: str) -> float:
    """The number that an element holds."""
    found = re.search(rf'<b id="{id_}">(.*?)</b>', text)
    assert found is not None, id_
    return as_number(found[1])
