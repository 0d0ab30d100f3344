"""How a network goes on with a text: one id after another, each drawn by what the network says of every id."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Generator, Tensor

from training.data import Dataset, Streams, Tokens, Vocabulary
from training.errors import UserError
from training.learners.base import NOTHING, Buffers, Learner

PROMPT, LENGTH = 32, 300  # of the sample that a run shows: the first characters of the test text, and what is generated


def generate(
    learner: Learner,
    text: Streams,
    prompt: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[int]:
    """Ids that go on, without end, from `prompt` (N,) int64 with N ≥ 1, by a network that reads texts as `text` does.

    Each is drawn from softmax(output / temperature), in float64 on the CPU; at a temperature of 0 it is the likeliest.
    With `top_k` = k > 0 it is drawn from the k likeliest only. The network reads each id once and goes on from its
    memory. Where `text` does not carry, the network sees at most the last `text.context` ids: with more, it reads these
    again each time, and so does a network without memory.

    Raises UserError where an output is not finite.
    """
    generator = Generator().manual_seed(seed)
    window = None if text.carries else text.context
    ids: list[int] = prompt.tolist()
    memory: Buffers = NOTHING
    while True:
        full = window is not None and len(ids) > window
        if full or not memory:
            unread, memory = ids[-window:] if window else ids, NOTHING
        else:
            unread = ids[-1:]
        output, memory = learner.forward(torch.tensor([unread], device=learner.device), memory)
        ids.append(drawn(output[-1].cpu().double(), temperature, top_k, generator))
        yield ids[-1]


def drawn(output: Tensor, temperature: float, top_k: int, generator: Generator) -> int:
    """The next id by the output (V,) for each."""
    if not output.isfinite().all():
        raise UserError("the outputs of this network are not finite: give a checkpoint from before it diverged")
    if temperature == 0:
        return int(output.argmax())
    if 0 < top_k < len(output):
        output = output.masked_fill(output < output.topk(top_k).values[-1], -torch.inf)
    probabilities = ((output - output.max()) / temperature).softmax(dim=0)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def sample(learner: Learner, data: Dataset, tokens: Tokens) -> str:
    """What a run shows of a network of text: how the test text begins, and how the network goes on with that."""
    assert isinstance(data.test, Streams)
    prompt = data.test.ids[:PROMPT]
    try:
        ids = [*prompt.tolist(), *islice(generate(learner, data.test, prompt), LENGTH)]
    except UserError as error:  # which is no reason for a run to end: its own costs are finite
        return str(error)
    return Vocabulary(data.classes, tokens).decode(ids)
