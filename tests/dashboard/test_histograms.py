"""Histograms, as TensorBoard's own reader gets them back: their tags, and every finite value counted."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.dashboard import NOTHING, events, writing
from tests.support.running import learner_of
from training.data import load
from training.families.configure import configure


def histograms(run_dir):
    reader = events(run_dir)
    return {tag: reader.Histograms(tag) for tag in reader.Tags()["histograms"]}


def histogram(run_dir, tensor):
    """What a reader gets of one tensor."""
    with writing(run_dir) as writer:
        writer.histograms(0, {"w": tensor}, NOTHING)
    ((event,),) = histograms(run_dir).values()
    return event.histogram_value


@pytest.mark.parametrize("impl", ["manual", "reference", "both"])
def test_tags_and_counts_of_a_network(tmp_path, impl):
    data, config = load("points"), configure(impl=impl, hidden=(5,), dtype="float64")
    learner = learner_of(config, data)
    result = learner.backpropagate(*data.train.batch(torch.arange(7), torch.float64))
    with writing(tmp_path, config=config, data=data) as writer:
        for step in (0, 1000):
            writer.histograms(step, learner.parameters, result)
    read = histograms(tmp_path)
    assert {tag: event.histogram_value.num for tag, (event, _) in read.items()} == {
        **{"weights/layer1": 5 * 2, "weights/layer2": 2 * 5, "biases/layer1": 5, "biases/layer2": 2},
        **{"gradients/layer1.weight": 5 * 2, "gradients/layer2.weight": 2 * 5},
        **{"gradients/layer1.bias": 5, "gradients/layer2.bias": 2},
        **{"deltas/layer1": 7 * 5, "deltas/layer2": 7 * 2, "deltas/output": 7 * 2},
        **{"activations/layer1": 7 * 5, "activations/layer2": 7 * 2},
    }
    assert all([event.step for event in pair] == [0, 1000] for pair in read.values())


def test_tags_of_parameters_and_none_of_a_tensor_without_finite_values(tmp_path):
    tags = {"layer1.weight": "weights/layer1", "blocks.3.norm.bias": "biases/blocks.3.norm"}
    tags |= {name: f"parameters/{name}" for name in ("embedding", "norm.gain", "weight")}
    without = {"empty": [], "nan": [math.nan, math.nan], "infinite": [math.inf]}
    result = replace(NOTHING, gradients={name: torch.tensor(values) for name, values in without.items()})
    with writing(tmp_path) as writer:
        writer.histograms(0, {name: torch.ones(len(name)) for name in tags}, result)
    read = {tag: event.histogram_value.num for tag, (event,) in histograms(tmp_path).items()}
    assert read == {tag: len(name) for name, tag in tags.items()}


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


RANDOM = torch.randn(500, generator=torch.Generator().manual_seed(0))
ALL, MIDDLE = slice(None), slice(1, 3)
TENSORS = {
    "normal": (RANDOM[:150].view(3, 50), ALL),
    "bfloat16": (RANDOM.bfloat16(), ALL),
    "scalar": (torch.tensor(2.5), ALL),
    "zeros": (torch.zeros(9), ALL),
    "constant": (torch.full((9,), -3.0), ALL),
    "two neighbors": (double(1.0, 1.0 + 2**-52), ALL),
    "subnormal": (double(1e-40, 1e-320, 0.0), ALL),
    "large": (torch.tensor([1e30, -1e38]), ALL),
    "some not finite": (torch.tensor([math.nan, 1.0, -2.0, math.inf, -math.inf]), MIDDLE),
    "some too large to square": (double(1e300, 1.0, 2.0, -1e300), MIDDLE),
}


@pytest.mark.parametrize(("tensor", "kept"), TENSORS.values(), ids=TENSORS)
def test_every_finite_value_is_counted(tmp_path, tensor, kept):
    values, found = tensor.double().flatten()[kept], histogram(tmp_path, tensor)
    assert (found.num, found.min, found.max) == (len(values), values.min(), values.max())
    assert found.sum == pytest.approx(values.sum().item())
    assert found.sum_squares == pytest.approx(values.square().sum().item())
    edges = np.array(found.bucket_limit)
    assert (len(edges), sum(found.bucket)) == (65, len(values))
    assert (np.diff(edges) > 0).all()
    assert edges[0] < values.min() <= values.max() < edges[-1]


def test_buckets_lie_where_the_values_do(tmp_path):
    found = histogram(tmp_path, torch.cat([torch.linspace(-1, 0, 1000), torch.linspace(2.5, 3, 200)]))
    right, counts = np.array(found.bucket_limit), np.array(found.bucket)
    assert counts[right <= 0].sum() == pytest.approx(1000, abs=70)  # a bucket may straddle 0
    assert counts[(right > 0.1) & (right < 2.5)].sum() == 0
    assert counts[right >= 2.5].sum() == 200
