"""The shuffled order of the examples: a pure function of seed and epoch, the same for every implementation."""

import torch
from torch import Tensor


def epoch_order(seed: int, epoch: int, examples: int) -> Tensor:
    """A permutation of 0 … examples−1, int64 on the CPU; another for every (seed, epoch)."""
    generator = torch.Generator().manual_seed(seed)
    own = int(torch.randint(2**62, (epoch + 1,), generator=generator)[epoch])  # the epoch's own seed
    return torch.randperm(examples, generator=torch.Generator().manual_seed(own))
