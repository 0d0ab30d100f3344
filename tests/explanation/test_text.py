"""explain.py for a network that predicts the next token: every number against the twin's autograd, and the page."""

import html
import re
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import explain
import train
from explanation import text
from tests.support.both_ways import random_parameters
from tests.support.explained import as_number, said
from tests.support.refusals import assert_refused
from tests.support.running import ROOT, call, flags, manual_of
from training.data import Dataset, Streams
from training.data.text import BYTES
from training.families.configure import configure
from training.families.networks import arranged, make_twin
from training.prediction import Trained

CLASSES = ("\n", " ", "<", "&", '"', "a", "b")
MODELS = {
    "rnn": {"cell": "rnn", "activation": ("relu",)},
    "lstm": {"cell": "lstm", "depth": 2},
    "gru": {"cell": "gru"},
    "block": {"model": "block"},  # whose output shares the embedding's matrix
}


def a_network(model="recurrent", **options):
    sizes = {"width": 6} if model == "recurrent" else {}
    options |= {"dataset": "text", "dtype": "float64", "loss": "softmax-cross-entropy", "context": 8} | sizes
    config = configure(model=model, **options)
    ids = torch.randint(len(CLASSES), (300,), generator=torch.Generator().manual_seed(2))
    whole = Streams(ids, 1)
    classes = BYTES if config.tokens == "bytes" else CLASSES
    data = arranged(config, Dataset("text", whole, whole, (1,), classes, "", task="prediction of the next token"))
    trained = Trained(config, data, manual_of(config, data))
    trained.learner.params.load_state_dict(random_parameters(trained.learner.model, seed=1, gain=2.0))
    return trained, data


def by_twin(trained, before, target):
    """p (V,) after these ids, and the norms of ∂ log p/∂e (T,); of the project only the twin. None: the likeliest."""
    twin = make_twin(trained.learner.model).double().eval()
    twin.load_state_dict(dict(trained.learner.params))
    seen = []
    matrix = getattr(twin, "embedding", None) or twin.wte
    matrix.register_forward_hook(lambda module, given, e: seen.append(e))
    logs = twin(before.unsqueeze(0))[-1].log_softmax(dim=0)
    target = int(logs.argmax()) if target is None else target
    (gradient,) = torch.autograd.grad(logs[target], seen[0])
    return logs.detach().exp(), target, gradient[0].norm(dim=1)


@pytest.fixture
def trained(registered, request):
    return a_network(**MODELS[request.param])


@pytest.mark.parametrize("trained", MODELS, indirect=True)
@pytest.mark.parametrize("index", [1, 5, 47, None], ids=lambda index: "prompt" if index is None else str(index))
def test_gradients_are_the_twins_and_so_are_differences(trained, index):
    trained, data = trained
    ids = data.test.ids
    if index is None:
        before, place = ids[12:20], text.prompted(trained, "".join(CLASSES[i] for i in ids[:20]))
    else:
        before, place = ids[max(0, index - 8) : index], text.at_index(trained, data, index)
        assert place.target == ids[index]
    r = text.read(trained, place)
    p, target, norms = by_twin(trained, before, place.target)
    assert place.before.tolist() == before.tolist()
    assert r.target == target
    torch.testing.assert_close(r.probabilities, p, rtol=1e-12, atol=0)
    torch.testing.assert_close(r.norms, norms, rtol=1e-11, atol=1e-14)
    assert (r.measured - norms).abs().max() < 1e-7 * norms.max()
    assert r.off < 1e-7


@pytest.mark.parametrize("trained", ["gru"], indirect=True)
def test_which_place_is_picked(trained):
    """The end of a segment: the costliest, or the one with the largest 2p₂ − p₁."""
    trained, data = trained
    ends = range(8, 8 * len(data.test) + 1, 8)
    p = torch.stack([by_twin(trained, data.test.ids[i - 8 : i], None)[0] for i in ends])
    costs, best = -p[range(len(p)), data.test.ids[list(ends)]].log(), p.topk(2)[0]
    for pick, score in (("costly", costs), ("undecided", 2 * best[:, 1] - best[:, 0])):
        i = ends[int(score.argmax())]
        place = text.picked(trained, data, pick)
        assert (place.what, place.before.tolist()) == (
            f"character {i} of the held-out text",
            data.test.ids[i - 8 : i].tolist(),
        )
        assert f"of {len(p)} places of the held-out text, the end of each 8 characters" in place.why
    assert f"their median is {costs.median():.2g}" in text.picked(trained, data, "costly").why


@pytest.mark.parametrize("trained", ["gru"], indirect=True)
def test_the_page_says_what_was_read_and_is_as_dark_as_it_says(trained):
    trained, _ = trained
    prompt = 'a<\n &b"a'
    r = text.read(trained, text.prompted(trained, prompt))
    page = text.page(r)
    spans = re.findall(r'<span style="background:rgb\(([\d,]+)\)[^"]*" title="(.*?)">(.*?)</span>(<br>)?', page)
    assert [shown for _, _, shown, _ in spans] == list(map(html.escape, prompt.replace("\n", "↵")))
    assert [bool(line) for *_, line in spans] == [token == "\n" for token in prompt]
    for t, (color, tip, _, _) in enumerate(spans):
        depth = r.norms[t] / r.norms.max()
        assert [int(part) for part in color.split(",")] == [
            round(float(255 + depth * (end - 255))) for end in (0, 75, 55)
        ]
        assert html.unescape(tip).startswith(
            f"{'␣' if prompt[t] == ' ' else prompt[t].replace(chr(10), '↵')}, {8 - t} back: "
        )
        assert as_number(tip.rpartition(" ")[2]) == pytest.approx(r.norms[t].item(), rel=6e-3)
    p = r.probabilities.max().item()
    assert said(page, "p") == pytest.approx(p, rel=6e-3)
    assert said(page, "cost") == pytest.approx(-r.probabilities.max().log().item(), rel=6e-3)
    table = re.findall(r"<tr><td>([^<]+)<td>(\d+)<td>([^<]+)<td>([^<\n]+)", page.partition("<details>")[2])
    assert [int(back) for _, back, *_ in table] == list(range(8, 0, -1))
    for column, expected in ((2, r.norms), (3, r.measured)):
        assert [as_number(row[column]) for row in table] == pytest.approx(expected.tolist(), rel=6e-3)
    assert "the likeliest" in page


def test_bytes_of_a_prompt_that_is_no_utf_8():
    trained, _ = a_network(tokens="bytes")
    place = text.prompted(trained, "é \udcff")
    assert place.before.tolist() == [0xC3, 0xA9, 0x20, 0xFF]
    shown = re.findall(r'">([^<]+)</span>', text.page(text.read(trained, place)))
    assert shown == ["0xc3", "0xa9", " ", "0xff"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "text"
    options = {"model": "recurrent", "dataset": "text", "data_dir": ROOT / "README.md", "loss": "softmax-cross-entropy"}
    options |= {"width": 5, "context": 9, "examples": 900, "max_steps": 2, "epochs": 1}
    assert train.main(list(flags({**options, "run_dir": run_dir}))) == 0
    return run_dir


REFUSED = {
    "--prompt": "--prompt is empty",
    "--prompt aŵ\x07aŵ": r"--prompt has characters that this network never saw: 'ŵ', '\x07';",
    "--prompt a --index 3": "--index and --prompt name an example each",
    "--index 0": "--index is 0, but it must be from 1 to",
    "--index 100000": "--index is 100000, but it must be from 1 to",
    "--image one.png": "--image goes with a network that classifies",
    "--batch-size 3": "--batch-size goes with a network that classifies",
    "--label 3": "--label goes with --image",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_explained(line, run_dir, tmp_path, capsys):
    flag, *value = line.split(" ")
    done = call(capsys, explain.main, "--checkpoint", run_dir, "--out", tmp_path / "no.html", flag, *(value or [""]))
    assert_refused(done, REFUSED[line])
    assert not (tmp_path / "no.html").exists()


@pytest.mark.slow
def test_a_page_from_a_run_fits_any_screen_without_network_and_javascript(run_dir, tmp_path, capsys, browser):
    shutil.copytree(run_dir, own := tmp_path / "run")
    out = tmp_path / "page.html"
    done = call(capsys, explain.main, "--checkpoint", own, "--out", out, "--tensorboard")
    assert (done.status, done.err) == (0, "")
    said_ = re.fullmatch(
        r"(character [\d,]+ of the held-out text): (.) has probability .*, picked because (.*); .*\n", done.out
    )
    context = browser.new_context(offline=True, java_script_enabled=False, viewport={"width": 320, "height": 700})
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(out.as_uri())
    for width in (320, 1280):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("h1").inner_text() == f"Sensitivity of a prediction: {said_[1]}"
    assert page.locator("#text span").count() == 9
    assert page.get_by_role("img").get_attribute("aria-label").partition(" → ")[2][0] == said_[2]
    assert f"picked because {said_[3]}." in page.locator("body").inner_text()
    assert asked == [out.as_uri()]
    context.close()
    events = EventAccumulator(str(own), size_guidance={"images": 0}).Reload()
    (event,) = events.Images("explain/text")
    assert (event.step, event.width) == (1, 1320)
