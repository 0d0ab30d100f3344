"""Every number of an explanation and of its page, against autograd. The page in a browser is in test_browser.py."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F

from explanation.beginning import moment
from explanation.figures import COLUMNS
from explanation.network_figure import NEURONS
from explanation.numbers import explain
from explanation.page import page
from explanation.plotly_layout import Chart, Panel
from explanation.plotly_traces import cells, number, waterfall
from explanation.static_figures import static_image
from reference.mlp import ACTIVATIONS
from tests.support.both_ways import TWIN_LOSSES
from tests.support.explained import RATES, Autograd, a_network, data_of, explained, said
from tests.support.running import manual_of
from training.data import load
from training.families.configure import configure
from training.prediction import Trained

NETWORKS = {
    **{name: {"activation": (name,)} for name in ACTIVATIONS},
    **{name: {"loss": name} for name in TWIN_LOSSES},
    "one hidden layer": {"hidden": (4,), "activation": ("tanh", "sigmoid")},
    "four hidden layers": {"hidden": (5, 4, 6, 3), "activation": ("tanh", "gelu", "relu", "softplus", "identity")},
}


def assert_equal(actual, expected, tolerance=1e-12):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-300


class TestNumbers:
    @pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
    def test_numbers_are_those_of_autograd(self, options):
        """Forward and backward pass, terms that add up, a mini-batch's gradients, and the costs after a step."""
        trained, x, y = a_network(**options)
        e, net, truth = explained(trained, x, y), Autograd(trained), Autograd(trained).parts(x[:1], y[:1])
        assert e.cost == pytest.approx(truth.cost, rel=1e-13)
        assert e.cost_terms.sum().item() == pytest.approx(truth.cost, rel=1e-13)
        assert_equal(e.dx, truth.da[0])
        expected = {"a_before": truth.a, "a": truth.a[1:], "z": truth.z, "slope": truth.slope, "da": truth.da[1:]}
        expected |= {"delta": truth.dz, "dW": truth.dW, "db": truth.db}
        for l, layer in enumerate(e.layers):
            for name, of_layers in expected.items():
                assert_equal(getattr(layer, name), of_layers[l])
            assert_equal(layer.b + layer.z_terms.sum(dim=1), truth.z[l])
            assert_equal(layer.wishes_before.sum(dim=0), -truth.da[l])
            assert layer.equation == ("BP1" if layer is e.layers[-1] else "BP2")

        each, average = net.gradients(x, y), net.gradient(x, y)
        assert_equal(e.batch.gradients, each)
        assert_equal(e.batch.average, average)
        assert_equal(e.batch.gradients.mean(dim=0), e.batch.average, 1e-14)
        assert_equal(e.batch.costs, net.costs(x, y))
        for steps, direction in ((e.own_step, each[0]), (e.average_step, average)):
            for r, rate in enumerate(RATES):
                assert_equal(steps.costs[r], Autograd(trained, net.theta.detach() - rate * direction).costs(x, y))
                assert_equal(steps.predicted[r], -rate * each @ direction)

    def test_agreement_is_the_cosine_and_0_of_an_example_without_a_gradient(self):
        batch = explained(*a_network()).batch
        assert_equal(batch.agreement, F.cosine_similarity(batch.gradients, batch.gradients[:1]))
        assert_equal(batch.agreement_with_average, F.cosine_similarity(batch.gradients, batch.average.unsqueeze(0)))
        still = replace(batch, gradients=torch.cat([batch.gradients[:1], torch.zeros_like(batch.gradients[1:])]))
        assert still.agreement.tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0])

    def test_sensitivities_are_the_sizes_of_the_weights_gradients(self):
        trained, x, y = a_network(("relu",))
        x[0, 2] = 0  # six weights whose a is 0
        e, truth = explained(trained, x, y), Autograd(trained).parts(x[:1], y[:1])
        sizes = torch.cat([dW.flatten().abs() for dW in truth.dW])
        assert_equal(e.sensitivities, sizes)
        assert len(e.ranking) == (sizes > 0).sum() < len(sizes)
        for place, size in ((0, sizes.max()), (-1, sizes[sizes > 0].min())):
            weight = e.weight_at(int(e.ranking[place]))
            assert abs(weight.gradient) == pytest.approx(size.item(), rel=1e-12)
            name, j, k = re.fullmatch(r"(layer\d\.weight)\[(\d+), (\d+)\]", weight.name).groups()
            assert weight.value == trained.learner.params[name][int(j), int(k)].item()
            assert weight.gradient == pytest.approx(truth.dW[weight.layer - 1][int(j), int(k)].item(), rel=1e-12)


def near(expected, rel=1e-6):
    return pytest.approx(expected.tolist() if isinstance(expected, torch.Tensor) else expected, rel=rel, abs=1e-15)


def sum_near(total, terms):
    """Of terms that may cancel."""
    return pytest.approx(total, rel=1e-5, abs=1e-6 * max(map(abs, terms)))


def of_type(traces, kind):
    return [trace for trace in traces if trace["type"] == kind]


PAGES = {
    "points": {"shape": (2,), "hidden": (6, 4), "activation": ("tanh",), "loss": "softmax-cross-entropy"},
    "pictures": {"shape": (6, 4), "hidden": (5, 4)},
    "more neurons than are shown": {"shape": (6, 7), "hidden": (40, 36), "activation": ("gelu", "relu", "sigmoid")},
    "many inputs that are no picture": {"shape": (40,), "hidden": (4,), "loss": "sigmoid-cross-entropy"},
    "deep": {"shape": (3,), "hidden": (3,) * 9, "activation": ("softplus",), "loss": "smoothed"},
}


@pytest.fixture(scope="module", params=PAGES.values(), ids=PAGES)
def shown(request):
    """An explanation, what autograd says of the example, and the page and its data."""
    trained, x, y = a_network(**request.param)
    e, net = explained(trained, x, y), Autograd(trained)
    text = page(e, "training example 0", "it is <the first>", moment(e))
    data = data_of(text)
    truth, each, average = net.parts(x[:1], y[:1]), net.gradients(x, y), net.gradient(x, y)
    charts = {name: chart["data"] for name, chart in data["charts"].items()}
    return SimpleNamespace(
        e=e, net=net, x=x, y=y, truth=truth, each=each, average=average, data=data, charts=charts, text=text
    )


class TestPage:
    @pytest.mark.sweep(3)
    def test_outputs(self, shown):
        truth, config, traces = shown.truth, shown.e.trained.config, shown.charts["outputs"]
        assert said(shown.text, "cost") == near(truth.cost, 5e-3)
        values, wishes, costs = (trace["x"] for trace in of_type(traces, "bar"))
        assert wishes == near(-truth.da[-1])
        assert sum(costs) == near(truth.cost)
        z = truth.z[-1]
        expected = {"softmax-cross-entropy": z.softmax(0), "sigmoid-cross-entropy": z.sigmoid()}
        assert values == near(expected.get(config.loss, truth.a[-1]))
        (ticks,) = of_type(traces, "scatter")
        smooth = config.label_smoothing
        assert ticks["x"] == near(torch.eye(3, dtype=torch.float64)[2] * (1 - smooth) + smooth / 3)

    def test_what_a_click_on_a_neuron_shows(self, shown):
        """What autograd says, in words; terms that together are what they are terms of; three ways to move it."""
        truth, layers = shown.truth, len(shown.truth.z)
        assert {key.split(".")[0] for key in shown.data["neurons"]} == {str(l) for l in range(1, layers + 1)}
        for key, neuron in shown.data["neurons"].items():
            l, j = map(int, key.split("."))
            z, a, da = truth.z[l - 1][j].item(), truth.a[l - 1], truth.da[l][j].item()
            dz, dW, db, W = truth.dz[l - 1][j], truth.dW[l - 1][j], truth.db[l - 1][j], shown.e.layers[l - 1].W[j]
            wishes, traces = -dz * W, neuron["chart"]["data"]
            brightest, heaviest = (v.abs().argsort(descending=True, stable=True)[:12] for v in (a, W))
            written = {"z": z, "wish": -da, "delta": -dz.item(), "bias": -db.item()}
            written |= {"brightest": -dW[brightest[0]].item(), "heaviest": wishes[heaviest[0]].item()}
            for id_, expected in written.items():
                assert said(neuron["html"], id_) == near(expected, 6e-3), (key, id_)
            sums = of_type(traces, "waterfall")
            assert len(sums) == (1 if l == layers else 2), key
            for waterfall_, total in zip(sums, (z, -da), strict=False):
                *terms, last = waterfall_["y"]
                assert waterfall_["measure"] == ["relative"] * len(terms) + ["total"], key
                assert last == near(total), key
                assert sum(terms) == sum_near(total, waterfall_["y"])

            if l == 1 and len(shown.e.trained.data.shape) == 2:
                pictures = [torch.tensor(trace["z"]).flatten().tolist() for trace in of_type(traces, "heatmap")]
                assert pictures == [near(W, 6e-3), near(-dW, 6e-3), near(wishes, 6e-3)]
            else:
                weights, activations = (trace["y"] for trace in of_type(traces, "bar"))
                assert weights == near(torch.cat([-db[None], -dW[brightest]]))
                assert activations == near(wishes[heaviest])

    @pytest.mark.sweep(3)
    def test_what_a_click_on_a_weight_shows(self, shown):
        truth = shown.truth
        assert shown.data["weights"]
        for key, numbers in shown.data["weights"].items():
            l, j, k = map(int, key.split(":"))
            W, a, dz = shown.e.layers[l - 1].W[j, k], truth.a[l - 1][k], truth.dz[l - 1][j]
            terms = [W * a, dz * W, truth.z[l - 1][j], truth.da[l - 1][k]]
            assert numbers == near(torch.stack([W, a, dz, truth.dW[l - 1][j, k], *terms])), key

    def test_the_network_is_drawn_as_it_is(self, shown):
        """And a picture only of what is one."""
        pictures = [len(of_type(shown.charts[name], "heatmap")) for name in ("outputs", "network")]
        is_picture = len(shown.e.trained.data.shape) == 2
        assert pictures == [is_picture, is_picture and len(shown.x[0]) > NEURONS]
        keys = [key for trace in shown.charts["network"] for key in trace.get("customdata", []) if isinstance(key, str)]
        for l, a in enumerate(shown.truth.a[1:], start=1):
            own = [key for key in keys if key.startswith(f"{l}.")]
            assert len(own) == len(set(own)) == min(len(a), NEURONS)
        assert {key for key in keys if ":" in key} == set(shown.data["weights"])

    def test_how_wishes_add_up(self, shown):
        truth = shown.truth
        for l in range(len(truth.z), 1, -1):
            (table,) = shown.charts[f"adding_up_layer{l}"]
            columns = [int(key.split(".")[1]) for key in table["customdata"][0]]
            *rows, gap, total, gap_again, delta = table["z"]
            assert {*gap, *gap_again} == {None}
            wishes = -truth.dz[l - 1].unsqueeze(1) * shown.e.layers[l - 1].W[:, columns]
            if len(wishes) <= NEURONS:
                assert rows == [near(row, 1e-5) for row in wishes]
            summed = torch.tensor(rows, dtype=torch.float64).sum(dim=0)
            assert summed.tolist() == sum_near(total, wishes.flatten().tolist())
            assert total == near(-truth.da[l - 1][columns])
            assert delta == near(-truth.dz[l - 2][columns])

    def test_the_table_of_the_mini_batch(self, shown):
        table = shown.charts["batch"][-1]
        axis = "yaxis2" if table["yaxis"] == "y2" else "yaxis"
        names = shown.data["charts"]["batch"]["layout"][axis]["ticktext"]
        assert len(names) == len(set(names)) == len(table["z"])
        split = [shown.e.trained.learner.params.split(g) for g in (*shown.each[:COLUMNS], shown.average)]
        for name, row in zip(names, table["z"], strict=True):
            tensor, *index = re.findall(r"layer\d+\.[a-z]+|\d+(?=[,\]])", name)
            wishes = [-g[tensor][tuple(map(int, index))].item() for g in split]
            assert [value for value in row if value is not None] == [near(wish) for wish in wishes]

    def test_steps(self, shown):
        net, x, y = shown.net, shown.x, shown.y
        assert [float(step["eta"]) for step in shown.data["steps"]] == list(RATES)
        for rate, step in zip(RATES, shown.data["steps"], strict=True):
            for side, direction in enumerate((shown.each[0], shown.average)):
                _, first_order, dots = step["chart"]["data"][3 * side : 3 * side + 3]
                moved = Autograd(shown.e.trained, net.theta.detach() - rate * direction)
                assert dots["x"] == near(F.cosine_similarity(shown.each, direction.unsqueeze(0)))
                assert dots["y"] == pytest.approx((moved.costs(x, y) - net.costs(x, y)).tolist(), rel=1e-6, abs=1e-12)
                assert first_order["y"] == near(-rate * shown.each @ direction)

    def test_the_curve_of_sensitivities(self, shown):
        for curve, dW in zip(shown.charts["sensitivity"], shown.truth.dW, strict=True):
            sizes = dW.flatten().abs().sort(descending=True)[0]
            assert curve["y"] == near(sizes[torch.tensor(curve["x"]) - 1])
            assert (curve["x"][0], curve["x"][-1]) == (1, (sizes > 0).sum())

    @pytest.mark.sweep(3)
    def test_plotly_knows_every_setting(self, shown):
        """The page's script would ignore a misspelled one; Plotly's own schema does not."""
        neurons, steps = list(shown.data["neurons"].values()), shown.data["steps"]
        assert all(what["chart"]["data"] for what in (*neurons, *steps))
        for what in (*shown.data["charts"].values(), *(w["chart"] for w in (neurons[0], neurons[-1], steps[0]))):
            assert what["narrow"]["layout"]["width"] < 360
            narrow = [trace | what["narrow"]["traces"].get(str(i), {}) for i, trace in enumerate(what["data"])]
            for data, layout in ((what["data"], what["layout"]), (narrow, what["narrow"]["layout"])):
                go.Figure({"data": data, "layout": layout})

    def test_a_class_may_be_called_anything(self, shown):
        assert "<b>c</b>" in shown.text
        assert "picked because it is &lt;the first&gt;" in shown.text
        assert "&lt;/script&gt;" in shown.text
        assert shown.text.count("</script>") == 3, "a class's name must not end the script that holds the data"


def test_a_layer_of_dead_neurons_leaves_no_weight_a_gradient():
    trained, x, y = a_network(("relu", "relu", "identity"))
    trained.learner.params["layer2.bias"].fill_(-100)
    text = page(explained(trained, x, y), "it")
    assert "Every weight's gradient is exactly 0" in text
    assert all(drawn["y"] for drawn in data_of(text)["charts"]["network"]["data"] if "y" in drawn)


def test_numbers_as_one_writes_them():
    values = (0.12345, -2.0, 0.0, 1.5e-7, -3e12, 0.00012)
    assert [number(value) for value in values] == ["0.123", "−2", "0", "1.5·10⁻⁷", "−3·10¹²", "0.00012"]


def color_at(chart, across, down):
    picture = static_image(chart)
    return picture.getpixel((int(across * picture.width), int(down * picture.height)))[:3]


BLUE, VERMILION = (0, 114, 178), (213, 94, 0)
BARE = {"visible": False}


@pytest.mark.parametrize("upside_down", [False, True])
def test_a_still_shows_a_table_as_plotly_does(upside_down):
    """The first row is at the bottom, or where the axis is reversed on top."""
    yaxis = BARE | ({"autorange": "reversed"} if upside_down else {})
    chart = Chart([[Panel("a table", [cells(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), False)], BARE, yaxis)]])
    first, last = (0.3, 0.7) if upside_down else (0.7, 0.3)
    assert color_at(chart, 0.25, first) == BLUE
    assert color_at(chart, 0.75, last) == VERMILION
    assert min(color_at(chart, 0.75, first)) > 250


def test_a_still_shows_terms_on_top_of_each_other_and_their_total():
    chart = Chart([[Panel("a sum", [waterfall([("a", 3.0), ("b", -2.0)], 1.0, "all")], {}, {})]])
    assert color_at(chart, 0.2, 0.75) == BLUE
    assert color_at(chart, 0.5, 0.3) == VERMILION
    assert color_at(chart, 0.5, 0.75) == (255, 255, 255), "the second begins where the first ends"
    assert color_at(chart, 0.85, 0.75) == (51, 51, 51)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(512, 512), (40,) * 12], ids=["wide", "deep"])
def test_the_page_stays_small(hidden):
    config = configure(dataset="sample", hidden=hidden, activation=("tanh",), loss="softmax-cross-entropy")
    data = load("sample")
    trained = Trained(config, data, manual_of(config, data))
    x, y = data.train.batch(torch.arange(32), torch.float64)
    e = explain(trained, x, y, list(map(str, range(32))), np.geomspace(0.001, 1, 7))
    assert len(page(e, "it", began=moment(e)).encode()) < 8e6
