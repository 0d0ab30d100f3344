"""Backpropagation written by hand on raw tensors. Start with models/mlp.py."""
