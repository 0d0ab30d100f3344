"""What a check found: a row for every comparison, as a table, as JSON, as an exit status."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, isnan, nan
from textwrap import wrap
from typing import Any, Literal

CAUSES, WIDTH = 12, 120  # that a failure lists beside the first, and characters a line
LONGEST = 56  # title in a table

KINDS = (
    "sign", "batch factor", "factor", "missing factor", "transposed", "swapped", "zero", "missing", "shape", "dtype",
    "term", "weight decay", "derivative forgotten", "mask ignored", "wrong axis", "ones", "repeated indices", "rows",
    "nan", "kink", "strided", "in place", "stale", "random", "not linear", "raised", "conjugate", "died",
    "second derivative", "inconclusive",
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """A known mistake that reproduces the wrong values: `kind` is one of KINDS, `text` a sentence for people."""

    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is not a kind of diagnosis; there are {', '.join(KINDS)}")


@dataclass(frozen=True)
class Row:
    """The verdict on one comparison."""

    name: str  # of the tensor ("dW"), or of the property that was checked ("pure")
    label: str  # what the report calls it: "BP4, layer 2, ∂C/∂W"
    shape: tuple[int, ...]
    passed: bool
    reason: str = ""  # one sentence; empty when passed
    relative_error: float = inf  # ‖difference‖ / ‖truth‖
    element_error: float = inf  # the largest |difference| / root mean square of the truth
    tolerance: float = 0.0  # what relative_error may be
    element_tolerance: float = 0.0  # what element_error may be
    origin: str = ""  # where the tolerance comes from
    oracle: str = ""  # "autograd", "reference", "dot product", "differences"; empty for properties
    case: str = ""  # what was fed; empty for the example itself
    absolute_error: float = inf  # the largest |difference|
    index: tuple[int, ...] = ()  # where it is
    actual: float = nan  # the value there
    expected: float = nan  # and the one that should be there
    ulps: float = inf  # |difference| there, in units in the last place of `expected`
    kinks: int = 0  # elements that sit at a kink, where several slopes are right
    diagnosis: Diagnosis | None = None
    inconclusive: bool = False  # not passed, and not shown to be wrong either

    @property
    def verdict(self) -> Literal["ok", "kink", "inconclusive", "WRONG"]:
        """A row at a kink neither passes nor fails; an inconclusive one does not pass."""
        if not self.passed:
            return "inconclusive" if self.inconclusive else "WRONG"
        return "kink" if self.kinks else "ok"

    @property
    def cause(self) -> str:
        """The diagnosis, where there is one, and the reason."""
        text = self.diagnosis.text if self.diagnosis else ""
        return self.reason if text in self.reason else f"{text}: {self.reason}"

    @property
    def agrees(self) -> bool:
        """Whether the values are near enough; a row that agrees may still fail, because that shows nothing."""
        return self.relative_error <= self.tolerance and self.element_error <= self.element_tolerance

    @property
    def title(self) -> str:
        """The label, and the case that was fed."""
        return f"{self.label}, {self.case}" if self.case else self.label


@dataclass(frozen=True)
class Report:
    """One row per comparison, in the order in which they were made; `notes` say what could not be checked, and why."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that do not pass: those that are wrong, then those that are inconclusive."""
        return tuple(sorted((row for row in self.rows if not row.passed), key=lambda row: row.inconclusive))

    @property
    def kinks(self) -> tuple[Row, ...]:
        """Rows with elements at a kink, where there is more than one slope and so no verdict."""
        return tuple(row for row in self.rows if row.verdict == "kink")

    @property
    def max_relative_error(self) -> float:
        """The largest of all rows; infinite if one is not a number."""
        return max((inf if isnan(row.relative_error) else row.relative_error for row in self.rows), default=0.0)

    @property
    def exit_status(self) -> int:
        """0 if all passed, 1 if a row is wrong, 2 if it is inconclusive: `sys.exit(report.exit_status)`."""
        return 0 if self.passed else 2 if self.failures[0].inconclusive else 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite become None."""
        rows = [{"verdict": row.verdict, **_finite(asdict(row))} for row in self.rows]
        return {"passed": self.passed, "rows": rows, "notes": list(self.notes)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def assert_passed(self) -> None:
        """Raise AssertionError, with the report, unless every row passed."""
        __tracebackhide__ = True  # pytest shows the line that called
        if not self.passed:
            raise AssertionError(f"\n{self}")

    def __str__(self) -> str:
        """When all is well, the rows of the example; otherwise the first failure in full and a line for each other."""
        return "\n".join(self._failed_lines() if self.failures else self._passed_lines())

    def _passed_lines(self) -> list[str]:
        shown = [row for row in self.rows if not row.case or row.kinks or row.case == "second derivative"]
        cases = {row.case for row in self.rows if row.case}
        lines = _table(shown)
        if len(shown) < len(self.rows):
            rows, others = len(self.rows) - len(shown), len(cases)
            lines.append(f"also ok: {_counted(rows, 'row')} of {_counted(others, 'other case')}")
        return lines + [f"note: {note}" for note in self.notes]

    def _failed_lines(self) -> list[str]:
        first, *others = self.failures
        lines = _table([first])
        for text in _explanation(first):
            lines += wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ", max_lines=2)
        causes: dict[tuple[str, str], list[str]] = {}
        for row in others:
            also = "inconclusive" if row.inconclusive else "also wrong"
            causes.setdefault((also, row.diagnosis.text if row.diagnosis else row.reason), []).append(row.title)
        lines += [_cut(f"{also}: {_some(titles)}: {cause}") for (also, cause), titles in causes.items()][:CAUSES]
        if len(causes) > CAUSES:
            lines.append(f"also wrong: {sum(map(len, list(causes.values())[CAUSES:]))} other rows")
        if passed := [row.title for row in self.rows if row.passed]:
            lines.append(_cut(f"ok: {', '.join(dict.fromkeys(passed))}"))
        for note in self.notes:
            lines += wrap(f"note: {note}", WIDTH, subsequent_indent="      ", max_lines=2)
        return lines


@dataclass
class Notes:
    """What could not be asked or fed, and why; edge cases of the same why in one line."""

    said: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # edge cases by why

    def add(self, why: str, case: str = "") -> None:
        if case:
            self.skipped.setdefault(why, []).append(case)
        else:
            self.said.append(why)

    def lines(self) -> list[str]:
        cases = [f"edge cases were skipped ({', '.join(names)}): {why}" for why, names in self.skipped.items()]
        return [*self.said, *cases]


def merged(reports: Iterable[Report]) -> Report:
    """The rows and notes of several reports as one; a note is said once."""
    reports = list(reports)
    notes = dict.fromkeys(note for report in reports for note in report.notes)
    return Report(tuple(row for report in reports for row in report.rows), tuple(notes))


def quoted(error: BaseException) -> str:
    """The exception's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _explanation(row: Row) -> list[str]:
    lines = []
    if row.diagnosis:
        lines.append(f"diagnosis: {row.diagnosis.text}")
    elif not (row.agrees or row.inconclusive):
        lines.append("diagnosis: unknown")
    if not row.diagnosis or row.diagnosis.text not in row.reason:
        lines.append(row.reason)
    if isfinite(row.absolute_error):
        ulps = f" or {row.ulps:.3g} units in the last place" if isfinite(row.ulps) else ""
        lines.append(f"the largest difference is {row.absolute_error:.2e}{ulps}")
    if row.origin and isfinite(row.relative_error):
        lines.append(f"what is allowed: {row.origin}")
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    titles = [title if len(title := row.title) <= LONGEST else f"{title[: LONGEST - 1]}…" for row in rows]
    oracles = [row.oracle for row in rows]
    shapes = ["×".join(map(str, row.shape)) or "-" for row in rows]
    widths = [max(map(len, column)) for column in (titles, shapes, oracles)]
    lines = []
    for row, title, shape, oracle in zip(rows, titles, shapes, oracles, strict=True):
        cells = f"{title:<{widths[0]}}  {shape:<{widths[1]}}  {oracle:<{widths[2]}}"
        verdict = f"{row.kinks} at a kink" if row.verdict == "kink" else row.verdict
        told = row.tolerance or (row.passed and not row.relative_error)
        judged = f"{row.relative_error:8.2e} of {row.tolerance:7.1e}" if told else ""
        lines.append(f"{cells}  {judged:19}  {verdict}")
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _some(titles: Sequence[str]) -> str:
    return ", ".join(titles[:3]) + (f" and {len(titles) - 3} more" if len(titles) > 3 else "")


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    return value
