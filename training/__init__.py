"""What both implementations share: data, configuration, the step, the loop, checkpoints, TensorBoard."""
