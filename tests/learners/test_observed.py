"""What the autograd learner sees of its module: each call's output and δ, whatever the module returns."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from manual_backprop.layers import linear
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from tests.support.both_ways import LOSSES, TWIN_LOSSES
from training.data import Split
from training.errors import UserError
from training.learners.reference import ReferenceLearner
from training.learners.step import backpropagate


class Sequence(nn.Module):
    """An LSTM over rows of six numbers, read as three steps of two, and what its last state says."""

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        y, (h, c) = self.lstm(x.view(len(x), 3, 2))
        return self.linear(y[:, -1] + h[0] * c[0])

    def observed(self):
        return {f"lstm.{name}": (self.lstm, k) for k, name in enumerate("yhc")} | {"linear": self.linear}


def test_of_a_module_with_several_outputs_each_is_seen():
    torch.manual_seed(0)
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))
    module = Sequence().double()
    learner = ReferenceLearner(module, TWIN_LOSSES["softmax-cross-entropy"], Split(x, y), dtype=torch.float64)
    result = learner.backpropagate(x, y)

    outputs, (h, c) = module.lstm(x.view(7, 3, 2))
    parts = [tensor.detach().requires_grad_() for tensor in (outputs, h, c)]
    logits = module.linear(parts[0][:, -1] + parts[1][0] * parts[2][0])
    nn.functional.cross_entropy(logits, y).backward()
    assert list(result.outputs) == ["lstm.y", "lstm.h", "lstm.c", "linear"]
    for name, part in zip("yhc", parts, strict=True):
        assert_close(result.outputs[f"lstm.{name}"], part.detach())
        assert_close(result.deltas[f"lstm.{name}"], part.grad)
    moved = {name: tensor + 1 for name, tensor in result.outputs.items()}
    elsewhere = learner.backpropagate(x, y, at=type(result)(result.loss, {}, {}, moved, {}, {}))
    assert_close(elsewhere.outputs["lstm.h"], result.outputs["lstm.h"])
    expected = module.linear(moved["lstm.y"][:, -1] + moved["lstm.h"][0] * moved["lstm.c"][0])
    assert_close(elsewhere.outputs["linear"], expected.detach())


class NamedOutput:
    """A model with a call that has the name of the model's own output."""

    def forward(self, p, x, tape):
        return tape.forward(linear, "output", x, p["output.weight"], p["output.bias"])

    def backward(self, p, d_output, g, tape):
        _, g["output.weight"], g["output.bias"] = tape.backward(linear, "output", d_output)


def test_no_call_has_the_name_of_the_models_output():
    params = Parameters({"output.weight": (3, 5), "output.bias": (3,)})
    x, y = torch.ones(4, 5), torch.tensor([0, 1, 2, 0])
    with pytest.raises(UserError, match=r"^a call of NamedOutput is named output, the name of the model's own output"):
        backpropagate(NamedOutput(), LOSSES["quadratic"], params, x, y, params.zeros_like(), Tape(observes=True))
