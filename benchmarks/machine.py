"""What the figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_model() -> str:
    """The processor's name, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return text.split("model name")[1].split("\n")[0].strip("\t :")
    except (OSError, IndexError):
        return platform.machine()
