"""The page of explain.py in a real browser, without a network: it loads, and clicks show what they should."""

import re

import pytest

import explain
from tests.support.explained import as_number

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

pytestmark = pytest.mark.slow

PLACE = """key => {
  const plot = document.getElementById("network"), box = plot.getBoundingClientRect();
  const {xaxis, yaxis} = plot._fullLayout;
  for (const {x, y, customdata} of plot.data) {
    const point = (customdata ?? []).indexOf(key);
    if (point < 0) continue;
    return [box.left + xaxis._offset + xaxis.l2p(x[point]), box.top + yaxis._offset + yaxis.l2p(y[point])];
  }
}"""
HOVER = "plot => plot.on('plotly_hover', event => window.hovered = event.points[0].customdata)"
SUMS = (
    """() => document.getElementById("neuron").data.filter(trace => trace.type === "waterfall").map(trace => trace.y)"""
)

BEYOND = """[...document.querySelectorAll("body *")].filter(one => one.getBoundingClientRect().right > innerWidth + 1)
  .map(one => one.outerHTML.slice(0, 99))"""
SMALLEST = """Math.min(...[...document.querySelectorAll("text, p, td, th, span, b, h3")].filter(one => one.textContent)
  .map(one => parseFloat(getComputedStyle(one).fontSize)))"""


@pytest.fixture(scope="module", params=["digits", "points"])
def loaded(request, browser, runs, tmp_path_factory):
    """The page of each run, opened offline, and what it says on the console or asks for beside itself."""
    path, complaints = tmp_path_factory.mktemp("pages") / "page.html", []
    assert explain.main(["--checkpoint", str(runs[request.param]), "--index", "3", "--out", str(path)]) == 0
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 1000}, has_touch=True)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(path.as_uri())
    page.locator("body[data-ready=yes]").wait_for()
    page.locator("#network").evaluate(HOVER)
    complaints.remove(path.as_uri())
    yield page, complaints
    context.close()


@pytest.fixture
def page(loaded):
    """The page, with the neuron selected that it begins with; fails the test if it complains."""
    page, complaints = loaded
    page.set_viewport_size({"width": 1200, "height": 1000})
    page.evaluate("document.getElementById('network').after(details); show(data.start)")
    yield page
    assert complaints == []


def click(page, key):
    """With the mouse, where the network shows this neuron ("2.7") or weight ("2:7:3")."""
    page.locator("#network").scroll_into_view_if_needed()
    place = page.evaluate(PLACE, key)
    page.mouse.move(*place)
    page.wait_for_function("key => window.hovered === key", arg=key)  # a person is slower than Plotly, a test is not
    page.mouse.click(*place)


def title(page):
    return page.locator("#card h3").first


def said(page, id_):
    return as_number(page.locator(f"#card #{id_}").inner_text())


@pytest.mark.long
def test_every_figure_is_drawn(page):
    figures = page.locator(".js-plotly-plot")
    names = "outputs network neuron adding_up_layer3 adding_up_layer2 sensitivity batch step beginning"
    assert figures.evaluate_all("all => all.map(one => one.id)") == names.split()
    assert all(figure.locator(".main-svg").first.is_visible() for figure in figures.all())
    assert title(page).inner_text().startswith("output ")


@pytest.mark.long
def test_a_click_on_a_neuron_shows_its_terms_and_they_sum_to_the_total(page):
    for layer, sums, name in ((1, 2, "neuron 1 of layer 1"), (2, 2, "neuron 1 of layer 2"), (3, 1, r"output (1|blue)")):
        click(page, f"{layer}.1")
        playwright.expect(title(page)).to_have_text(re.compile(f"^{name}$"))
        shown = page.evaluate(SUMS)
        assert len(shown) == sums
        for (*terms, total), id_ in zip(shown, ("z", "wish"), strict=False):
            assert len(terms) > 1
            assert sum(terms) == pytest.approx(total, rel=1e-5)
            assert said(page, id_) == pytest.approx(total, rel=6e-3)
        assert said(page, "delta") == said(page, "bias")


@pytest.mark.long
def test_a_click_on_a_weight_shows_its_gradient(page):
    key = page.evaluate("Object.keys(data.weights).find(key => key.startsWith('3:0:'))")
    click(page, key)
    playwright.expect(title(page)).to_contain_text("layer{}.weight[{}, {}]".format(*key.split(":")))
    _, a, delta, gradient, *_ = page.evaluate("key => data.weights[key]", key)
    assert gradient == pytest.approx(a * delta, rel=1e-5)
    shown = page.locator("#gradient").inner_text().replace("−", "-")
    assert float(shown) == pytest.approx(gradient, rel=6e-3)
    playwright.expect(page.locator("#neuron")).to_be_hidden()
    click(page, "2.0")
    playwright.expect(page.locator("#neuron")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 375, 320])
def test_on_any_screen_it_is_readable_without_scrolling_sideways_and_opens_details_below_the_click(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    page.wait_for_function("width => document.getElementById('batch')._fullLayout.width <= width", arg=width)
    table = page.locator("#adding_up_layer2")
    table.scroll_into_view_if_needed()
    box = table.locator(".nsewdrag").bounding_box()
    tap = page.mouse.click if width > 1000 else page.touchscreen.tap
    tap(box["x"] + 5, box["y"] + 10)  # the first column
    playwright.expect(title(page)).to_have_text("neuron 0 of layer 1")
    above, card = table.bounding_box(), page.locator("#card").bounding_box()
    assert 0 <= card["y"] - above["y"] - above["height"] < 20
    assert card["y"] + min(card["height"], 690) <= 701
    assert page.evaluate(BEYOND) == []
    assert page.evaluate(SMALLEST) >= 9
    page.locator("#network").scroll_into_view_if_needed()
    tap(*page.evaluate(PLACE, "1.1"))
    playwright.expect(title(page)).to_have_text("neuron 1 of layer 1")


@pytest.mark.long
def test_the_slider_shows_other_steps(page):
    seen = set()
    for r in range(page.evaluate("data.steps.length")):
        page.locator("#rate").fill(str(r))
        eta, drawn = page.locator("#eta").inner_text(), page.evaluate("document.getElementById('step').data[2].y")
        assert [eta, drawn] == page.evaluate("r => [data.steps[r].eta, data.steps[r].chart.data[2].y]", r)
        seen.add((eta, page.locator("#step-text").inner_text()))
    assert len(seen) == 7
