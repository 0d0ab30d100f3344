"""What is of recurrent networks alone: torch's names, the order of a picture's rows, what they refuse."""

import pytest
import torch
from torch import nn

from manual_backprop.models.recurrent import CELLS, Recurrent
from manual_backprop.tape import Tape
from tests.support.against_torch import normal
from tests.support.both_ways import random_parameters

MODULES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.mark.parametrize("both", [False, True], ids=["onward", "both directions"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_is_torchs_module_of_the_same_names_over_the_rows(cell, both):
    model = Recurrent(cell, (2, 4, 3), 7, 5, bidirectional=both)
    params = random_parameters(model, seed=1)
    module = MODULES[cell](6, 5, batch_first=True, bidirectional=both).double()
    module.load_state_dict({name[7:]: p for name, p in params.items() if name.startswith("layer1.")}, strict=True)
    x, tape = normal(2, 3, 2, 4, 3), Tape(observes=True)
    logits = model.forward(params, x.flatten(1), tape)
    rows = torch.stack([torch.cat([x[:, 0, t], x[:, 1, t]], dim=1) for t in range(4)], dim=1)
    with torch.no_grad():
        y, last = module(rows)
    calls = ["layer1", "layer1_reverse"] if both else ["layer1"]
    torch.testing.assert_close(torch.cat([tape.outputs[f"{c}.y"] for c in calls], 2), y, rtol=1e-12, atol=1e-12)
    h = torch.cat([*(last[0] if cell == "lstm" else last)], dim=1)
    expected = h @ params["linear.weight"].T + params["linear.bias"]
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


REFUSED = {
    "'lst' is not a cell": ("lst", (1, 2, 3), 4),
    "the activation of gru is 'relu'": ("gru", (1, 2, 3), 4, 5, 1, False, "relu"),
    r"shape \(2, 3\), 4 classes": ("rnn", (2, 3), 4),
    "0 layers of 5 units": ("rnn", (1, 2, 3), 4, 5, 0),
    "may not read in both directions": ("rnn", (), 4, 5, 1, True),
}


@pytest.mark.parametrize(("said", "asked"), REFUSED.items(), ids=REFUSED)
def test_what_makes_no_network_is_refused(said, asked):
    with pytest.raises(ValueError, match=said):
        Recurrent(*asked)
