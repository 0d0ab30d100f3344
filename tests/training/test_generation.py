"""Texts that a network goes on with: by predict.py --prompt, and as a run shows them."""

import json
from dataclasses import replace
from itertools import islice
from math import log
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import predict
from tests.support.refusals import assert_refused, refused
from tests.support.run_cases import small_run
from tests.support.running import call, learner_of, train_loop, values
from training import evaluation, generation
from training.data import Vocabulary
from training.generation import drawn, generate
from training.prediction import load_trained
from training.run import load_data

pytestmark = pytest.mark.usefixtures("registered")
LETTERS = "abcde\n " * 40


@pytest.mark.parametrize("impl", ["manual", "reference", "both"])
@pytest.mark.parametrize(
    ("name", "read"),
    [("recurrent", [3] + [1] * 9), ("cell", [3] + [1] * 9), ("block", [3] + [1] * 5 + [8] * 4)],
)
def test_each_id_is_read_once_and_the_outputs_are_those_of_one_pass(name, read, impl, monkeypatch):
    """A block has 8 places: then it reads the last 8 again, and as a twin without memory always all that there are."""
    config, data = small_run(name, Path(), dtype="float64", impl=impl)
    learner, other = learner_of(config, data), learner_of(config, data)
    sizes, outputs, forward = [], [], learner.forward

    def watched(x, memory):
        output, memory = forward(x, memory)
        sizes.append(x.shape[1])
        outputs.append(output[-1])
        return output, memory

    monkeypatch.setattr(learner, "forward", watched)
    prompt = data.test.ids[:3]
    ids = [*prompt.tolist(), *islice(generate(learner, data.test, prompt), 10)]
    assert sizes == ([3, 4, 5, 6, 7, 8, 8, 8, 8, 8] if (name, impl) == ("block", "reference") else read)
    for end, output in enumerate(outputs, start=3):
        whole = ids[:end] if data.test.carries else ids[max(0, end - 8) : end]
        assert_close(output, other.outputs(torch.tensor([whole]))[-1], rtol=1e-12, atol=1e-12)


def test_the_same_seed_draws_the_same_and_leaves_torchs_own_numbers():
    config, data = small_run("recurrent", Path())
    learner, before = learner_of(config, data), torch.get_rng_state()
    texts = [list(islice(generate(learner, data.test, data.test.ids[:2], seed=seed), 20)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, (2, 5, 3)),
        ({"temperature": 0.5}, (4, 25, 9)),
        ({"temperature": 0}, (0, 1, 0)),
        ({"temperature": 1e-300}, (0, 1, 0)),
        ({"top_k": 2}, (0, 5, 3)),
        ({"top_k": 1, "temperature": 9}, (0, 1, 0)),
        ({"top_k": 9}, (2, 5, 3)),
    ],
    ids=str,
)
def test_how_often_each_is_drawn(options, weights):
    output, generator = torch.tensor([2.0, 5.0, 3.0]).double().log() - 800, torch.Generator().manual_seed(3)
    options = {"temperature": 1.0, "top_k": 0} | options
    counts = torch.tensor([drawn(output, **options, generator=generator) for _ in range(1500)]).bincount(minlength=3)
    expected = torch.tensor(weights) / sum(weights)
    assert_close(counts / 1500, expected, rtol=0, atol=0.035)
    assert torch.equal(counts == 0, expected == 0)


def test_outputs_that_are_not_finite_draw_nothing():
    with refused("the outputs of this network are not finite"):
        drawn(torch.tensor([0.0, torch.nan]), 1.0, 0, torch.Generator())
    config, data = small_run("recurrent", Path())
    learner = learner_of(config, data)
    learner.params["linear.bias"].fill_(torch.inf)
    assert generation.sample(learner, data, "characters").startswith("the outputs of this network are not finite")


@pytest.mark.parametrize(
    ("tokens", "classes", "text", "ids", "back"),
    [
        ("characters", "\n\x1baé🐅", "é🐅\r\na\x1b", [3, 4, 0, 2, 1], "é🐅\na\ufffd"),
        ("bytes", "AB", "é\udcff\r\n\r", [0xC3, 0xA9, 0xFF, 13, 10, 13], "é\ufffd\n\ufffd"),
        ("characters", ("a", "the", "sea"), " the  sea\n", [1, 2], "the sea"),
    ],
    ids=["characters", "bytes", "words"],
)
def test_text_as_ids_and_back(tokens, classes, text, ids, back):
    vocabulary = Vocabulary(tuple(classes), tokens)
    assert vocabulary.encode("--prompt", text) == ids
    assert vocabulary.decode(ids) == back
    with refused("--prompt is empty: give a text to go on with"):
        vocabulary.encode("--prompt", "")


# predict.py


def letters_run(path, **options):
    """A run on LETTERS, of a few steps."""
    (path / "letters.txt").write_text(LETTERS)
    config = replace(small_run("recurrent", Path())[0], data_dir=str(path / "letters.txt"), examples=0, **options)
    train_loop(config, load_data(config), path / "run")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters_run(tmp_path_factory.mktemp("letters"))


@pytest.fixture
def ask(folder, capsys):
    return lambda *line: call(capsys, predict.main, "--checkpoint", folder / "run", *line)


def test_a_prompt_and_how_it_goes_on(ask):
    done = ask("--prompt", "ab\nc", "--length", 30, "--seed", 5)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("ab\nc")
    assert len(done.out) == 4 + 30 + 1
    told = json.loads(ask("--json", "--prompt", "ab\nc", "--length", 30, "--seed", 5).out)
    assert told == {"text": done.out[:-1], "continuation": done.out[4:-1]}
    assert ask("--prompt", "ab\nc", "--length", 30).out != done.out  # whose seed is 5
    likeliest, one = (ask("--prompt", "a", *options).out for options in (["--temperature", 0], ["--top-k", 1]))
    assert likeliest == one
    assert len(one) == 1 + 500 + 1


def test_bytes_of_any_kind(tmp_path, capsys):
    letters_run(tmp_path, tokens="bytes")
    told = call(capsys, predict.main, "--json", "--checkpoint", tmp_path / "run", "--prompt", "é🐅", "--length", 40)
    told = json.loads(told.out)
    assert told["text"] == "é🐅" + told["continuation"]
    assert "\ufffd" in told["continuation"]
    done = call(capsys, predict.main, "--checkpoint", tmp_path / "run", "--dataset", "text")
    assert done.out.splitlines()[-1].startswith("21 bytes: loss ")


def test_a_text_is_one_sequence_of_which_the_state_goes_on(ask, folder, monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", 1)  # else so short a text is read as sequences side by side
    trained, ids = load_trained(folder / "run"), [sorted(set(LETTERS)).index(c) for c in LETTERS[-28:-6]]
    expected = torch.nn.functional.cross_entropy(trained.outputs(torch.tensor([ids[:-1]])), torch.tensor(ids[1:]))
    assert json.loads(ask("--json", "--dataset", "text").out)["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_text_by_the_networks_own_ids(ask, folder, tmp_path):
    """Its own text has the bits that the run has logged; those of another are of the same characters."""
    own = json.loads(ask("--json", "--dataset", "text").out)
    (*_, bits) = values(folder / "run", "bits/test").values()
    assert own["bits"] == bits == own["loss"] / log(2)
    assert (own["targets"], own["unit"]) == (21, "characters")  # of 28, of which one comes first, in segments of 7
    (tmp_path / "other.txt").write_text("A" * 9 * 28 + LETTERS[-28:])  # A, id 2, is not in the last tenth
    other = json.loads(ask("--json", "--dataset", "text", "--data-dir", tmp_path / "other.txt").out)
    assert {**other, "data": own["data"]} == own
    for count in (14, 3):  # which is less than a segment
        done = ask("--dataset", "text", "--validation", count)
        assert done.out.splitlines()[-1].startswith(f"{count} characters: loss ")


WRONG = {
    ("--prompt", ""): "--prompt is empty: give a text to go on with",
    (
        "--prompt",
        "aXéX",
    ): "--prompt has characters that this network never saw: 'X', 'é'; it knows 7: '\\n', ",
    ("x.png",): "this network is for prediction of the next token and has no classes",
    (
        "--dataset",
        "mnist",
    ): "--dataset is mnist, but this network is for prediction of the next token: give --dataset text",
    ("--dataset", "mnits"): "did you mean 'mnist'",
    (
        "--dataset",
        "shakespeare",
    ): "part of shakespeare has characters that this network never saw: '!', '&', \"'\", ',',",
}


@pytest.mark.parametrize("line", WRONG, ids=" ".join)
def test_what_a_network_of_a_text_is_not_asked(line, ask):
    assert_refused(ask(*line), WRONG[line])
