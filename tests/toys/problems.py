"""The two toy models at work: parameters, batches, learners of either implementation."""

from dataclasses import dataclass
from typing import Any

import torch
from both_ways import LOSSES, TWIN_LOSSES, random_batch, random_parameters
from torch import Tensor, nn

from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.optimizers import SGD
from toys.conv_net import ConvNet
from toys.recurrent_net import RecurrentNet, dropout_masks
from toys.twins import ConvNetTwin, RecurrentNetTwin
from training.data import Split
from training.learners.checked import CheckedLearner
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner

BATCH = 7
CONV = ConvNet(channels=3, height=5, width=4, kernel=(3, 5), classes=2)
RECURRENT = RecurrentNet(time=6, features=3, hidden=5, classes=4, batch=BATCH)
LOSS = "softmax-cross-entropy"


def state_of(model: ConvNet | RecurrentNet) -> dict[str, Tensor]:
    """The initial state, moved away from its zeros and ones."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: (tensor + 0.5 * torch.rand(tensor.shape, generator=generator)).double()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in model.initial_state().items()
    }


@dataclass(frozen=True)
class Problem:
    """A model at random parameters, with its twin's class, a batch, and what the forward pass also needs."""

    model: Any
    twin: type[nn.Module]
    noisy: bool = False

    @property
    def params(self) -> dict[str, Tensor]:
        return random_parameters(self.model, seed=4, gain=1.5)

    @property
    def features(self) -> int:
        m = self.model
        return m.channels * m.height * m.width if isinstance(m, ConvNet) else m.time * m.features

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return random_batch(BATCH, self.features, self.model.classes, seed=5)

    @property
    def pass_on(self) -> dict[str, Any]:
        noise = {"noise": dropout_masks(0, self.batch[0])} if self.noisy else {}
        return {"state": state_of(self.model), **noise}

    def learners(
        self, dtype: torch.dtype, init: str = "scaled-normal", **settings: float
    ) -> tuple[ManualLearner, ReferenceLearner]:
        x, y = random_batch(90, self.features, self.model.classes, seed=6)
        train, noise = Split(x, y), dropout_masks if self.noisy else None
        momentum, l2 = settings.get("momentum", 0.0), settings.get("l2", 0.0)
        manual = ManualLearner(self.model, LOSSES[LOSS], SGD(momentum), train, dtype=dtype, l2=l2, noise=noise)
        initialize(manual.params, INITIALIZERS[init], seed=1)
        return manual, self.reference(manual, dtype, momentum, l2)

    def reference(self, manual: ManualLearner, dtype: torch.dtype, momentum: float, l2: float) -> ReferenceLearner:
        learner = ReferenceLearner(
            self.twin(self.model),
            TWIN_LOSSES[LOSS],
            manual.train,
            dtype=dtype,
            noise=manual.noise,
            momentum=momentum,
            l2=l2,
        )
        learner.load_state_dict(manual.state_dict())
        return learner

    def checked(self, dtype: torch.dtype, init: str = "scaled-normal", **settings: float) -> CheckedLearner:
        manual, reference = self.learners(dtype, init, **settings)
        momentum, l2 = settings.get("momentum", 0.0), settings.get("l2", 0.0)
        truth = None if dtype == torch.float64 else self.reference(manual, torch.float64, momentum, l2)
        return CheckedLearner(manual, reference, truth, zeros=getattr(self.model, "zeros", None))


PROBLEMS = {
    "convolution": Problem(CONV, ConvNetTwin),
    "recurrent": Problem(RECURRENT, RecurrentNetTwin),
    "recurrent with dropout": Problem(RECURRENT, RecurrentNetTwin, noisy=True),
}
