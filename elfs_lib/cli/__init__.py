"""The command line."""

from elfs_lib.cli.commands import app, main

__all__ = ["app", "main"]
