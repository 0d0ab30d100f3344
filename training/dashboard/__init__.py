"""What a run leaves behind to look at: TensorBoard's events, metrics.jsonl, and figures."""
