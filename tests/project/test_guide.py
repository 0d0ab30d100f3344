"""docs/checking-your-own-backward.md does what it shows; `python -m tests.project.test_guide` writes its outputs.

Every example under a numbered heading is run from top to bottom; the `text` block after a `python` block is what that
printed, but for the digits of its errors.
"""

import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "checking-your-own-backward.md"
SECTION = re.compile(r"^## (\d\. .+?)\n(.*?)(?=^## )", re.M | re.S)
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.M | re.S)


def sections() -> dict[str, list[tuple[str, str]]]:
    """The (code, what it prints) blocks of each numbered section."""
    return {title: BLOCK.findall(text) for title, text in SECTION.findall(GUIDE.read_text())}


def printed(blocks: list[tuple[str, str]]) -> list[str]:
    """What each block prints, run one after the other."""
    namespace: dict[str, object] = {"__name__": "guide"}
    outputs = []
    for code, _ in blocks:
        with redirect_stdout(StringIO()) as output:
            exec(compile(code, GUIDE.name, "exec"), namespace)
        outputs.append(output.getvalue())
    return outputs


def stable(text: str) -> str:
    """Without the digits that rounding decides, and the spaces that align them."""
    return " ".join(re.sub(r"-?\d+\.\d+(e[+-]\d+)?|\b(line|rows of|also ok:) \d+", "#", text).split())


@pytest.mark.sweep(4)
@pytest.mark.parametrize("number", range(3))
def test_the_three_examples_print_what_the_guide_shows_and_catch_a_bug(number):
    assert len(sections()) == 3
    blocks = [*sections().values()][number]
    for (_, shown), output in zip(blocks, printed(blocks), strict=True):
        assert stable(shown) == stable(output), f"{output}\n`python -m tests.project.test_guide` writes it anew"
    assert any("WRONG" in shown and "diagnosis: " in shown for _, shown in blocks)
    assert "WRONG" not in blocks[-1][1]


@pytest.mark.long
def test_the_test_file_passes(tmp_path):
    """The example of the section on pytest, with the plugin loaded as an installed wheel loads it."""
    (code,) = re.findall(r"^## In pytest\n.*?^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    (tmp_path / "test_mine.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gradient_check.pytest_plugin", "--rootdir", tmp_path]
    done = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def rewrite() -> None:
    """Put into the guide what its examples print now."""
    guide = GUIDE.read_text()
    for blocks in sections().values():
        for (code, shown), output in zip(blocks, printed(blocks), strict=True):
            code = f"```python\n{code}```\n"
            old, new = (code + (f"\n```text\n{text}```\n" if text else "") for text in (shown, output))
            guide = guide.replace(old, new)
    GUIDE.write_text(guide)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    rewrite()
