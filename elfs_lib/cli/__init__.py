"""The command line, one file a group of commands."""

# in the order of elfs --help
# isort: off
from elfs_lib.cli import runs, photos, coresets, book, encoders, about
from elfs_lib.cli.shared import app
from elfs_lib.cli.commands import main

__all__ = ["about", "app", "book", "coresets", "encoders", "main", "photos", "runs"]
