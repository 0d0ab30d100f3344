"""Everything that the README measures: `python -m benchmarks.results`, `python -m benchmarks.speed`."""
