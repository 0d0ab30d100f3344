"""Backpropagation written by hand on raw tensors. Start with models/mlp.py."""

import warnings

warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)  # torch works without it, and so do we
