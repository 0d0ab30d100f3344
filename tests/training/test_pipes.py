"""Every command as a process of its own: in the C locale, in pipes that nobody reads, and without any output."""

import os
import re
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest

from tests.support import running
from tests.support.running import ROOT, Done, flags
from tests.support.terminal import CLOSED, assert_readable
from training import checkpoint

pytestmark = pytest.mark.long

ENCODINGS = ("", "cp1252", "ascii")  # where it is empty, the locale is C, in which Python by itself writes UTF-8
TRAIN = "train.py --dataset sample --max-steps 3 --run-dir {tmp}/run"
VERIFY = "verify.py --checkpoint {digits} --seeds 1"
PREDICT = "predict.py --checkpoint {digits} --dataset sample"
EXPLAIN = "explain.py --checkpoint {digits} --out {tmp}/page.html"
LESSON = "-m lessons three-ways --run-dir {tmp}/lesson"
MODULES = ("lessons", "training.data.make_sample", "benchmarks.reproduction", "benchmarks.mutation")
SCRIPTS = ("train.py", "verify.py", "predict.py", "explain.py", *(f"-m {module}" for module in MODULES))
SAID = {f"{script} --help": "usage: " for script in SCRIPTS} | {
    TRAIN: "| layer1 | linear, sigmoid | weight 16",
    VERIFY: "| BP1, layer 3, delta ",
    PREDICT: "|true class |",
    EXPLAIN: "picked because its cost is the highest of all",
    LESSON: "|     predicted |      measured |",
    "-m lessons": "Deep networks: delta vanishes or explodes, layer by",
}
UNREAD = ("train.py --help", TRAIN, f"{VERIFY} --json", f"-u {VERIFY}", PREDICT, EXPLAIN, LESSON)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONUNBUFFERED", "")  # a buffer that cannot be flushed is the harder case


def run(line, encoding, *, stdout=subprocess.PIPE, stderr=subprocess.PIPE):
    environment = {**os.environ, **({"PYTHONIOENCODING": encoding} if encoding else {"LC_ALL": "C"})}
    arguments = [sys.executable, *line.split()]
    done = subprocess.run(arguments, stdout=stdout, stderr=stderr, cwd=ROOT, env=environment)
    return Done(done.returncode, *((text or b"").decode(encoding or "ascii") for text in (done.stdout, done.stderr)))


@pytest.fixture
def unread():
    """The end for writing of a pipe whose other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize(
    ("line", "encoding"), [*zip(SAID, cycle(ENCODINGS), strict=False), (VERIFY, "cp1252"), (VERIFY, "ascii")]
)
def test_a_process_is_readable(line, encoding, digits, tmp_path):
    """Each line in one encoding, and VERIFY in every."""
    done = run(line.format(digits=digits, tmp=tmp_path), encoding)
    assert_readable(done, 0)
    assert done.err == ""
    assert done.out.startswith(SAID[line]) if SAID[line] == "usage: " else SAID[line] in done.out


@pytest.mark.parametrize("line", UNREAD)
def test_a_pipe_that_nobody_reads_is_status_141(line, digits, tmp_path, unread):
    line = line.format(digits=digits, tmp=tmp_path)
    done = run(line, "utf-8", stdout=unread)
    assert done.status == 141
    goes_on = f"; --resume {tmp_path / 'run'} goes on" * (line.startswith(TRAIN[:10]) and "--help" not in line)
    assert re.fullmatch(rf"[\w.]+: {CLOSED}{goes_on}\n", done.err)
    if "--json" in line:  # in a shell: 2>&1
        assert run(line, "utf-8", stdout=unread, stderr=unread).status == 141


def test_a_run_whose_output_is_closed_can_be_resumed(tmp_path):
    run_dir = tmp_path / "run"
    with running.start("train.py", *flags({"dataset": "sample", "epochs": 50, "run_dir": run_dir})) as process:
        for line in process.stdout:
            if line.startswith("epoch  1/"):
                break
        process.stdout.close()
        assert process.stderr.read() == f"train.py: {CLOSED}; --resume {run_dir} goes on\n"
    assert process.returncode == 141

    assert checkpoint.load(run_dir)["progress"]["evaluated"], "it stopped at the end of an epoch, and that is saved"
    steps = max(running.values(run_dir, "accuracy/test"))
    assert running.run("train.py", "--resume", run_dir, "--max-steps", steps + 3).status == 0
    assert max(running.values(run_dir, "accuracy/test")) == steps + 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_status_2(digits):
    with Path("/dev/full").open("wb") as full:
        done = run(VERIFY.format(digits=digits), "utf-8", stdout=full.fileno())
    assert (done.status, done.err) == (
        2,
        "verify.py: there is no space left on the disk: make room, or write elsewhere\n",
    )


def test_too_little_memory_is_status_2(tmp_path):
    command = f"{sys.executable} train.py --dataset sample --hidden 20000 20000 --run-dir {tmp_path / 'run'}"
    done = subprocess.run(["sh", "-c", f"ulimit -v 6000000; {command}"], cwd=ROOT, capture_output=True, text=True)
    said = "not enough memory for 1.7 GB more: free some, or ask for less; a smaller network than --hidden 20000 20000"
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (2, True, 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "status", "closed"), [("--max-steps 1", 0, ">&- 2>&-"), ("--seed -1", 2, ">&-"), ("--seed -1", 2, "2>&-")]
)
def test_a_stream_that_is_not_there_changes_no_status(line, status, closed, tmp_path):
    """Closed by the caller, or never there, as in a service: Python has None in its place."""
    command = f"{sys.executable} train.py --dataset sample --run-dir {tmp_path / 'run'} {line} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
    assert (done.stderr == "") == (status == 0 or "2>&-" in closed)
