"""The convolutional networks of networks.py, under their old address."""

from tests.support.networks import CNNS

__all__ = ["CNNS"]
