"""What the figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from elfs_lib.compute import describe_device


def machine_name(device: torch.device) -> str:
    """The processor and the threads that torch uses of it, or the GPU."""
    if device.type == "cpu":
        return f"{cpu_model()}, {torch.get_num_threads()} threads"
    return describe_device(device)


def cpu_model() -> str:
    """The processor's name, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return text.split("model name")[1].split("\n")[0].strip("\t :")
    except (OSError, IndexError):
        return platform.machine()
