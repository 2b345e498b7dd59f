"""What the figures were measured on."""

from __future__ import annotations

import platform
import shlex
from pathlib import Path

import torch

from elfs_lib.compute import describe_device


def machine_name(device: torch.device) -> str:
    """The processor and the threads that torch uses of it, or the GPU."""
    if device.type == "cpu":
        return f"{cpu_model()}, {torch.get_num_threads()} threads"
    return describe_device(device)


def command(module: str, arguments: list[str]) -> str:
    """What was run, for a shell, without ``--out``: where a file lay matters to one machine."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument == "--out":
            next(rest, None)
        elif not argument.startswith("--out="):
            kept.append(argument)
    return shlex.join(["python", "-m", module, *kept])


def cpu_model() -> str:
    """The processor's name, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return text.split("model name")[1].split("\n")[0].strip("\t :")
    except (OSError, IndexError):
        return platform.machine()
