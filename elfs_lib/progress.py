"""The progress bar of every long loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def track(iterable: Iterable | None, desc: str, total: int | None = None) -> tqdm:
    """A progress bar with an estimate of what is left, on a terminal or in a notebook.

    It appears after a second, vanishes when done, and is silent in log files and when
    ``ELFS_PROGRESS=0``, so that executed notebooks and logs do not keep it.
    """
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    quiet = os.environ.get("ELFS_PROGRESS", "1") == "0" or not watched
    return tqdm(
        iterable, desc=desc, total=total, disable=quiet, leave=False, delay=1, dynamic_ncols=True
    )
