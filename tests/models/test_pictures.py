"""What is LeNet-5's and the residual network's own: equations, sizes, what flows on, and what they refuse."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradient_check import compare_gradients
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.tape import Tape
from tests.support.both_ways import LOSSES, by_hand, random_batch
from tests.support.networks import CNNS, LENETS, Problem, pictures
from training.families.networks import make_twin


def observed(problem: Problem, params: dict[str, Tensor], training: bool = True) -> tuple[Tape, Tensor]:
    """A tape that saw both passes, and the logits."""
    tape = Tape(training=training, observes=True, **problem.pass_on)
    with torch.inference_mode():
        logits = problem.model.forward(params, problem.data[0], tape)
        problem.model.backward(params, torch.ones_like(logits), {}, tape)
    return tape, logits


def test_equations_are_named() -> None:
    problem = LENETS["as published"]
    params = problem.params
    tape, _ = observed(problem, params)
    expected = {
        "F7": "∂C/∂output",
        "F6.a": "LI1",
        "F6": "AC1",
        "C5.a": "LI1",
        "C5": "AC1",
        "S4": "CV1",
        "C3.a": "AP1",
        "C3": "AC1",
        "S2": "CV1",
        "C1.a": "AP1",
        "C1": "AC1",
    }
    assert list(tape.labels.items()) == list(expected.items())
    assert list(tape.outputs) == list(reversed(expected)) == list(make_twin(problem.model).observed())
    equations = tape.equations(params)
    assert list(equations) == list(problem.model.shapes)
    for name, found in equations.items():
        labels = ("LI2", "LI3") if name[0] == "F" else ("CV2", "CV3")
        assert found == ((labels[0], "W") if name.endswith("weight") else (labels[1], "b"))
    problem, _ = CNNS["two blocks"].dropped(0.4)
    params = problem.params
    tape, _ = observed(problem, params)
    expected = {"linear": "∂C/∂output", "dropout": "LI1", "pool": "DO1"}
    for stage in ("stage2", "stage1"):
        for block, above in (("block2", {"stage2": "AA1", "stage1": "CV1"}[stage]), ("block1", "RS1")):
            of_a_block = {
                "norm2.a": above,
                "norm2": "AC1",
                "conv2": "BN3",
                "norm1.a": "CV1",
                "norm1": "AC1",
                "conv1": "BN3",
            }
            expected |= {f"{stage}.{block}.{name}": label for name, label in of_a_block.items()}
        of_a_stage = {"norm.a": "RS1", "norm": "AC1", "pool": "BN3", "conv": "MP1"}
        expected |= {f"{stage}.{name}": label for name, label in of_a_stage.items()}
    assert list(tape.labels.items()) == list(expected.items())
    assert list(tape.outputs) == list(reversed(expected)) == list(make_twin(problem.model).observed())
    equations = tape.equations(params)
    assert list(equations) == list(problem.model.shapes)
    names = ("linear.weight", "linear.bias", "stage1.conv.weight", "stage2.block2.conv2.weight")
    norms = ("stage1.norm.weight", "stage1.norm.bias", "stage2.block1.norm2.weight", "stage1.block2.norm1.bias")
    assert [equations[name] for name in names] == [("LI2", "W"), ("LI3", "b"), ("CV2", "W"), ("CV2", "W")]
    assert [equations[name] for name in norms] == [("BN2", "gamma"), ("BN1", "beta")] * 2
    evaluated, _ = observed(problem, params, training=False)
    assert evaluated.labels == {
        name: label.replace("BN3", "BN4").replace("DO1", "LI1") for name, label in expected.items() if name != "dropout"
    }
    assert evaluated.equations(params) == equations


def test_what_is_kept_is_what_flows_on() -> None:
    """Of LeNet-5 by the formula, of the residual network through a block and through its end."""
    problem = LENETS["as published"]
    tape, logits = observed(problem, problem.params)
    z, p = tape.outputs, problem.params
    assert logits is z["F7"]
    torch.testing.assert_close(z["C1.a"], 1.7159 * torch.tanh(2 / 3 * z["C1"]))
    torch.testing.assert_close(z["S2"], F.avg_pool2d(z["C1.a"], 2))
    torch.testing.assert_close(z["C3"], F.conv2d(z["S2"], p["C3.weight"], p["C3.bias"]))
    torch.testing.assert_close(z["F6"], z["C5.a"].flatten(1) @ p["F6.weight"].T + p["F6.bias"])
    torch.testing.assert_close(z["F7"], z["F6.a"] @ p["F7.weight"].T + p["F7.bias"])
    problem = CNNS["two blocks"]
    tape, logits = observed(problem, problem.params)
    z, p, gelu = tape.outputs, problem.params, F.gelu
    assert logits is z["linear"]
    first, second = "stage1.block1", "stage1.block2"
    torch.testing.assert_close(z["stage1.pool"], F.max_pool2d(z["stage1.conv"], 2))
    torch.testing.assert_close(z["stage1.norm.a"], gelu(z["stage1.norm"]))
    torch.testing.assert_close(z[f"{first}.norm2.a"], gelu(z["stage1.norm.a"] + z[f"{first}.norm2"]))
    torch.testing.assert_close(z[f"{second}.norm2.a"], gelu(z[f"{first}.norm2.a"] + z[f"{second}.norm2"]))
    conv = F.conv2d(z[f"{second}.norm2.a"], p["stage2.conv.weight"], padding=1)
    torch.testing.assert_close(z["stage2.conv"], conv)
    torch.testing.assert_close(z["pool"], z["stage2.block2.norm2.a"].mean(dim=(2, 3), keepdim=True))
    torch.testing.assert_close(logits, z["pool"].flatten(1) @ p["linear.weight"].T + p["linear.bias"])


def test_channels_come_last_in_memory_all_the_way() -> None:
    """For speed: a layer that got the other order would hand it on."""
    tape, _ = observed(CNNS["two blocks"], CNNS["two blocks"].params)
    pictures = [name for name, z in tape.outputs.items() if z.dim() == 4]
    assert len(pictures) == 23 + 10  # and the activations
    for name in pictures:
        assert tape.outputs[name].is_contiguous(memory_format=torch.channels_last), name
        if tape.labels[name] != "AA1":  # one number for each map, spread over its places
            assert tape.deltas[name].is_contiguous(memory_format=torch.channels_last), name


def test_lenets_sizes_are_those_of_the_paper() -> None:
    """The parameters are known of this variant, whose S have none and whose C3 sees all of S2's maps."""
    problem = LENETS["as published"]
    tape, _ = observed(problem, problem.params)
    sizes = {
        "C1": (6, 28, 28),
        "S2": (6, 14, 14),
        "C3": (16, 10, 10),
        "S4": (16, 5, 5),
        "C5": (120, 1, 1),
        "F6": (84,),
        "F7": (10,),
    }
    activations = {f"{name}.a": sizes[name] for name in ("C1", "C3", "C5", "F6")}
    assert {name: tuple(z.shape[1:]) for name, z in tape.outputs.items()} == sizes | activations
    unpadded, _ = observed(LENETS["unpadded"], LENETS["unpadded"].params)
    assert all(unpadded.outputs[name].shape[1:] == z.shape[1:] for name, z in tape.outputs.items() if name != "F7")
    counts: dict[str, int] = {}
    for name, shape in LeNet5((1, 28, 28), 10).shapes.items():
        layer = name.partition(".")[0]
        counts[layer] = counts.get(layer, 0) + torch.Size(shape).numel()
    assert counts == {"C1": 156, "C3": 2_416, "C5": 48_120, "F6": 10_164, "F7": 850}
    assert sum(counts.values()) == 61_706


def test_the_default_cnn_is_of_the_size_it_says() -> None:
    model = CNN((1, 28, 28), 10)
    assert sum(torch.Size(shape).numel() for shape in model.shapes.values()) == 121_274
    problem = pictures(model, "quadratic", 2)
    tape, _ = observed(problem, problem.params)
    sizes = [tuple(tape.outputs[f"stage{s}.pool"].shape[1:]) for s in (1, 2, 3)]
    assert sizes == [(16, 14, 14), (32, 7, 7), (64, 3, 3)]


def test_padding_is_around_the_picture() -> None:
    """28×28 pictures give what the same pictures give inside of 32×32 zeros."""
    small, large = LeNet5((2, 28, 28), 3), LeNet5((2, 32, 32), 3)
    x, y = random_batch(3, 2 * 28 * 28, 3, seed=1)
    wide = F.pad(x.view(3, 2, 28, 28), (2, 2, 2, 2)).flatten(1)
    params = pictures(small, "quadratic", 3).params
    results = [by_hand(model, LOSSES["quadratic"], params, rows, y) for model, rows in ((small, x), (large, wide))]
    inside = results[1]["dx"].view(3, 2, 32, 32)[:, :, 2:-2, 2:-2].flatten(1)
    compare_gradients(results[0], results[1] | {"dx": inside}).assert_passed()


def test_the_calls_know_their_layers() -> None:
    lenet, _ = observed(LENETS["as published"], LENETS["as published"].params)
    assert {name: call.kind for name, call in lenet.calls.items()} == {
        **dict.fromkeys(("C1", "C3", "C5"), "conv2d"),
        **dict.fromkeys(("S2", "S4"), "avg_pool2d"),
        **dict.fromkeys(("F6", "F7"), "linear"),
        **dict.fromkeys(("C1.a", "C3.a", "C5.a", "F6.a"), "scaled_tanh"),
    }
    problem, _ = CNNS["two blocks"].dropped(0.4)
    for training in (True, False):
        cnn, _ = observed(problem, problem.params, training)
        kinds = [call.kind for call in cnn.calls.values()]
        block = ["conv2d", "batch_norm", "gelu"] * 2
        stage = ["conv2d", "max_pool2d", "batch_norm", "gelu", *block, *block]
        assert kinds == [*stage, *stage, "adaptive_avg_pool2d", *["dropout"] * training, "linear"]


REFUSED = {
    "a picture of another size": (lambda: LeNet5((1, 20, 20), 3), "28×28 or 32×32 pixels, not of 20×20"),
    "a picture of two sizes": (lambda: LeNet5((1, 28, 32), 3), "28×28 or 32×32 pixels, not of 28×32"),
    "LeNet-5 without channels": (lambda: LeNet5((0, 28, 28), 3), r"shape \(0, 28, 28\) and 3 classes make no network"),
    "LeNet-5 of no class": (lambda: LeNet5((1, 28, 28), 0), "0 classes make no network: .* classes are from 1$"),
    "an unknown activation of LeNet-5": (lambda: LeNet5((1, 28, 28), 3, "swish"), "'swish' is not .* sigmoid, tanh"),
    "a shape of two": (lambda: CNN((28, 28), 3), r"shape \(28, 28\) and 3 classes .*\(channels, height, width\)"),
    "a picture without rows": (lambda: CNN((1, 0, 9), 3), r"shape \(1, 0, 9\) and 3 classes make no network"),
    "no class": (lambda: CNN((1, 28, 28), 0), "and 0 classes make no network"),
    "an unknown activation": (lambda: CNN((1, 28, 28), 3, activation="swish"), "'swish' is not an activation; there"),
    "too many stages": (lambda: CNN((1, 7, 30), 3), "3 stages halve a picture 3 times, and 7×30 pixels allow 2: "),
    "too many for a pixel": (lambda: CNN((1, 1, 1), 3, (4,)), "1 stages .* 1×1 pixels allow 0"),
    "no stages": (
        lambda: CNN((1, 28, 28), 3, ()),
        r"channels \(\) and 1 blocks make no network: give channels from 1, blocks from 0$",
    ),
    "a stage of no channel": (lambda: CNN((1, 28, 28), 3, (4, 0)), r"channels \(4, 0\) and 1 blocks make no network"),
    "blocks below 0": (lambda: CNN((1, 28, 28), 3, blocks=-1), "and -1 blocks make no network: .* blocks from 0"),
    "dropout of all": (lambda: CNN((1, 28, 28), 3, dropout=1.0), "dropout is 1.0, but it must be from 0 to below 1"),
    "dropout below 0": (lambda: CNN((1, 28, 28), 3, dropout=-0.1), "dropout is -0.1, but it must be"),
    "dropout nan": (lambda: CNN((1, 28, 28), 3, dropout=float("nan")), "dropout is nan, but it must be"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_configurations_that_make_no_network_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_the_least_that_makes_a_network() -> None:
    for model in (CNN((1, 2, 2), 1, (1,), 0), CNN((1, 8, 9), 1), CNN((1, 28, 28), 3, dropout=0.999)):
        assert model.shapes


@pytest.mark.parametrize("problem", [LENETS["color"], CNNS["two blocks"]], ids=["LeNet-5", "CNN"])
def test_rows_of_another_length_are_refused(problem: Problem) -> None:
    x = problem.data[0]
    sizes = "×".join(map(str, problem.model.shape))
    for wrong in (x[:, 1:], x.view(len(x), *problem.model.shape), x[0], x.repeat(1, 2)):
        with pytest.raises(ValueError, match=rf"^x is {re.escape(str(tuple(wrong.shape)))}: .* {x.shape[1]} .*{sizes}"):
            problem.model.forward(problem.params, wrong, Tape(buffers=problem.buffers))


def test_training_on_one_value_per_channel_is_refused_and_evaluating_is_not() -> None:
    problem = pictures(CNN((1, 2, 2), 3, (4,), 1), "quadratic", 1)
    given = problem.params, problem.data[0]
    with pytest.raises(
        ValueError, match=r"x is \(1, 4, 1, 1\), 1 to a channel, which has no variance: give at least 2"
    ):
        problem.model.forward(*given, Tape(training=True, buffers=problem.buffers))
    assert problem.model.forward(*given, Tape(buffers=problem.buffers)).shape == (1, 3)


def test_every_activation_of_the_models_is_one_of_the_twins() -> None:
    for activation in ACTIVATIONS:
        assert make_twin(CNN((1, 2, 2), 2, (1,), 1, activation))
        assert make_twin(LeNet5((1, 28, 28), 2, activation))
