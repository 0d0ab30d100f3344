"""Pictures of the user's own: opened, and read as a digit."""

from training.pictures.digit import SIDE, Reading, as_bytes, read_digit, resized
from training.pictures.opening import on_white, open_picture

__all__ = ["SIDE", "Reading", "as_bytes", "on_white", "open_picture", "read_digit", "resized"]
