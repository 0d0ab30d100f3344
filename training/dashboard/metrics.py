"""metrics.jsonl: the scalars of a run in full precision, one JSON object a line."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.files import replacing

METRICS = "metrics.jsonl"


class MetricsFile:
    """`path`, open for appending, with only the lines before `start_step` left in it."""

    def __init__(self, path: Path, start_step: int) -> None:
        kept = [m for m in read_metrics(path) if m["step"] < start_step] if path.exists() else []
        with replacing(path) as file:
            file.writelines(f"{json.dumps(metrics)}\n".encode() for metrics in kept)
        self.file = path.open("a", buffering=1, encoding="utf-8")  # line by line, so that a kill loses none

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line; NaN and ±∞ are null."""
        exact = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self.file.write(json.dumps({"step": step, **exact}) + "\n")

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a metrics.jsonl, in order; a last line that a killed process left unfinished is no part of it."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
