"""Texts: the bundled plays, and a file of the user's own."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import Dataset
from training.data.streams import Streams
from training.errors import UserError

Tokens = Literal["characters", "bytes"]

SHAKESPEARE = Path(__file__).parent / "shakespeare" / "plays.txt.xz"
BYTES = tuple(chr(byte) if 32 < byte < 127 else f"0x{byte:02x}" for byte in range(256))
ENDS_OF_LINES = ("\n", "0x0a")
VISIBLE = {" ": "␣", "0x20": "␣", "\t": "⇥", "0x09": "⇥", **dict.fromkeys(ENDS_OF_LINES, "↵")}
SHORTEST = 11  # of which the last tenth has two: one to read, and one to predict


def load_text(path: Path, tokens: Tokens = "characters") -> Dataset:
    """The text of the UTF-8 file `path`, or as bytes any file as it is; the last tenth is for testing.

    A byte order mark is left out and the end of a line is \\n; the data set's source says so. Raises UserError for a
    file that cannot be read, is no UTF-8, or is too short.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); --dataset text needs --data-dir to be the path of a text, and "
            "--dataset shakespeare has one of its own"
        ) from error
    return _data_set("text", str(path), content, tokens)


def load_shakespeare(tokens: Tokens = "characters") -> Dataset:
    """Nine plays, in the order and the form of Tiny Shakespeare."""
    import lzma  # some builds of Python lack it, and no other data set needs it

    try:
        content = lzma.decompress(SHAKESPEARE.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"{SHAKESPEARE} cannot be read ({error}); restore it from the project's repository") from error
    return _data_set("shakespeare", "the nine bundled plays of Shakespeare", content, tokens)


def _data_set(name: str, origin: str, content: bytes, tokens: Tokens) -> Dataset:
    notes: list[str] = []
    codes = np.frombuffer(content, np.uint8) if tokens == "bytes" else _characters(origin, content, notes)
    present = np.bincount(codes) > 0
    what = f"{len(codes):,} {tokens}, {present.sum():,} different"
    if len(codes) < SHORTEST or present.sum() < 2:
        raise UserError(f"{origin} has {what}, but it needs {SHORTEST}, of which 2 are different: give a longer text")
    if tokens == "bytes":
        numbers, classes = codes.astype(np.int64), BYTES
    else:
        numbers, classes = present.cumsum(dtype=np.int64)[codes] - 1, tuple(map(chr, present.nonzero()[0]))
    ids = torch.from_numpy(numbers)
    kept = len(ids) * 9 // 10
    return Dataset(
        name=name,
        train=Streams(ids[:kept], 1, unit=tokens),
        test=Streams(ids[kept:], 1, unit=tokens),
        shape=(1,),
        classes=classes,
        source="; ".join([f"text from {origin}: {what}", *notes, "the last tenth is for testing"]),
        task="prediction of the next token",
    )


def _characters(origin: str, content: bytes, notes: list[str]) -> NDArray:
    """The code points of a UTF-8 text; what is left out of it is noted."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{origin} is not UTF-8: byte {error.start:,} is 0x{content[error.start]:02x}; convert it to UTF-8, or "
            "give --tokens bytes"
        ) from None
    if text.startswith("\ufeff"):
        text = text[1:]
        notes.append("a byte order mark is left out")
    if windows := text.count("\r\n"):
        text = text.replace("\r\n", "\n")
        notes.append(f"{windows:,} line ends \\r\\n are read as \\n")
    return np.frombuffer(text.encode("utf-32-le"), "<i4")


def visible(token: str) -> str:
    """A token as it is written in tables and figures: one that leaves no ink by a sign, or its code point."""
    return VISIBLE.get(token) or (token if token.isprintable() else f"U+{ord(token):04X}")
