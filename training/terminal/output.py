"""What every command does with its output, so that any pipe can take it.

An encoding such as ASCII or cp1252 lacks symbols of the mathematics. What it lacks is spelled in ASCII: `3·10⁻¹⁶` is
then `3*10^-16`, and `‖δ‖` is `||delta||`. The table is our own: transliterators for text lose powers (2⁶³ becomes 263).
"""

import codecs
import errno
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, wraps
from typing import Any, ParamSpec, TextIO, TypeVar

from rich.console import Console as RichConsole
from rich.text import Text

from training.interruption import Stopped, stopping
from training.terminal.faults import HUNG_UP, STATUSES, fault
from training.usual import usual_torch

P = ParamSpec("P")
T = TypeVar("T")

READABLE = "readable_"  # our codecs are readable_cp1252 and the like
SPELLINGS = (
    {"∂": "d", "∇": "grad", "Σ": "sum", "∑": "sum", "√": "sqrt", "∞": "inf", "λ": "lambda", "ε": "eps", "µ": "u"}
    | {"−": "-", "–": "-", "—": "-", "·": "*", "×": "x", "÷": "/", "⁄": "/", "⊙": "*", "∘": "o", "±": "+/-"}
    | {"→": "->", "←": "<-", "↦": "->", "≥": ">=", "≤": "<=", "≠": "!=", "≈": "~=", "∝": "~", "′": "'", "‖": "||"}
    | {"⟨": "<", "⟩": ">", "⌊": "floor(", "⌋": ")", "⌈": "ceil(", "⌉": ")", "✓": "ok", "✗": "x", "ß": "ss"}
    | {"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "•": "*"}
    | {"␣": "_", "⇥": "\\t", "↵": "\\n", "\ufffd": "?"}
)
RAISED, LOWERED = (
    "".join(symbol for symbol in map(chr, range(0x3000)) if unicodedata.decomposition(symbol).startswith(mark))
    for mark in ("<super>", "<sub>")
)
TO_SPELL = re.compile(f"[{RAISED}]+|[{LOWERED}]+|[^\\x00-\\x7f]")
LETTER = re.compile("(?:GREEK|LATIN) (SMALL|CAPITAL) LETTER (?:FINAL )?([A-Z]+)(?: WITH .*)?")


def readable(text: str, encoding: str) -> str:
    """`text`, with what `encoding` cannot hold spelled in ASCII; what has no spelling stays."""

    def spelled(found: re.Match[str]) -> str:
        symbols, following = found[0], text[found.end() : found.end() + 1]
        with suppress(UnicodeEncodeError):
            symbols.encode(encoding.removeprefix(READABLE))
            return symbols
        spelling = "".join(map(spelling_of, symbols))
        if symbols[0] in RAISED:
            return f"^{spelling}" if re.fullmatch(r"-?\w+", spelling) else f"^({spelling})"
        is_word = re.fullmatch("[A-Za-z]{2,}|[0-9]/[0-9]", spelling) and "LATIN" not in unicodedata.name(symbols[0])
        runs_on = following not in RAISED + LOWERED and spelling_of(following)[:1].isalnum()
        return f"{spelling} " if is_word and runs_on else spelling  # ΔC is Delta C, ½λ is 1/2 lambda

    return TO_SPELL.sub(spelled, text)


@cache
def spelling_of(symbol: str) -> str:
    """In ASCII; the symbol itself where there is no spelling."""
    if symbol.isascii() or symbol in SPELLINGS:
        return SPELLINGS.get(symbol, symbol)
    name, plain = unicodedata.name(symbol, ""), unicodedata.normalize("NFKD", symbol)
    if letter := LETTER.fullmatch(name):
        return letter[2].capitalize() if letter[1] == "CAPITAL" else letter[2].lower()
    if name.startswith("BOX DRAWINGS"):
        return "+" if " AND " in name else "|" if "VERTICAL" in name else "-"
    if name.startswith("BRAILLE"):  # a spinner
        return "."
    if unicodedata.category(symbol) in ("Mn", "Cf"):  # accents, and marks of no width
        return ""
    spelling = "".join(map(spelling_of, plain)) if plain != symbol else symbol
    return spelling if spelling.isascii() else symbol


def _codec(name: str) -> codecs.CodecInfo | None:
    if not name.startswith(READABLE):
        return None
    plain = codecs.lookup(name.removeprefix(READABLE))

    def encode(text: str, errors: str = "strict") -> tuple[bytes, int]:
        return plain.encode(readable(text, plain.name), errors)[0], len(text)

    class Encoder(codecs.IncrementalEncoder):
        def encode(self, text: str, final: bool = False) -> bytes:
            return encode(text, self.errors)[0]

    decoder = plain.incrementaldecoder
    return codecs.CodecInfo(encode, plain.decode, incrementalencoder=Encoder, incrementaldecoder=decoder, name=name)


codecs.register(_codec)


def make_readable(stream: Any) -> None:
    """Let the stream spell what its encoding lacks, and escape what has no spelling. UTF-8 keeps every symbol."""
    if not hasattr(stream, "reconfigure") or stream.encoding.startswith(READABLE):
        return
    encoding = "ascii" if asks_for_ascii(os.environ) else stream.encoding
    is_utf = codecs.lookup(encoding).name.startswith("utf")
    stream.reconfigure(encoding=None if is_utf else READABLE + encoding, errors="backslashreplace")


def asks_for_ascii(environment: Mapping[str, str]) -> bool:
    """Under LC_ALL=C Python writes UTF-8, but what reads it (less, a log viewer) shows bytes."""
    own = {"PYTHONUTF8", "PYTHONIOENCODING"} & environment.keys()
    return environment.get("LC_ALL") in ("C", "POSIX") and not own


class Console(RichConsole):
    """A rich console that spells before it measures, so that columns stay straight."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(readable(text, self.encoding), **options)

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError, which rich would turn into status 1


def command(name: str) -> Callable[[Callable[P, T]], Callable[P, T | int]]:
    """Makes a function what a shell can call: its output is readable in any pipe, and its errors are one sentence.

    The exit status is the function's own, or that of training/terminal/faults.py for what ends it; the notes on such an
    error are said too. `--help` ends with the table of all.
    """

    def decorator(main: Callable[P, T]) -> Callable[P, T | int]:
        @wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> T | int:
            for stream in ("stdout", "stderr"):
                if getattr(sys, stream) is None:  # closed by who called (>&-), or never there (a service)
                    setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
                make_readable(getattr(sys, stream))
            try:
                with stopping():
                    try:
                        with usual_torch():
                            result = main(*args, **kwargs)
                    except SystemExit as end:  # after --help, or a command line that is wrong
                        if not end.code and {"-h", "--help"} & {*_words(*args)}:
                            print(f"\n{STATUSES}")
                        sys.stdout.flush()
                        raise
                    sys.stdout.flush()
                    return result
            except (Exception, Stopped) as error:
                found = fault(error)
                if found is None:
                    raise
                sentence, status = found
                is_hung_up = isinstance(error, OSError) and error.errno == errno.EIO and not _is_there(sys.stdout)
                return _give_up(f"{name}: {sentence}", HUNG_UP if is_hung_up else status)

        return run

    return decorator


def _words(*args: Any) -> list[str]:
    """The command line: given, or the process's."""
    return args[0] if args and isinstance(args[0], list) else sys.argv


def _is_there(stream: TextIO) -> bool:
    """Whether a stream can be written to; a terminal that was closed can not."""
    try:
        os.write(stream.fileno(), b"")
    except OSError:
        return False
    return True


def _give_up(sentence: str, status: int) -> int:
    with suppress(OSError):
        print(sentence, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # what is left in it goes nowhere, or Python would try again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status
