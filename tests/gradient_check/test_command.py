"""`python -m gradient_check FILE.py[:name]`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradient_check.__main__ import main
from tests.support.running import ROOT, call

GUIDE = (ROOT / "docs/checking-your-own-backward.md").read_text(encoding="utf-8")
PAIR = "import torch\ndef forward(x): return x**3, int(x[0])\ndef backward(dy, x): ...\n"
MARK = "import torch\nfrom gradient_check import checked\n@checked({})\n"
BAD_INPUT = {
    "x = 1 +": ("mine.py does not import, SyntaxError", "line 1", "runs"),
    "\nx = 1 / 0": ("does not import, ZeroDivisionError", "(mine.py, line 2)"),
    "import sys; sys.exit(0)": ("SystemExit: 0", "under `if __name__"),
    "def forward(x): ...": ("mine.py has nothing to check", "@gradient_check.checked("),
    PAIR: ("mine.py:forward could", "forward and backward, but no example", "a list of forward's"),
    PAIR + "example = torch.ones(2)": ("the example is a Tensor: give a list",),
    PAIR + "example = [torch.ones(2), 1]": ("forward raised TypeError", "x (2,), x1 = 1: change the example"),
    PAIR + "example = [torch.ones(2) / 0]": ("x is inf",),
    PAIR.replace("x[0]", "'z'") + "example = [torch.ones(2)]": ("forward raised ValueError: inv", "(mine.py, line 2)"),
    PAIR + "def example(a, b): ...": ("example needs a, b: let it take nothing, or one torch.Generator",),
    PAIR + "def example(): 1 / 0": ("ZeroDivisionError: division by zero (mine.py, line 4)", "let it return"),
    PAIR + "example = []; not_differentiable = 3": ("not_differentiable is 3: give a list",),
    MARK.format("example=[], sed=1") + "def f(x): ...": ("has no option 'sed': give", "seed"),
    MARK.format("example=[]") + "class F: ...": ("F is a class: mark an autograd.Function",),
    MARK.format("example=[], init=[1]") + "class F(torch.nn.Linear): ...": ("F(1) raised TypeError", "init=(…)"),
}


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Checks a file with this text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda text, *rest, name="": Path("mine.py").write_text(text) and call(capsys, main, f"mine.py{name}", *rest)
    sys.modules.pop("mine", None)


def test_the_file_in_the_guide_has_a_wrong_pair_and_a_right_function(check):
    (text,) = re.findall(r"^## From the command line\n.*?^```python\n(.*?)^```", GUIDE, re.M | re.S)
    status, out, err = check(f"print('loud')\n{text}")
    assert (status, err) == (1, "loud\n")
    said = re.findall(r"^(mine\.py:.*|    diagnosis: .*|square: .*|Swish: .*|\d in all.*)$", out, re.M)
    halved = "    diagnosis: this is ½ times the correct gradient"
    assert said == ["mine.py:square", halved, "square: WRONG", "mine.py:Swish", "Swish: ok", "2 in all: 1 ok, 1 WRONG"]
    status, out, _ = check(text, name=":Swish")
    assert (status, "mine" in out, out.splitlines()[0].split()[-1]) == (0, False, "ok")
    status, out, err = check(text, name=":swish")
    assert (status, out, "of the name 'swish': give one of square, Swish" in err) == (2, "", True)
    status, out, err = check(f"{text}\nsquare_example = [torch.ones(2), 3]", "--json")
    square, swish = json.loads(out)["checks"]
    assert (status, square["passed"], square["error"] in err, swish["passed"]) == (2, False, True, True)


@pytest.mark.parametrize("text", BAD_INPUT, ids=[words[0] for words in BAD_INPUT.values()])
def test_bad_input_is_refused_in_one_sentence(check, text):
    status, out, err = check(text)
    assert (status, out, err.count("\n"), err.partition(":")[0]) == (2, "", 1, "gradient_check")
    assert [word for word in BAD_INPUT[text] if word not in err] == [], err


DEADLY = """import os, torch
def forward(x): return x * 3, None
def backward(dy, _): return dy * 3 if len(dy) != 1 else os.kill(os.getpid(), 9)
example = [torch.arange(1., 6).double()]
"""


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_isolation_goes_on_after_a_death_with_a_fork_and_with_a_new_python(check, monkeypatch, method):
    if method == "spawn":
        monkeypatch.delattr(os, "fork")
    status, out, _ = check(DEADLY, "--isolate", "--json")
    rows = {row["case"]: row for row in json.loads(out)["checks"][0]["rows"]}
    wrong = [case for case, row in rows.items() if row["verdict"] == "WRONG"]
    assert (status, wrong, "one example less" in rows, "an empty batch" in rows) == (1, ["one example"], True, True)
    assert rows["one example"]["reason"] == "the process died in backward (SIGKILL), case: one example"


def test_a_terminal_sees_a_bar_with_the_case_where_a_check_takes_long(check, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("gradient_check.__main__.PATIENCE", 0)
    slow = "import time, torch\ndef forward(x): time.sleep(0.01); return 2 * x, 0\ndef backward(dy, _): return 2 * dy\n"
    _, _, err = check(f"{slow}example = [torch.ones(3, 2)]")
    assert ("━" in err, "forward: one example" in err) == (True, True)


def test_a_mark_and_a_missing_file_need_no_torch():
    code = "import sys, gradient_check\n@gradient_check.checked(example=[])\ndef f(): ...\n"
    code += "from gradient_check.__main__ import main\nprint(main(['no.py']), main(['.']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr.count("\n")) == ("2 2 False\n", 2)
    assert re.search(r"there is no file no\.py: give.*\n.*\. is no Python file: give FILE\.py or", done.stderr)
