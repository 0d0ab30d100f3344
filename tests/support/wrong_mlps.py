"""The wrong perceptrons are entries of the gallery now: import them from there."""

from gallery.perceptron import *  # noqa: F403
