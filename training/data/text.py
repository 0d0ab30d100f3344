"""Texts: the bundled plays, and a file of the user's own."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unicodedata import category

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.dataset import Dataset
from training.data.streams import Streams
from training.errors import UserError, listed

Tokens = Literal["characters", "bytes"]

SHAKESPEARE = Path(__file__).parent / "shakespeare" / "plays.txt.xz"
BYTES = tuple(chr(byte) if 32 < byte < 127 else f"0x{byte:02x}" for byte in range(256))
SPACES, ENDS_OF_LINES = (" ", "0x20"), ("\n", "0x0a")
VISIBLE = {**dict.fromkeys(SPACES, "␣"), "\t": "⇥", "0x09": "⇥", **dict.fromkeys(ENDS_OF_LINES, "↵")}
SHORTEST = 11  # of which the last tenth has two: one to read, and one to predict


@dataclass(frozen=True)
class Vocabulary:
    """Which id stands for what in a text: a character each, a byte of UTF-8, or, in `classes` of words, a word each."""

    classes: tuple[str, ...]
    tokens: Tokens

    @property
    def between(self) -> str:
        """What stands between two of them."""
        return "" if max(map(len, self.classes)) == 1 else " "

    def encode(self, option: str, text: str) -> list[int]:
        """The ids of `text`, the value of `option`; the end of a line is \\n, as in `load_text`.

        Raises UserError for a text that is empty or has what no id is for.
        """
        pieces = text.split() if self.between else text.replace("\r\n", "\n")
        if not pieces:
            raise UserError(f"{option} is empty: give a text to go on with")
        if self.tokens == "bytes":
            return list(text.encode(errors="surrogateescape"))  # as a command line has bytes that are not UTF-8
        return self.ids_of(option, pieces).tolist()

    def ids_of(self, where: str, pieces: Iterable[str]) -> Tensor:
        """The ids of characters or words. Raises UserError for those that `where` has and this vocabulary lacks."""
        number = {name: i for i, name in enumerate(self.classes)}
        if unknown := [piece for piece in dict.fromkeys(pieces) if piece not in number]:
            raise UserError(
                f"{where} has {self.tokens} that this network never saw: {listed([*map(repr, unknown)])}; it knows "
                f"{len(number):,}: {listed([*map(repr, self.classes)])}"
            )
        return torch.tensor([number[piece] for piece in pieces])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, with \\r\\n as \\n.

        U+FFFD stands for what is not UTF-8, and for control characters but \\n and \\t.
        """
        if self.tokens == "bytes":
            text = bytes(ids).decode(errors="replace")
        else:
            text = self.between.join(self.classes[i] for i in ids)
        text = text.replace("\r\n", "\n")
        return "".join("\ufffd" if category(c) == "Cc" and c not in "\n\t" else c for c in text)


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
