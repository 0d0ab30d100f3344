"""What a trial finds: verdicts with what they were made of, notes, and the diagnosis of what is wrong."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter

from torch import Tensor

from gradient_check.claims import Claims
from gradient_check.exact import Exact
from gradient_check.lines import measured
from gradient_check.oracles import contiguous, doubled
from gradient_check.report import Diagnosis, Notes, Row, quoted
from gradient_check.run import Run
from gradient_check.slopes import summands_along
from gradient_check.structure import Structure

IN_ONE, IN_ALL = 2.0, 3.0  # seconds to measure one gradient for a diagnosis, and all of a report
MOST_CALLS = 40_000  # of forward, for that
MEASURED = 4  # rows; no more are measured


@dataclass(frozen=True)
class Found:
    """A verdict, and what it was made of."""

    row: Row
    run: Run | None = None
    claims: Mapping[str, Claims] = field(default_factory=dict)
    exact: Exact | None = None

    @property
    def is_trivial(self) -> bool:
        """Whether it fails only because the gradient should be zero everywhere, which shows nothing."""
        claims = self.claims.get(self.row.name)
        return claims is not None and claims.trivial and self.row.agrees and not self.row.case

    @property
    def is_fine(self) -> bool:
        return self.row.passed or self.is_trivial


def explained(found: Iterable[Found], structure: Structure, notes: Notes) -> list[Row]:
    """The rows, those that fail with the known mistake that their values show.

    Where no oracle knows every gradient, those that are wrong are measured.
    """
    rows, count, until = [], 0, perf_counter() + IN_ALL
    for one in found:
        row, run = one.row, one.run
        if row.passed or row.diagnosis or row.inconclusive or run is None or run.gradients.get(row.name) is None:
            rows.append(row)
            continue
        if one.claims:
            known, uncertainty = {name: claims.value for name, claims in one.claims.items()}, None
            row = _at_kinks(row, run, one.claims[row.name])
        elif (count := count + 1) > MEASURED or perf_counter() > until:
            rows.append(row)
            continue
        else:
            known, uncertainty = _measured(row.name, run, notes, until)
        rows.append(_diagnosed(row, run, known, uncertainty, one.exact, structure) if known else row)
    return rows


def _diagnosed(
    row: Row,
    run: Run,
    known: Mapping[str, Tensor],
    uncertainty: Mapping[str, Tensor] | None,
    exact: Exact | None,
    structure: Structure,
) -> Row:
    from gradient_check.diagnosis import Evidence, diagnosed

    pairs = {structure.names[i] for i in structure.pairs}
    evidence = Evidence(
        arguments=dict(zip(structure.names, doubled(contiguous(run.arguments)), strict=True)),
        outputs=doubled(run.outputs),
        cotangents=doubled(contiguous(run.cotangents)),
        forward=run.subject.forward if exact is None else exact.forward,
        own=None if exact is None else run.subject.forward,
        candidates=run.said.candidates,
    )
    # of an output it is not known: two numbers at the end are taken for a pair where there are complex arguments
    pairs |= {key for key, output in evidence.named_outputs.items() if pairs and output.shape[-1:] == (2,)}
    evidence = replace(evidence, complex=frozenset(pairs))
    return diagnosed(row, run.gradients, known, evidence, uncertainty)


def _at_kinks(row: Row, run: Run, claims: Claims) -> Row:
    """With a diagnosis where all that is wrong lies at kinks."""
    given = run.gradients[row.name]
    if claims.kinks is None or not row.index or given is None:
        return row
    wrong = claims.disputed(given.detach().cpu())
    if (wrong & ~claims.kinks).any():
        return row
    text = f"only wrong at a kink: {int(wrong.sum())} elements are not between the slopes of the two sides"
    return replace(row, diagnosis=Diagnosis("kink", text))


def _measured(name: str, run: Run, notes: Notes, until: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What central differences say of the gradients, element by element, and how uncertain that is."""
    known, uncertainty, wrong = {}, {}, run.gradients[name]
    for other, given in run.gradients.items():
        argument = run.argument(other)
        swappable = given is not None and wrong is not None and argument.shape == wrong.shape
        if not argument.numel() or (other != name and not swappable):
            continue
        try:
            terms, point = summands_along(run.subject.forward, [run.position(other)], run)
            start = perf_counter()
            terms(point)
            calls = min(MOST_CALLS, int(IN_ONE / max(perf_counter() - start, 1e-6)))
            latest = min(until, start + IN_ONE)
            known[other], uncertainty[other] = measured(terms, point, most_calls=calls, until=latest)
        except Exception as error:  # forward takes the example and nothing beside it
            notes.add(f"{other} could not be measured for a diagnosis: {quoted(error)}")
    return known, uncertainty
