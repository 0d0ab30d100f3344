"""explain.py: every number of an explanation and of its page, against autograd.

What it refuses is in test_bad_input.py, the page in a browser in test_explain_page.py.
"""

import json
import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import explain as script
import train
from explanation.figures import COLUMNS
from explanation.network_figure import NEURONS
from explanation.numbers import Explanation, explain
from explanation.page import page
from explanation.plotly_layout import Chart, Panel
from explanation.plotly_traces import cells, number, waterfall
from explanation.static_figures import static_image
from tests.support.both_ways import TWIN_LOSSES, random_parameters
from tests.support.running import call, flags, manual_of, values, write_npz
from training.data import Dataset, Split, load
from training.families.configure import configure
from training.prediction import Trained, load_trained

pytestmark = pytest.mark.slow

Capsys = pytest.CaptureFixture[str]
ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.01),
    "softplus": F.softplus,
    "gelu": F.gelu,
    "silu": F.silu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "scaled_tanh": lambda z: 1.7159 * torch.tanh(2 / 3 * z),
    "identity": lambda z: z,
}
RATES = (0.01, 0.3)


def a_network(
    activation: tuple[str, ...] = ("sigmoid",),
    loss: str = "quadratic",
    hidden: tuple[int, ...] = (6, 4),
    shape: tuple[int, ...] = (5,),
    seed: int = 0,
) -> tuple[Trained, Tensor, Tensor]:
    """One at random parameters that tells three classes, named with what HTML must escape, and seven examples."""
    smoothed, name = loss == "smoothed", "softmax-cross-entropy" if loss == "smoothed" else loss
    config = configure(
        dataset="npz",
        hidden=hidden,
        activation=activation,  # type: ignore[arg-type]
        loss=name,  # type: ignore[arg-type]
        label_smoothing=0.15 if smoothed else 0.0,
        dtype="float64",
    )
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(7, prod(shape), generator=generator, dtype=torch.float64)
    y = torch.tensor([2, 0, 1, 1, 2, 0, 2])
    data = Dataset("npz", Split(x, y), Split(x, y), shape, ("<b>&", "</script>", "c"), "")
    learner = manual_of(config, data)
    learner.params.load_state_dict(random_parameters(learner.model, seed, gain=2.0))
    return Trained(config, data, learner), x, y


def explained(trained: Trained, x: Tensor, y: Tensor) -> Explanation:
    return explain(trained, x, y, range(len(y)), RATES)


class Autograd:
    """The same network by autograd: no code of the project but the twin's costs."""

    def __init__(self, trained: Trained, theta: Tensor | None = None) -> None:
        config = trained.config
        self.activations = [ACTIVATIONS[name] for name in config.activations]
        self.loss = TWIN_LOSSES["smoothed" if config.label_smoothing else config.loss]
        self.theta = (trained.learner.params.theta if theta is None else theta).clone().requires_grad_()
        self.W, self.b, start = [], [], 0
        for n_out, n_in in (s for s in trained.learner.model.shapes.values() if len(s) == 2):
            self.W.append(self.theta[start : start + n_out * n_in].view(n_out, n_in))
            self.b.append(self.theta[start + n_out * n_in : start + n_out * (n_in + 1)])
            start += n_out * (n_in + 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        zs, activations = [], [x]
        for W, b, sigma in zip(self.W, self.b, self.activations, strict=True):
            zs.append(activations[-1] @ W.T + b)
            activations.append(sigma(zs[-1]))
        return zs, activations

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.forward(x)[1][-1], y, len(y))

    def costs(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([self.cost(x[i : i + 1], y[i : i + 1]).detach() for i in range(len(y))])

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.autograd.grad(self.cost(x, y), self.theta)[0]


class Parts(NamedTuple):
    """Of one example, autograd's, a list entry per layer: gradients with respect to a (the input first), z, W, b."""

    z: list[Tensor]
    a: list[Tensor]
    da: list[Tensor]
    dz: list[Tensor]
    dW: list[Tensor]
    db: list[Tensor]
    slope: list[Tensor]
    cost: float


def parts(trained: Trained, x: Tensor, y: Tensor) -> Parts:
    net = Autograd(trained)
    net.W, net.b = ([t.detach().requires_grad_() for t in ts] for ts in (net.W, net.b))
    zs, activations = net.forward(x.clone().requires_grad_())
    C = net.loss(activations[-1], y, len(y))
    n = len(zs)
    asked = [*activations, *zs, *net.W, *net.b]
    found = [g.detach() for g in torch.autograd.grad(C, asked, retain_graph=True, materialize_grads=True)]
    slopes = []
    for z, sigma in zip(zs, net.activations, strict=True):
        free = z.detach().requires_grad_()
        slopes.append(torch.autograd.grad(sigma(free).sum(), free)[0][0])
    return Parts(
        [z.detach()[0] for z in zs],
        [a.detach()[0] for a in activations],
        [g[0] for g in found[: n + 1]],
        [g[0] for g in found[n + 1 : 2 * n + 1]],
        found[2 * n + 1 : 3 * n + 1],
        found[3 * n + 1 :],
        slopes,
        C.item(),
    )


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-300


NETWORKS = {
    **{name: {"activation": (name,)} for name in ACTIVATIONS},
    **{name: {"loss": name} for name in TWIN_LOSSES},
    "one hidden layer": {"hidden": (4,), "activation": ("tanh", "sigmoid")},
    "four hidden layers": {"hidden": (5, 4, 6, 3), "activation": ("tanh", "gelu", "relu", "softplus", "identity")},
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
class TestNumbers:
    def test_forward_and_backward_of_the_example(self, options: dict[str, Any]) -> None:
        trained, x, y = a_network(**options)
        e, truth = explained(trained, x, y), parts(trained, x[:1], y[:1])
        assert e.cost == pytest.approx(truth.cost, rel=1e-13)
        assert e.cost_terms.sum().item() == pytest.approx(truth.cost, rel=1e-13)
        assert_equal(e.dx, truth.da[0])
        for l, layer in enumerate(e.layers):
            assert_equal(layer.a_before, truth.a[l])
            assert_equal(layer.a, truth.a[l + 1])
            assert_equal(layer.z, truth.z[l])
            assert_equal(layer.slope, truth.slope[l])
            assert_equal(layer.da, truth.da[l + 1])
            assert_equal(layer.delta, truth.dz[l])
            assert_equal(layer.dW, truth.dW[l])
            assert_equal(layer.db, truth.db[l])
            assert layer.equation == ("BP1" if layer is e.layers[-1] else "BP2")

    def test_terms_add_up_to_what_they_are_terms_of(self, options: dict[str, Any]) -> None:
        trained, x, y = a_network(**options)
        e, truth = explained(trained, x, y), parts(trained, x[:1], y[:1])
        for l, layer in enumerate(e.layers):
            assert_equal(layer.b + layer.z_terms.sum(dim=1), truth.z[l])
            assert_equal(layer.wishes_before.sum(dim=0), -truth.da[l])

    def test_the_gradients_of_a_mini_batch(self, options: dict[str, Any]) -> None:
        trained, x, y = a_network(**options)
        e, net = explained(trained, x, y), Autograd(trained)
        for i in range(len(y)):
            assert_equal(e.batch.gradients[i], net.gradient(x[i : i + 1], y[i : i + 1]))
        assert_equal(e.batch.average, net.gradient(x, y))
        assert_equal(e.batch.gradients.mean(dim=0), e.batch.average, 1e-14)
        assert_equal(e.batch.costs, net.costs(x, y))

    def test_steps(self, options: dict[str, Any]) -> None:
        """Costs after a step, and their first order: the derivative of the cost along the step, times its length."""
        trained, x, y = a_network(**options)
        e, net = explained(trained, x, y), Autograd(trained)
        for steps, direction in ((e.own_step, net.gradient(x[:1], y[:1])), (e.average_step, net.gradient(x, y))):
            for r, rate in enumerate(RATES):
                moved = Autograd(trained, net.theta.detach() - rate * direction)
                assert_equal(steps.costs[r], moved.costs(x, y))
                slopes = [net.gradient(x[i : i + 1], y[i : i + 1]) @ direction for i in range(len(y))]
                assert_equal(steps.predicted[r], -rate * torch.stack(slopes))


def test_a_small_step_helps_as_much_as_is_predicted() -> None:
    trained, x, y = a_network(("tanh",))
    e = explain(trained, x, y, range(7), [1e-6])
    assert_equal(e.own_step.costs[0] - e.batch.costs, e.own_step.predicted[0], 1e-4)
    assert e.own_step.costs[0, 0] < e.batch.costs[0]


def test_agreement_is_the_cosine() -> None:
    e = explained(*a_network())
    gradients = e.batch.gradients
    assert_equal(e.batch.agreement, F.cosine_similarity(gradients, gradients[:1]))
    assert_equal(e.batch.agreement_with_average, F.cosine_similarity(gradients, e.batch.average.unsqueeze(0)))
    assert e.batch.agreement[0] == pytest.approx(1)


def test_an_example_without_a_gradient_agrees_with_nobody() -> None:
    batch = explained(*a_network()).batch
    still = replace(batch, gradients=torch.cat([batch.gradients[:1], torch.zeros_like(batch.gradients[1:])]))
    assert still.agreement.tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0])


def test_sensitivities_are_the_sizes_of_the_weights_gradients() -> None:
    trained, x, y = a_network(("relu",))
    x[0, 2] = 0  # six weights whose a is 0
    e, truth = explained(trained, x, y), parts(trained, x[:1], y[:1])
    sizes = torch.cat([dW.flatten().abs() for dW in truth.dW])
    assert_equal(e.sensitivities, sizes)
    assert len(e.ranking) == (sizes > 0).sum() < len(sizes)
    most, least = e.weight_at(int(e.ranking[0])), e.weight_at(int(e.ranking[-1]))
    assert abs(most.gradient) == pytest.approx(sizes.max().item(), rel=1e-12)
    assert abs(least.gradient) == pytest.approx(sizes[sizes > 0].min().item(), rel=1e-12)
    for weight in (most, least):
        name, j, k = re.fullmatch(r"(layer\d\.weight)\[(\d+), (\d+)\]", weight.name).groups()  # type: ignore[union-attr]
        assert weight.value == trained.learner.params[name][int(j), int(k)].item()
        assert weight.gradient == pytest.approx(truth.dW[weight.layer - 1][int(j), int(k)].item(), rel=1e-12)


# The page


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def said(text: str, id_: str) -> float:
    """The number that an element holds: three digits, as one writes it."""
    found = re.search(rf'<b id="{id_}">(.*?)</b>', text)
    assert found is not None, id_
    mantissa, _, exponent = found[1].replace("−", "-").partition("·10")
    return float(mantissa) * 10.0 ** int(exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)


def near(expected: Tensor | float, rel: float = 1e-6) -> Any:
    return pytest.approx(expected.tolist() if isinstance(expected, Tensor) else expected, rel=rel, abs=1e-15)


PAGES = {
    "points": {"shape": (2,), "hidden": (6, 4), "activation": ("tanh",), "loss": "softmax-cross-entropy"},
    "pictures": {"shape": (6, 4), "hidden": (5, 4)},
    "more neurons than are shown": {"shape": (6, 4), "hidden": (40, 36), "activation": ("gelu", "relu", "sigmoid")},
    "many inputs that are no picture": {"shape": (40,), "hidden": (4,), "loss": "sigmoid-cross-entropy"},
    "deep": {"shape": (3,), "hidden": (3,) * 9, "activation": ("softplus",), "loss": "smoothed"},
}


@pytest.fixture(scope="module", params=PAGES.values(), ids=PAGES.keys())
def shown(request: pytest.FixtureRequest) -> tuple[Explanation, Parts, dict[str, Any], str]:
    trained, x, y = a_network(**request.param)
    e = explained(trained, x, y)
    text = page(e, "training example 0")
    return e, parts(trained, x[:1], y[:1]), data_of(text), text


class TestPage:
    def test_outputs(self, shown: tuple) -> None:
        e, truth, data, text = shown
        assert said(text, "cost") == near(truth.cost, 5e-3)
        bars = [t for t in data["charts"]["outputs"]["data"] if t["type"] == "bar"]
        values, wishes, costs = (bar["x"] for bar in bars)
        assert wishes == near(-truth.da[-1])
        assert sum(costs) == near(truth.cost)
        z, loss = truth.z[-1], e.trained.config.loss
        expected = {"softmax-cross-entropy": z.softmax(0), "sigmoid-cross-entropy": z.sigmoid()}
        assert values == near(expected.get(loss, truth.a[-1]))
        (ticks,) = (t["x"] for t in data["charts"]["outputs"]["data"] if t["type"] == "scatter")
        smooth = e.trained.config.label_smoothing
        assert ticks == near(torch.eye(3, dtype=torch.float64)[2] * (1 - smooth) + smooth / 3)

    def test_what_a_click_on_a_neuron_shows(self, shown: tuple) -> None:
        """All terms together are what they are terms of; what is written is what autograd says."""
        e, truth, data, _ = shown
        layers = len(truth.z)
        assert {key.split(".")[0] for key in data["neurons"]} == {str(l) for l in range(1, layers + 1)}
        for key, neuron in data["neurons"].items():
            l, j = map(int, key.split("."))
            z, da, dz = truth.z[l - 1][j].item(), truth.da[l][j].item(), truth.dz[l - 1][j].item()
            assert said(neuron["html"], "z") == near(z, 6e-3)
            assert said(neuron["html"], "wish") == near(-da, 6e-3)
            assert said(neuron["html"], "delta") == near(-dz, 6e-3)
            assert said(neuron["html"], "bias") == near(-truth.db[l - 1][j].item(), 6e-3)
            k_a, k_w = truth.a[l - 1].abs().argmax(), e.layers[l - 1].W[j].abs().argmax()
            assert said(neuron["html"], "brightest") == near(-truth.dW[l - 1][j, k_a].item(), 6e-3)
            assert said(neuron["html"], "heaviest") == near(-dz * e.layers[l - 1].W[j, k_w].item(), 6e-3)
            sums = [t for t in neuron["chart"]["data"] if t["type"] == "waterfall"]
            assert len(sums) == (1 if l == layers else 2)
            for terms, total in zip(sums, (z, -da), strict=False):
                assert terms["measure"] == ["relative"] * (len(terms["y"]) - 1) + ["total"]
                assert terms["y"][-1] == near(total)
                assert sum(terms["y"][:-1]) == pytest.approx(total, rel=1e-5, abs=1e-6 * max(map(abs, terms["y"])))

    def test_the_three_ways_to_move_a_neuron(self, shown: tuple) -> None:
        e, truth, data, _ = shown
        for key, neuron in data["neurons"].items():
            l, j = map(int, key.split("."))
            dW, W, dz = truth.dW[l - 1][j], e.layers[l - 1].W[j], truth.dz[l - 1][j]
            if l == 1 and len(e.trained.data.shape) == 2:
                pictures = [torch.tensor(t["z"]).flatten() for t in neuron["chart"]["data"] if t["type"] == "heatmap"]
                for picture, expected in zip(pictures, (W, -dW, -dz * W), strict=True):
                    assert picture.tolist() == near(expected, 6e-3)
                continue
            weights, activations = (t for t in neuron["chart"]["data"] if t["type"] == "bar")
            brightest = truth.a[l - 1].abs().argsort(descending=True, stable=True)[:12]
            assert weights["y"] == near(torch.cat([-truth.db[l - 1][j : j + 1], -dW[brightest]]))
            heaviest = W.abs().argsort(descending=True, stable=True)[:12]
            assert activations["y"] == near(-dz * W[heaviest])

    def test_what_a_click_on_a_weight_shows(self, shown: tuple) -> None:
        e, truth, data, _ = shown
        assert data["weights"]
        for key, numbers in data["weights"].items():
            l, j, k = map(int, key.split(":"))
            W, a, dz = e.layers[l - 1].W[j, k], truth.a[l - 1][k], truth.dz[l - 1][j]
            terms = [W * a, dz * W, truth.z[l - 1][j], truth.da[l - 1][k]]
            assert numbers == near(torch.stack([W, a, dz, truth.dW[l - 1][j, k], *terms]))

    def test_the_network_is_drawn_as_it_is(self, shown: tuple) -> None:
        _, truth, data, _ = shown
        drawn = [t for t in data["charts"]["network"]["data"] if isinstance(t.get("customdata", [None])[0], str)]
        neurons = [key for t in drawn for key in t["customdata"] if "." in key]
        for l in range(1, len(truth.a)):
            own = [key for key in neurons if key.startswith(f"{l}.")]
            assert len(own) == len(set(own)) == min(len(truth.a[l]), NEURONS)
        assert {key for t in drawn for key in t["customdata"] if ":" in key} == set(data["weights"])

    def test_how_wishes_add_up(self, shown: tuple) -> None:
        e, truth, data, _ = shown
        for l in range(len(truth.z), 1, -1):
            (table,) = data["charts"][f"adding_up_layer{l}"]["data"]
            columns = [int(key.split(".")[1]) for key in table["customdata"][0]]
            *rows, gap, total, gap_again, delta = table["z"]
            assert {*gap, *gap_again} == {None}
            wishes = -truth.dz[l - 1].unsqueeze(1) * e.layers[l - 1].W[:, columns]
            if len(wishes) <= NEURONS:
                assert torch.tensor(rows).tolist() == [near(row, 1e-5) for row in wishes]
            summed = torch.tensor(rows, dtype=torch.float64).sum(dim=0)
            assert summed.tolist() == pytest.approx(total, rel=1e-5, abs=1e-6 * wishes.abs().max().item())
            assert total == near(-truth.da[l - 1][columns])
            assert delta == near(-truth.dz[l - 2][columns])

    def test_the_table_of_the_mini_batch(self, shown: tuple) -> None:
        e, _, data, _ = shown
        net = Autograd(e.trained)
        x, y = e.batch.x, e.batch.y
        table = data["charts"]["batch"]["data"][-1]
        axis = "yaxis2" if table["yaxis"] == "y2" else "yaxis"
        names = data["charts"]["batch"]["layout"][axis]["ticktext"]
        columns = [net.gradient(x[i : i + 1], y[i : i + 1]) for i in range(min(len(y), COLUMNS))]
        assert len(names) == len(set(names)) == len(table["z"])
        for name, row in zip(names, table["z"], strict=True):
            tensor, *index = re.findall(r"layer\d+\.[a-z]+|\d+(?=[,\]])", name)
            place = tuple(map(int, index))
            wishes = [-e.trained.learner.params.split(g)[tensor][place].item() for g in [*columns, net.gradient(x, y)]]
            assert [value for value in row if value is not None] == [near(wish) for wish in wishes]

    def test_steps(self, shown: tuple) -> None:
        e, _, data, _ = shown
        net = Autograd(e.trained)
        x, y = e.batch.x, e.batch.y
        each = torch.stack([net.gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(y))])
        assert [float(step["eta"]) for step in data["steps"]] == list(RATES)
        for rate, step in zip(RATES, data["steps"], strict=True):
            for side, direction in enumerate((each[0], net.gradient(x, y))):
                _, first_order, dots = step["chart"]["data"][3 * side : 3 * side + 3]
                moved = Autograd(e.trained, net.theta.detach() - rate * direction)
                assert dots["x"] == near(F.cosine_similarity(each, direction.unsqueeze(0)))
                assert dots["y"] == pytest.approx((moved.costs(x, y) - net.costs(x, y)).tolist(), rel=1e-6, abs=1e-12)
                assert first_order["y"] == near(-rate * each @ direction)

    def test_the_curve_of_sensitivities(self, shown: tuple) -> None:
        _, truth, data, _ = shown
        for curve, dW in zip(data["charts"]["sensitivity"]["data"], truth.dW, strict=True):
            sizes = dW.flatten().abs().sort(descending=True)[0]
            assert curve["y"] == near(sizes[torch.tensor(curve["x"]) - 1])
            assert curve["x"][0] == 1
            assert curve["x"][-1] == (sizes > 0).sum()

    def test_plotly_knows_every_setting(self, shown: tuple) -> None:
        """The page's script would ignore a misspelled one; Plotly's own schema does not."""
        *_, data, _ = shown
        for what in (*data["neurons"].values(), *data["steps"]):
            assert what["chart"]["data"]
        first, *_, last = data["neurons"].values()
        for chart in (*data["charts"].values(), first["chart"], last["chart"], data["steps"][0]["chart"]):
            go.Figure(chart)

    def test_a_class_may_be_called_anything(self, shown: tuple) -> None:
        *_, text = shown
        assert "<b>c</b>" in text
        assert "&lt;/script&gt;" in text
        assert text.count("</script>") == 3, "a class's name must not end the script that holds the data"


def test_a_layer_of_dead_neurons_leaves_no_weight_a_gradient() -> None:
    trained, x, y = a_network(("relu", "relu", "identity"))
    trained.learner.params["layer2.bias"].fill_(-100)
    text = page(explained(trained, x, y), "it")
    assert "Every weight's gradient is exactly 0" in text
    assert all(drawn["y"] for drawn in data_of(text)["charts"]["network"]["data"] if "y" in drawn)


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.12345, "0.123"), (-2.0, "−2"), (0.0, "0"), (1.5e-7, "1.5·10⁻⁷"), (-3e12, "−3·10¹²"), (0.00012, "0.00012")],
)
def test_numbers_as_one_writes_them(value: float, written: str) -> None:
    assert number(value) == written


# Stills


def color_at(chart: Chart, across: float, down: float) -> tuple[int, ...]:
    picture = static_image(chart)
    return picture.getpixel((int(across * picture.width), int(down * picture.height)))[:3]  # type: ignore[index]


BLUE, VERMILION = (0, 114, 178), (213, 94, 0)
BARE = {"visible": False}


@pytest.mark.parametrize("upside_down", [False, True])
def test_a_still_shows_a_table_as_plotly_does(upside_down: bool) -> None:
    """The first row is at the bottom, or where the axis is reversed on top."""
    yaxis = BARE | ({"autorange": "reversed"} if upside_down else {})
    chart = Chart([[Panel("a table", [cells(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), False)], BARE, yaxis)]])
    first, last = (0.3, 0.7) if upside_down else (0.7, 0.3)
    assert color_at(chart, 0.25, first) == BLUE
    assert color_at(chart, 0.75, last) == VERMILION
    assert min(color_at(chart, 0.75, first)) > 250


def test_a_still_shows_terms_on_top_of_each_other_and_their_total() -> None:
    chart = Chart([[Panel("a sum", [waterfall([("a", 3.0), ("b", -2.0)], 1.0, "all")], {}, {})]])
    assert color_at(chart, 0.2, 0.75) == BLUE
    assert color_at(chart, 0.5, 0.3) == VERMILION
    assert color_at(chart, 0.5, 0.75) == (255, 255, 255), "the second begins where the first ends"
    assert color_at(chart, 0.85, 0.75) == (51, 51, 51)


# The script


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "digits"
    options = {"dataset": "sample", "max_steps": 20, "epochs": 1, "lr": 10.0, "run_dir": path}
    assert train.main(list(flags(options))) == 0
    return path


def test_a_training_example(digits: Path, sample: Dataset, tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "seven.html"
    done = call(capsys, script.main, "--checkpoint", digits, "--index", 7, "--out", out)
    assert (done.status, done.err) == (0, "")
    x, y = sample.train.batch(torch.tensor([7]), torch.float64)
    cost = Autograd(load_trained(digits), load_trained(digits).learner.params.theta.double()).cost(x, y).item()
    assert done.out == f"training example 7: cost {cost:.4g}; page in {out}\n"
    text = out.read_text(encoding="utf-8")
    assert said(text, "cost") == near(cost, 5e-3)
    assert "<title>What training example 7 wants</title>" in text
    assert "784-16-16-10, sigmoid, quadratic cost, after 20 steps." in text
    picture = next(t for t in data_of(text)["charts"]["outputs"]["data"] if t["type"] == "heatmap")
    assert torch.tensor(picture["z"]).flatten().tolist() == near(x[0], 6e-3)


def test_a_picture_of_ones_own(digits: Path, sample: Dataset, tmp_path: Path, capsys: Capsys) -> None:
    """With its label, or without: then the target is what the network says."""
    row = int((sample.test.y == 1).nonzero()[0])
    Image.fromarray(sample.test.x[row].view(28, 28).numpy()).save(tmp_path / "one.png")
    asked = ["--checkpoint", digits, "--image", tmp_path / "one.png", "--out", tmp_path / "page.html"]
    done = call(capsys, script.main, *asked, "--label", 3)
    assert done.out.startswith("one.png (class 3): cost ")
    assert "The target is <b>3</b>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert call(capsys, script.main, *asked).status == 0
    assert "the network rightly says" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_figures_for_tensorboard(digits: Path, tmp_path: Path, capsys: Capsys) -> None:
    before = values(digits, "loss/test")
    asked = ["--checkpoint", digits / "last.pt", "--out", tmp_path / "page.html", "--tensorboard"]
    assert call(capsys, script.main, *asked).status == 0
    events = EventAccumulator(str(digits), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("explain/")]
    names = ("outputs", "network", "neuron", "adding_up_layer3", "adding_up_layer2", "sensitivity", "batch", "step")
    assert tags == [f"explain/{name}" for name in names]
    for tag in tags:
        (event,) = events.Images(tag)
        assert event.step == 20
        assert event.width > 1000
    assert len(events.Scalars("loss/test")) == len(before), "the run's own events are all there still"


def test_points_have_no_picture(tmp_path: Path, capsys: Capsys) -> None:
    options = {"preset": "points", "epochs": 1, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    asked = ["--checkpoint", tmp_path / "run", "--out", tmp_path / "page.html", "--tensorboard", "--index", 1999]
    assert call(capsys, script.main, *asked).status == 0
    charts = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))["charts"]
    assert not [t for name in ("outputs", "network") for t in charts[name]["data"] if t["type"] == "heatmap"]


def test_arrays_and_examples_that_were_held_out(tmp_path: Path, capsys: Capsys) -> None:
    """Indices count the run's own training set, and a small one makes a small mini-batch."""
    npz = write_npz(tmp_path / "arrays.npz", train=20)
    options = {"dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 3, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options | {"validation": 12})).status == 0
    asked = ["--checkpoint", tmp_path / "run", "--out", tmp_path / "page.html", "--index"]
    assert call(capsys, script.main, *asked, 7).status == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The average of all 8 wishes" in text
    refused = call(capsys, script.main, *asked, 8)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "from 0 to 7" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(512, 512), (40,) * 12], ids=["wide", "deep"])
def test_the_page_stays_small(hidden: tuple[int, ...]) -> None:
    config = configure(dataset="sample", hidden=hidden, activation=("tanh",), loss="softmax-cross-entropy")
    data = load("sample")
    trained = Trained(config, data, manual_of(config, data))
    e = explain(trained, *data.train.batch(torch.arange(32), torch.float64), range(32), np.geomspace(0.001, 1, 7))
    assert len(page(e, "it").encode()) < 8e6
