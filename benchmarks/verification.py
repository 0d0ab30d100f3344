"""Verify all that is hand-written and write the README's table of the largest errors.

    python -m benchmarks.verification

Some minutes; the exit status is that of verify.py.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from benchmarks.readme import machine, write_section
from training.terminal.output import command

DTYPES = ("float64", "float32")
SCRIPT = Path(__file__).parent.parent / "verify.py"


def verify(dtype: str) -> dict[str, Any]:
    """What `verify.py --all --json` says; leaves with its exit status if anything differs."""
    command = [sys.executable, str(SCRIPT), "--all", "--dtype", dtype, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line per part; `results` are what verify.py said by dtype."""
    lines = ["| | comparisons | " + " | ".join(f"largest error, {dtype}" for dtype in results) + " |"]
    lines.append("|---|" + "---|" * (1 + len(results)))
    first = next(iter(results.values()))
    for part in dict.fromkeys(check["part"] for check in first["checks"]):
        own = {dtype: [c for c in result["checks"] if c["part"] == part] for dtype, result in results.items()}
        count = len(next(iter(own.values())))
        name = f"{count} {part}" if part in ("layers", "costs") else f"`{part}`, {count} networks"
        comparisons = sum(check["comparisons"] for checks in own.values() for check in checks)
        errors = [max(check["largest_relative_error"] for check in checks) for checks in own.values()]
        lines.append(f"| {name} | {comparisons:,} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
    return "\n".join(lines)


def main() -> None:
    results = {dtype: verify(dtype) for dtype in DTYPES}
    first, last = results[DTYPES[0]]["seeds"]
    explanation = (
        f"‖by hand − autograd‖ / ‖autograd‖, the largest of all draws (seeds {first} to {last}), in float32 against "
        f"the result in float64. {machine()}. Measured by `make verify`: `verify.py --all` at either precision."
    )
    write_section("verify", f"{table(results)}\n\n{explanation}")


if __name__ == "__main__":
    sys.exit(command("benchmarks.verification")(tyro.cli)(main, description=__doc__))
