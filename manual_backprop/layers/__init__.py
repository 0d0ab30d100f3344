"""One file per layer: `forward` and `backward` side by side, and `examples` that tests, docs and benchmarks share."""
