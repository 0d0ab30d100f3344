"""The modes of torch that decide what a backward pass is: a check does not depend on those that its caller is in."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

CASTING = ("cpu", "cuda", "mps", "xpu")  # devices whose autocast a caller may be in


@contextmanager
def own_modes() -> Iterator[None]:
    """As torch begins: with gradients, outside of inference mode, of autocast and of anomaly detection.

    The caller's default dtype, default device and deterministic mode stay, because a function may count on them.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for device in CASTING:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
