"""What is LeNet-5's and the residual network's own: equations, sizes, the layers they call, and what they refuse."""

import re
from math import prod

import pytest
import torch

from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.tape import Tape
from tests.support.networks import CNNS, LENETS, Problem, pictures
from training.families.networks import make_twin

PUBLISHED, BLOCKS = LENETS["as published"], CNNS["two blocks"]


def observed(problem: Problem, training: bool = True) -> tuple[Tape, dict[str, tuple[str, str]]]:
    """A tape that saw both passes, and the equations of the parameters."""
    tape, params = Tape(training=training, observes=True, **problem.pass_on), problem.params
    with torch.inference_mode():
        logits = problem.model.forward(params, problem.data[0], tape)
        problem.model.backward(params, torch.ones_like(logits), {}, tape)
    return tape, tape.equations(params)


def assert_equations(equations, problem: Problem, expected: dict[str, tuple[str, str]]):
    """Of every parameter that of the pattern that it fits."""
    assert list(equations) == list(problem.model.shapes)
    for name, equation in equations.items():
        assert [equation] == [expected[pattern] for pattern in expected if re.fullmatch(pattern, name)], name


def test_lenets_equations_are_named():
    tape, equations = observed(PUBLISHED)
    expected = {"F7": "∂C/∂output", "F6.a": "LI1", "F6": "AC1", "C5.a": "LI1", "C5": "AC1", "S4": "CV1"}
    expected |= {"C3.a": "AP1", "C3": "AC1", "S2": "CV1", "C1.a": "AP1", "C1": "AC1"}
    assert list(tape.labels.items()) == list(expected.items())
    assert list(tape.outputs) == list(reversed(expected)) == list(make_twin(PUBLISHED.model).observed())
    of_c = {r"C\d\.weight": ("CV2", "W"), r"C\d\.bias": ("CV3", "b")}
    assert_equations(equations, PUBLISHED, of_c | {r"F\d\.weight": ("LI2", "W"), r"F\d\.bias": ("LI3", "b")})


def test_the_residual_networks_equations_are_named():
    problem, _ = BLOCKS.dropped(0.4)
    tape, equations = observed(problem)
    expected = {"linear": "∂C/∂output", "dropout": "LI1", "pool": "DO1"}
    within = {"norm2": "AC1", "conv2": "BN3", "norm1.a": "CV1", "norm1": "AC1", "conv1": "BN3"}
    for stage, above in (("stage2", "AA1"), ("stage1", "CV1")):
        for block, back in (("block2", above), ("block1", "RS1")):
            expected |= {f"{stage}.{block}.{name}": label for name, label in {"norm2.a": back, **within}.items()}
        of_a_stage = {"norm.a": "RS1", "norm": "AC1", "pool": "BN3", "conv": "MP1"}
        expected |= {f"{stage}.{name}": label for name, label in of_a_stage.items()}
    assert list(tape.labels.items()) == list(expected.items())
    assert list(tape.outputs) == list(reversed(expected)) == list(make_twin(problem.model).observed())
    of_stages = {r".*norm\d?\.weight": ("BN2", "gamma"), r".*norm\d?\.bias": ("BN1", "beta"), ".*conv.*": ("CV2", "W")}
    assert_equations(equations, problem, of_stages | {"linear.weight": ("LI2", "W"), "linear.bias": ("LI3", "b")})
    evaluated, of_parameters = observed(problem, training=False)
    changed = {"BN3": "BN4", "DO1": "LI1"}
    assert evaluated.labels == {name: changed.get(l, l) for name, l in expected.items() if name != "dropout"}
    assert of_parameters == equations


def test_channels_come_last_in_memory_all_the_way():
    """For speed: a layer that got the other order would hand it on."""
    tape, _ = observed(BLOCKS)
    maps = [name for name, z in tape.outputs.items() if z.dim() == 4]
    assert len(maps) == 23 + 10  # and the activations
    for name in maps:
        assert tape.outputs[name].is_contiguous(memory_format=torch.channels_last), name
        if tape.labels[name] != "AA1":  # one number for each map, spread over its places
            assert tape.deltas[name].is_contiguous(memory_format=torch.channels_last), name


def test_lenets_sizes_are_those_of_the_paper():
    """The parameters are known of this variant, whose S have none and whose C3 sees all of S2's maps."""
    sizes = {"C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5), "C5": (120, 1, 1), "F6": (84,)}
    activations = {f"{name}.a": sizes[name] for name in ("C1", "C3", "C5", "F6")}
    for problem in (PUBLISHED, LENETS["unpadded"]):
        outputs = observed(problem)[0].outputs
        assert {name: tuple(z.shape[1:]) for name, z in outputs.items() if name != "F7"} == sizes | activations
    shapes = PUBLISHED.model.shapes
    counts = {
        name: prod(shapes[f"{name}.weight"]) + prod(shapes[f"{name}.bias"]) for name in ("C1", "C3", "C5", "F6", "F7")
    }
    assert counts == {"C1": 156, "C3": 2_416, "C5": 48_120, "F6": 10_164, "F7": 850}


def test_the_default_cnn_is_of_the_size_it_says():
    model = CNN((1, 28, 28), 10)
    assert sum(map(prod, model.shapes.values())) == 121_274
    tape, _ = observed(pictures(model, "quadratic", 2))
    sizes = [tuple(tape.outputs[f"stage{s}.pool"].shape[1:]) for s in (1, 2, 3)]
    assert sizes == [(16, 14, 14), (32, 7, 7), (64, 3, 3)]


def test_the_calls_know_their_layers():
    lenet, _ = observed(PUBLISHED)
    C, S, F = ["conv2d", "scaled_tanh"], ["avg_pool2d"], ["linear"]
    assert [call.kind for call in lenet.calls.values()] == [*C, *S, *C, *S, *C, *F, "scaled_tanh", *F]
    problem, _ = BLOCKS.dropped(0.4)
    for training in (True, False):
        cnn, _ = observed(problem, training)
        block = ["conv2d", "batch_norm", "gelu"] * 2
        stage = ["conv2d", "max_pool2d", "batch_norm", "gelu", *block, *block]
        end = ["adaptive_avg_pool2d", *["dropout"] * training, "linear"]
        assert [call.kind for call in cnn.calls.values()] == [*stage, *stage, *end]


LENET, PICTURE = "LeNet-5 reads pictures of 28×28 or 32×32 pixels, not of", "(channels, height, width) and classes are"
ACTIVATIONS = "'swish' is not an activation; there are "
CHANNELS = "make no network: give channels from 1, blocks from 0"
LIMITED = "allow {}: give channels for so many stages at most"
DROPOUT = "but it must be from 0 to below 1"
REFUSED = [
    (LeNet5, ((1, 20, 20), 3), {}, f"{LENET} 20×20"),
    (LeNet5, ((1, 28, 32), 3), {}, f"{LENET} 28×32"),
    (LeNet5, ((0, 28, 28), 3), {}, f"shape (0, 28, 28) and 3 classes make no network: {PICTURE} from 1"),
    (LeNet5, ((1, 28, 28), 0), {}, f"shape (1, 28, 28) and 0 classes make no network: {PICTURE} from 1"),
    (LeNet5, ((1, 28, 28), 3, "swish"), {}, ACTIVATIONS),
    (CNN, ((28, 28), 3), {}, f"shape (28, 28) and 3 classes make no network: {PICTURE} from 1"),
    (CNN, ((1, 0, 9), 3), {}, f"shape (1, 0, 9) and 3 classes make no network: {PICTURE} from 1"),
    (CNN, ((1, 28, 28), 3), {"activation": "swish"}, ACTIVATIONS),
    (CNN, ((1, 7, 30), 3), {}, f"3 stages halve a picture 3 times, and 7×30 pixels {LIMITED.format(2)}"),
    (CNN, ((1, 1, 1), 3, (4,)), {}, f"1 stages halve a picture 1 times, and 1×1 pixels {LIMITED.format(0)}"),
    (CNN, ((1, 28, 28), 3, ()), {}, f"channels () and 1 blocks {CHANNELS}"),
    (CNN, ((1, 28, 28), 3, (4, 0)), {}, f"channels (4, 0) and 1 blocks {CHANNELS}"),
    (CNN, ((1, 28, 28), 3), {"blocks": -1}, f"channels (16, 32, 64) and -1 blocks {CHANNELS}"),
    (CNN, ((1, 28, 28), 3), {"dropout": 1.0}, f"dropout is 1.0, {DROPOUT}"),
    (CNN, ((1, 28, 28), 3), {"dropout": -0.1}, f"dropout is -0.1, {DROPOUT}"),
    (CNN, ((1, 28, 28), 3), {"dropout": float("nan")}, f"dropout is nan, {DROPOUT}"),
]


@pytest.mark.parametrize(("model", "given", "options", "said"), REFUSED)
def test_configurations_that_make_no_network_are_refused(model, given, options, said):
    end = "" if said == ACTIVATIONS else "$"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}{end}"):
        model(*given, **options)


def test_the_least_that_makes_a_network():
    for model in (CNN((1, 2, 2), 1, (1,), 0), CNN((1, 8, 9), 1), CNN((1, 28, 28), 3, dropout=0.999)):
        assert model.shapes


@pytest.mark.parametrize("problem", [LENETS["color"], BLOCKS], ids=["LeNet-5", "CNN"])
def test_rows_of_another_length_are_refused(problem: Problem):
    x = problem.data[0]
    sizes = "×".join(map(str, problem.model.shape))
    for wrong in (x[:, 1:], x.view(len(x), *problem.model.shape), x[0], x.repeat(1, 2)):
        said = f"x is {tuple(wrong.shape)}: give rows of {x.shape[1]} numbers, {sizes} pictures"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            problem.model.forward(problem.params, wrong, Tape(buffers=problem.buffers))
