"""Where things are: the project's folder, and the artifacts folder."""

from __future__ import annotations

import os
from pathlib import Path

from elfs_lib.artifacts import Store


def project_root() -> Path:
    """The nearest folder upwards that holds a book (``_toc.yml``), else the current folder."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "_toc.yml").exists()), here)


def default_store(*, repair: bool = False, look: bool = False) -> Store:
    """The artifacts folder: ``ELFS_ARTIFACTS_DIR``, else ``_artifacts`` in the project.

    ``ELFS_REPAIR=1`` makes it repair too, for notebooks, which take no such argument.
    """
    root = os.environ.get("ELFS_ARTIFACTS_DIR") or project_root() / "_artifacts"
    return Store(root, repair=repair or os.environ.get("ELFS_REPAIR") == "1", look=look)
