"""The output of every command in pipes that are not UTF-8; as processes of their own they are in test_pipes.py."""

import ast
import errno
import io
import json
import re
import signal
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.table import Table

import explain
import predict
import train
import verify
from lessons import __main__ as lessons
from manual_backprop.layers.activations import ACTIVATIONS
from tests.support.running import ROOT, Done, files, flags, one_sentence
from tests.support.terminal import CLOSED, assert_readable
from training.errors import UserError
from training.interruption import Stopped
from training.terminal.output import READABLE, Console, asks_for_ascii, command, make_readable, readable, spelling_of

ENCODINGS = ("ascii", "cp437", *(pytest.param(encoding, marks=pytest.mark.slow) for encoding in ("cp1252", "latin-1")))
each_encoding = pytest.mark.parametrize("encoding", ENCODINGS)
ROOMS = ("manual_backprop", "reference", "gradient_check", "training", "explanation", "lessons", "benchmarks")
SOURCES = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
STARTED = [path for path in SOURCES if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")]
DOORS = [path for path in STARTED if "gradient_check" not in path.parts]  # which needs nothing else of the project
MAINS = {script.__name__: script.main for script in (train, verify, predict, explain, lessons)}


def pipe(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def said(stream):
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding.removeprefix(READABLE))


@pytest.fixture
def call(monkeypatch):
    """Calls a script's `main` in this process, with pipes of this encoding for its output."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(encoding, main, *arguments):
        out, err = pipe(encoding), pipe(encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as exit:
                status = exit.code
        return Done(status, said(out), said(err))

    return run


SPELLED = {
    "∂C/∂W = (δˡ)ᵀ aˡ⁻¹": "dC/dW = (delta^l)^T a^(l-1)",
    "½‖a − y‖², ½λ Σ w²": "1/2||a - y||^2, 1/2 lambda sum w^2",
    "3·10⁻¹⁶, 10¹⁵, 2⁶³ − 1": "3*10^-16, 10^15, 2^63 - 1",
    "β₁ β₂, σ₂/σ₁, σ′(z), μ ± 1": "beta1 beta2, sigma2/sigma1, sigma'(z), mu +/- 1",
    "θ ← θ − η ∇C, ΔC, Δθ": "theta <- theta - eta grad C, Delta C, Delta theta",
    "a → b, 2×3, 1/√B, ≥ 5 µs": "a -> b, 2x3, 1/sqrt B, >= 5 us",
    "“…” – ✓ ✗": '"..." - ok x',
    "Kukieła, Straße, déjà, de\u0301ja\u0300": "Kukiela, Strasse, deja, deja",
    "┏━┳━┓ │ ╰─╯": "+-+-+ | +-+",
}


@pytest.mark.parametrize("text", SPELLED)
def test_symbols_have_a_spelling(text):
    assert readable(text, "ascii") == SPELLED[text]
    assert readable(text, "utf-8") == text


SYMBOLS = "3·10⁻¹⁶, 10¹⁵, 2⁶³ − 1, ½‖a‖², ∂C/∂×, Hélène, σ′"
LATIN = "3·10^-16, 10^15, 2^63 - 1, ½||a||², dC/d×, Hélène, sigma'"
IN_ENCODING = {
    "ascii": "3*10^-16, 10^15, 2^63 - 1, 1/2||a||^2, dC/dx, Helene, sigma'",
    "cp437": "3·10^-16, 10^15, 2^63 - 1, ½||a||², dC/dx, Hélène, σ'",
    **{"cp1252": LATIN, "latin-1": LATIN, "utf-8": SYMBOLS, "utf-16": SYMBOLS},
}


@pytest.mark.parametrize("encoding", IN_ENCODING)
def test_an_encoding_keeps_what_it_holds_breaks_no_power_and_escapes_what_has_no_spelling(encoding):
    utf, stream = encoding.startswith("utf"), pipe(encoding)
    make_readable(stream)
    make_readable(stream)  # once more changes nothing
    print(f"{SYMBOLS} 猫 \udcff 한", end="", file=stream)
    assert stream.encoding == (encoding if utf else f"readable_{encoding}")
    assert said(stream) == f"{IN_ENCODING[encoding]} " + ("猫 \\udcff 한" if utf else "\\u732b \\udcff \\ud55c")


def test_a_stream_that_has_no_encoding_stays_as_it_is():
    make_readable(io.StringIO())
    make_readable(None)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_symbol_in_a_string_of_the_programs_has_a_spelling(path):
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    strings = [node.value for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not {symbol for symbol in "".join(strings) if not spelling_of(symbol).isascii()}


def test_every_program_is_a_command():
    wanted = {"train.py", "verify.py", "predict.py", "explain.py", "__main__.py", "make_sample.py"}
    assert wanted <= {door.name for door in DOORS}
    for path in DOORS:
        text = path.read_text(encoding="utf-8")
        a_command = r"^@command\(\"[\w.]+\"\)\ndef main\(|sys\.exit\(command\(\"[\w.]+\"\)"
        assert re.search(a_command, text, re.M), path
        assert re.search(r"^    sys\.exit\((main|command)\(.*\)$", text, re.M), f"{path} ends with its status"


def test_columns_are_straight_in_ascii():
    table = Table("tensor", "‖δ‖", title="∂C/∂W of δˡ")
    table.add_row("δ", "10⁻¹⁶")
    table.add_row("∂C/∂θ", "1")
    stream = pipe("ascii")
    make_readable(stream)
    Console(file=stream, width=40).print(table)
    title, *lines = said(stream).splitlines()
    assert title.strip() == "dC/dW of delta^l"
    assert lines == [
        "+-----------------------+",
        "| tensor    | ||delta|| |",
        "|-----------+-----------|",
        "| delta     | 10^-16    |",
        "| dC/dtheta | 1         |",
        "+-----------------------+",
    ]


@each_encoding
@pytest.mark.parametrize("name", MAINS)
def test_help_is_readable(name, encoding, call):
    done = call(encoding, MAINS[name], "--help")
    assert_readable(done, 0)
    assert "exit status:" in done.out
    assert f"  141  {CLOSED}" in done.out
    if name == "train" and encoding == "ascii":
        assert "Cost of an example: 1/2||a-y||^2, ||a-y||^2, or a" in done.out
        assert "Averaging factors: beta of rmsprop, beta1 beta2 of adam," in done.out
        assert "lambda of the penalty 1/2 lambda sum w^2 on matrices" in done.out
    if name == "verify" and encoding == "cp1252":
        assert "Compare the cost, dC/doutput, every delta and every gradient of hand-written" in done.out


@pytest.mark.slow
@each_encoding
def test_gradients_that_agree_are_status_0_and_that_differ_status_1(digits, encoding, call, monkeypatch):
    done = call(encoding, verify.main, "--checkpoint", digits, "--seeds", 1)
    assert_readable(done, 0)
    assert done.err == ""
    table = [line for line in done.out.splitlines() if line.startswith("|")]
    delta = "δ" if encoding == "cp437" else "delta"
    first = ["the cost C", "dC/doutput", "dC/doutput, layer 3, dC/da", f"BP1, layer 3, {delta}"]
    assert [line.split("|")[1].strip() for line in table[2:6]] == first
    assert len({len(line) for line in table}) == 1, "the columns are straight"

    right = ACTIVATIONS["sigmoid"]
    monkeypatch.setitem(ACTIVATIONS, "sigmoid", replace(right, derivative=lambda z, a: 2 * right.derivative(z, a)))
    done = call(encoding, verify.main, "--checkpoint", digits, "--seeds", 1)
    assert_readable(done, 1)
    assert f"differ; the first is BP1, layer 3, {delta} of " in done.err
    assert "WRONG" in done.out


@each_encoding
def test_bad_input_is_status_2(encoding, call):
    done = call(encoding, lessons.main, "--seed", 2**63)
    assert_readable(done, 2)
    assert f"--seed is {2**63}, but it must be a whole number from 0 to 2^63 - 1" in one_sentence(done.err)
    assert_readable(call(encoding, verify.main, "--modle", "mlp"), 2)


@each_encoding
def test_json_is_ascii(digits, encoding, tmp_path, call):
    done = call(encoding, verify.main, "--json", "--checkpoint", digits, "--seeds", 1)
    assert (done.status, done.out.isascii()) == (0, True)
    assert "∂C/∂output" in {row["label"] for row in json.loads(done.out)["checks"][0]["rows"]}

    picture, drawn = tmp_path / "été, 猫.png", Image.new("L", (28, 28), 255)
    drawn.paste(0, (12, 4, 16, 24))
    drawn.save(picture)
    done = call(encoding, predict.main, "--json", "--checkpoint", digits, picture)
    assert (done.status, done.out.isascii()) == (0, True)
    assert json.loads(done.out)["predictions"][0]["image"] == str(picture)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-8"])
def test_a_file_whose_name_is_not_utf_8(encoding, tmp_path, call):
    options = {"dataset": "spiral", "max_steps": 1, "run_dir": tmp_path / "run\udcff"}
    done = call(encoding, train.main, *flags(options))
    assert done.status == 2
    assert "run\\udcff' is not UTF-8, and TensorBoard reads no such name" in one_sentence(done.err)
    assert not options["run_dir"].exists()
    done = call(encoding, train.main, *flags({"dataset": "spiral", "data_dir": "\udcff", "run_dir": tmp_path / "run"}))
    sentence = "train.py: '\\udcff' in a file's name is not UTF-8: rename it"
    assert (done.status, one_sentence(done.err), files(tmp_path)) == (2, sentence, set())
    done = call(encoding, predict.main, "--checkpoint", tmp_path / "\udcff", "x.png")
    assert done.status == 2
    assert "\\udcff" in one_sentence(done.err)


def test_a_command_says_errors_in_one_sentence(call):
    def refuse(error):
        def main(argv):
            raise error

        return call("ascii", command("it.py")(main))

    assert refuse(UserError("η is −1")) == (2, "", "it.py: eta is -1\n")
    assert refuse(OSError("no")) == (2, "", "it.py: no\n")
    full, stopped = OSError(errno.ENOSPC, "No space", "a.pt"), "it.py: the terminal was closed\n"
    assert refuse(full) == (2, "", "it.py: there is no space left on the disk (a.pt): make room, or write elsewhere\n")
    assert refuse(Stopped(signal.SIGHUP)) == (129, "", stopped)
    too_large = call("ascii", command("it.py")(lambda argv: torch.empty(10**15)))
    assert too_large == (2, "", "it.py: there is not enough memory for 4e+06 GB more: free some, or ask for less\n")
    with pytest.raises(RuntimeError, match="a mistake of the program's"):
        refuse(RuntimeError("a mistake of the program's"))
    broken = BrokenPipeError()
    assert refuse(broken) == (141, "", f"it.py: {CLOSED}\n")
    broken.add_note("go on")
    assert refuse(broken) == (141, "", f"it.py: {CLOSED}; go on\n")


def test_who_asks_for_the_c_locale_gets_ascii_unless_python_is_told_otherwise():
    c = {"LC_ALL": "C"}
    assert asks_for_ascii(c)
    assert asks_for_ascii({"LC_ALL": "POSIX"})
    for other in ({}, {"LC_ALL": "C.UTF-8"}, c | {"PYTHONIOENCODING": "utf-8"}, c | {"PYTHONUTF8": "1"}):
        assert not asks_for_ascii(other), other
    assert not asks_for_ascii({"LANG": "C"}), "as containers have it by default"
