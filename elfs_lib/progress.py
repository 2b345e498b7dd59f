"""The progress bar of every long loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def track(iterable: Iterable | None, desc: str, total: int | None = None) -> tqdm:
    """A progress bar with an estimate of what is left: text on a terminal, a widget in a notebook.

    It appears after a second, vanishes when done, and is silent in log files and when
    ``ELFS_PROGRESS=0``, so that executed notebooks and logs do not keep it.
    """
    in_notebook = _in_notebook()
    quiet = os.environ.get("ELFS_PROGRESS", "1") == "0" or not (in_notebook or sys.stderr.isatty())
    bar = tqdm
    if in_notebook and not quiet:
        from tqdm.notebook import tqdm as bar
    return bar(
        iterable, desc=desc, total=total, disable=quiet, leave=False, delay=1, dynamic_ncols=True
    )


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, and not one that merely imported it."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
