"""How long each first command takes, the first time and again, in a fresh clone and a fresh environment.

`python -m benchmarks.first_commands` writes the README's table. It installs what pip's cache holds.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from urllib.request import urlopen

import tyro

from benchmarks.readme import machine, write_section
from training.terminal.output import command

ROOT = Path(__file__).parent.parent
CUBE = """\
import torch

def forward(x): return x**3, x

def backward(dy, x): return 3 * x**2 * dy

example = [torch.randn(5, 3)]
"""
PICTURE = "from PIL import Image; from training.data import load; \
Image.fromarray(load('sample').test.x[0].view(28, 28).numpy()).save('my-digit.png')"
PATIENCE = 900.0  # seconds, for one command


def seconds_of(clone: Path, *arguments: str) -> float:
    """Of one command in the clone. Raises SystemExit with its output if it fails."""
    began = perf_counter()
    done = subprocess.run(arguments, cwd=clone, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return perf_counter() - began


def seconds_of_tensorboard(clone: Path, program: str) -> float:
    """Until its page answers."""
    began = perf_counter()
    arguments = [program, "--logdir", "runs", "--port", "0"]
    with subprocess.Popen(arguments, cwd=clone, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            address = next((found[0] for line in process.stderr if (found := re.search(r"http://\S+:\d+/", line))), "")
            urlopen(address).read()
            return perf_counter() - began
        finally:
            process.terminate()


def main() -> None:
    with TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        rows: list[tuple[str, float, float | None]] = []
        rows.append(("`git clone`", seconds_of(ROOT, "git", "clone", "--quiet", str(ROOT), str(clone)), None))
        made = seconds_of(clone, sys.executable, "-m", "venv", ".venv")
        binaries = clone / ".venv" / "bin"
        made += seconds_of(clone, str(binaries / "pip"), "install", "--quiet", "-r", "requirements.txt")
        rows.append(("the two commands that set up, with pip's cache filled", made, None))
        (clone / "cube.py").write_text(CUBE)
        python = partial(seconds_of, clone, str(binaries / "python"))
        seconds_of(clone, sys.executable, "-c", PICTURE)  # by another Python, so that nothing is warm

        def of_run(script: str, *more: str) -> Callable[[], float]:
            return lambda: python(script, "--checkpoint", str(next((clone / "runs").glob("*/last.pt")).parent), *more)

        timed: dict[str, Callable[[], float]] = {
            "`python train.py --impl manual`": partial(python, "train.py", "--impl", "manual"),
            "`python predict.py --checkpoint runs/… my-digit.png`": of_run("predict.py", "my-digit.png"),
            "`python explain.py --checkpoint runs/…`": of_run("explain.py"),
            "`python verify.py --model mlp`": partial(python, "verify.py", "--model", "mlp"),
            "`python -m lessons three-ways`": partial(python, "-m", "lessons", "three-ways"),
            "`tensorboard --logdir runs`, until it answers": partial(
                seconds_of_tensorboard, clone, str(binaries / "tensorboard")
            ),
            "`python -m gradient_check` on a pair of functions": partial(python, "-m", "gradient_check", "cube.py"),
        }
        rows += [(name, seconds(), seconds()) for name, seconds in timed.items()]
        rows.append(('`pytest -m "not slow"`', python("-m", "pytest", "-q", "-m", "not slow"), None))
    lines = ["| command | the first time | again |", "|---|---|---|"]
    lines += [f"| {name} | {first:.1f} s | {f'{again:.1f} s' if again else '–'} |" for name, first, again in rows]
    explanation = (
        "On the bundled sample, in a fresh clone and a fresh environment; *again* is the same command once more. "
        f"{machine()}. Measured by `python -m benchmarks.first_commands`."
    )
    write_section("first commands", "\n".join([*lines, "", explanation]))


if __name__ == "__main__":
    sys.exit(command("benchmarks.first_commands")(tyro.cli)(main, description=__doc__))
