"""What a caller may have set in torch changes nothing in a run, a lesson or a command, and is afterwards as it was."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from gradient_check.modes import own_modes


@contextmanager
def usual_torch() -> Iterator[None]:
    """The modes, default dtype and default device that torch begins with; random numbers and threads of its own.

    Deterministic mode stays, which a caller may need on a GPU.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(own_modes())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_num_threads, threads)
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield
