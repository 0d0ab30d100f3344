"""What both implementations share: data, configuration, the step, the loop, checkpoints, TensorBoard."""

import os

# How torch's threads wait for one another, which OpenMP reads once, when torch is loaded: asleep. By default they spin,
# and where another process has their core, a step in two threads then takes 50 times as long as in one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
