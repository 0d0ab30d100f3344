"""The configuration of a run: plain data in groups, checked field by field. It builds nothing.

What belongs to one family of networks stands in training/families/, whose classes inherit `Config`.
families/configure.py puts a configuration together. prepare.py replaces every `auto` and every setting that is left
open, so that what is written into the run directory reproduces the run.
"""

from training.config.config import Config, takes_logits
from training.config.groups import GROUPS

__all__ = ["GROUPS", "Config", "takes_logits"]
