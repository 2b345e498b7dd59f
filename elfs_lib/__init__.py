"""ELFS: label-free coreset selection with proxy training dynamics."""

__version__ = "0.1.0"
