"""What the autograd learner sees of its module: each call's output and δ, whatever the module returns."""

import torch
from both_ways import TWIN_LOSSES
from torch import Tensor, nn

from training.data import Split
from training.learners.reference import ReferenceLearner


class Sequence(nn.Module):
    """An LSTM over rows of six numbers, read as three steps of two, and what its last state says."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 5, batch_first=True)
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.lstm(x.view(len(x), 3, 2))
        return self.linear(y[:, -1] + h[0] * c[0])

    def observed(self) -> dict[str, nn.Module | tuple[nn.Module, int]]:
        lstm = {f"lstm.{name}": (self.lstm, k) for k, name in enumerate(("y", "h", "c"))}
        return {**lstm, "linear": self.linear}


def test_of_a_module_with_several_outputs_each_is_seen() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))
    module = Sequence().double()
    learner = ReferenceLearner(module, TWIN_LOSSES["softmax-cross-entropy"], Split(x, y), dtype=torch.float64)
    result = learner.backpropagate(x, y)

    outputs, (h, c) = module.lstm(x.view(7, 3, 2))
    parts = [tensor.detach().requires_grad_() for tensor in (outputs, h, c)]
    logits = module.linear(parts[0][:, -1] + parts[1][0] * parts[2][0])
    torch.nn.functional.cross_entropy(logits, y).backward()
    assert list(result.outputs) == ["lstm.y", "lstm.h", "lstm.c", "linear"]
    for name, part in zip("yhc", parts, strict=True):
        torch.testing.assert_close(result.outputs[f"lstm.{name}"], part.detach())
        torch.testing.assert_close(result.deltas[f"lstm.{name}"], part.grad)
    moved = {name: tensor + 1 for name, tensor in result.outputs.items()}
    elsewhere = learner.backpropagate(x, y, at=type(result)(result.loss, {}, {}, moved, {}, {}))
    torch.testing.assert_close(elsewhere.outputs["lstm.h"], result.outputs["lstm.h"])
    expected = module.linear(moved["lstm.y"][:, -1] + moved["lstm.h"][0] * moved["lstm.c"][0])
    torch.testing.assert_close(elsewhere.outputs["linear"], expected.detach())
