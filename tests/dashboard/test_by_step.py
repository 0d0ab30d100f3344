"""Gradients and gates by time step, against autograd through torch's own cells, and their pictures in the dashboard."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import train
from manual_backprop.losses import LOSSES
from manual_backprop.models.recurrent import Recurrent
from manual_backprop.tape import Tape
from tests.support.both_ways import random_parameters
from tests.support.dashboard import events
from tests.support.explained import a_network
from tests.support.running import ROOT, flags
from training.dashboard import by_step, figures
from training.data import Split, Streams

CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
B, T, V, WIDTH = 5, 6, 7, 3


def by_cells(model, p, x):
    """Output (B, T, ·) and, by call, all states [h_t] or [(h_t, c_t)] in the order of the text, by torch's cells."""
    states = {}
    a = p["embedding.weight"][x] if model.reads_text else x.view(len(x), T, -1)
    for l in range(1, model.depth + 1):
        outputs = []
        for end in ("", "_reverse") if model.bidirectional else ("",):
            cell = CELLS[model.cell](a.shape[2], WIDTH).double()
            own = {name: p[f"layer{l}.{name}_l0{end}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            state, seen = None, {}
            for t in range(T)[:: -1 if end else 1]:
                state = torch.func.functional_call(cell, own, (a[:, t], state))
                seen[t] = state
            states[f"layer{l}{end}"] = [seen[t] for t in range(T)]
            outputs.append(torch.stack([h[0] if model.cell == "lstm" else h for h in states[f"layer{l}{end}"]], dim=1))
        a = torch.cat(outputs, dim=2)
    if not model.reads_text and model.bidirectional:  # each direction ends at an end of its own
        a = torch.cat([outputs[0][:, -1:], outputs[1][:, :1]], dim=2)
    return a[:, -1] @ p["linear.weight"].T + p["linear.bias"], states


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["text", "both directions"])
def test_gradients_are_autograds(cell, kind):
    text = kind == "text"
    model = Recurrent(cell, () if text else (1, T, 4), V, WIDTH, 2, bidirectional=not text, embedded=4)
    p = random_parameters(model, seed=1, gain=2.0)
    if text:
        examples = Streams(torch.randint(V, (B * T + 1,), generator=torch.Generator().manual_seed(3)), T)
        x, y = examples.batch(torch.arange(B), torch.float64)
        target = y.view(B, T)[:, -1]
    else:
        x = torch.randn(B, 4 * T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        examples, target = Split(x, torch.arange(B)), torch.arange(B)
    learner = SimpleNamespace(parameters={name: v.float().double() for name, v in p.items()}, buffers={})
    found = by_step.inside(model, LOSSES["softmax-cross-entropy"](), learner, examples)

    leaves = {name: v.clone().requires_grad_() for name, v in learner.parameters.items()}
    output, states = by_cells(model, leaves, x)
    cost = nn.functional.cross_entropy(output, target, reduction="sum")
    assert found.steps == T
    assert found.x.equal(x[0])
    assert found.gradients.keys() == found.gates.keys() == states.keys()
    for call, seen in states.items():
        hs = [s[0] if cell == "lstm" else s for s in seen]
        slopes = torch.autograd.grad(cost, hs, retain_graph=True)
        sizes = torch.stack([slope.norm(dim=1).mean() for slope in slopes])
        torch.testing.assert_close(found.gradients[call], sizes, rtol=1e-11, atol=0)
        if cell == "lstm":
            cells = torch.stack([c[0] for _, c in seen]).detach()
            torch.testing.assert_close(found.gates[call]["c"], cells, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_gates_are_their_equations(cell):
    """At each step, of the state before it."""
    model = Recurrent(cell, (), V, WIDTH, embedded=4)
    p = random_parameters(model, seed=2, gain=2.0)
    ids = torch.randint(V, (T + 1,), generator=torch.Generator().manual_seed(4))
    learner = SimpleNamespace(parameters=p, buffers={})
    found = by_step.inside(model, LOSSES["softmax-cross-entropy"](), learner, Streams(ids, T))
    _, states = by_cells(model, p, ids[None, :-1])
    hs = torch.stack([(s[0] if cell == "lstm" else s)[0] for s in states["layer1"]])
    before = torch.cat([torch.zeros_like(hs[:1]), hs[:-1]])
    weights = [p[f"layer1.{name}_l0"] for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
    W, b, U, c = weights
    z = p["embedding.weight"][ids[:-1]] @ W.T + b + before @ U.T + c
    blocks = z.split(WIDTH, dim=1)
    expected = {
        "rnn": lambda: {"h": hs},
        "lstm": lambda: {"i": blocks[0].sigmoid(), "f": blocks[1].sigmoid(), "o": blocks[3].sigmoid()},
        "gru": lambda: {"r": blocks[0].sigmoid(), "u": blocks[1].sigmoid()},
    }[cell]()
    gates = found.gates["layer1"]
    assert [*gates] == [*expected, *(["c"] if cell == "lstm" else [])]
    for gate, values in expected.items():
        torch.testing.assert_close(gates[gate], values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_step_by_step_the_gradients_of_parameters_are_the_same(cell):
    model = Recurrent(cell, (1, T, 4), V, WIDTH, 2, bidirectional=True)
    p, generator = random_parameters(model, seed=2), torch.Generator().manual_seed(4)
    x, d_output = (torch.randn(B, n, generator=generator, dtype=torch.float64) for n in (4 * T, V))
    found = []
    for tape in (Tape(), by_step.StepByStep({})):
        tape.need_dx = True
        model.forward(p, x, tape)
        gradients = {}
        gradients["x"] = model.backward(p, d_output, gradients, tape)
        found.append(gradients)
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-13)


def test_a_network_without_a_recurrent_layer_has_nothing_to_show():
    trained, x, y = a_network()
    assert by_step.inside(trained.learner.model, trained.learner.loss, trained.learner, Split(x, y)) is None


def test_what_is_drawn(monkeypatch):
    """Lines on a logarithmic scale; a gate from 0 to 1, a cell about 0, every third of 150 units."""
    drawn = []
    monkeypatch.setattr(figures, "drawn", drawn.append)
    by_step.gradient_by_step({"layer1": torch.tensor([0.0, 2.0**-99, torch.inf, 0.5]).double()}, list("ab␣c"))
    gates = {"f": torch.rand(4, 150), "c": torch.linspace(-3, 2, 600).view(4, 150)}
    by_step.gates_by_step("layer1", gates, list("ab␣c"))
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == "log"
    assert np.array_equal(axes.lines[0].get_ydata(), [np.nan, 2.0**-99, np.nan, 0.5], equal_nan=True)
    named = [axes for axes in drawn[1].axes if axes.get_title()]
    assert [axes.get_title() for axes in named] == ["layer1: f, white 0 to blue 1", "layer1: c, orange −3 to blue 3"]
    for axes, gate, span in zip(named, gates, ((0, 1), (-3, 3)), strict=True):
        (map_,) = axes.images
        assert np.array_equal(map_.get_array(), gates[gate][:, ::3].T.numpy())
        assert map_.get_clim() == span
        assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 3.5), (-1.5, 148.5))
    for axes in (drawn[0].axes[0], named[-1]):
        assert [label.get_text() for label in axes.get_xticklabels()] == list("ab␣c")


@pytest.mark.slow
def test_a_run_by_autograd_has_them_in_its_event_file_and_metrics_md_explains_them(tmp_path):
    options = {"model": "recurrent", "dataset": "text", "data_dir": ROOT / "README.md", "impl": "reference"}
    options |= {"loss": "softmax-cross-entropy", "cell": "gru", "depth": 5, "width": 3, "context": 9, "examples": 500}
    assert train.main(list(flags({**options, "max_steps": 2, "batch_size": 20, "run_dir": tmp_path}))) == 0
    reader = events(tmp_path)
    tags = [tag for tag in reader.Tags()["images"] if tag.startswith("by_step/")]
    assert tags == ["by_step/gradient", *(f"by_step/layer{l}" for l in range(1, 5))]
    assert [[event.step for event in reader.Images(tag)] for tag in tags] == [[2]] * 5
    explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert "`by_step/gradient`" in explained
    assert "`by_step/<layer>`" in explained
