"""Device and precision: the only module that asks what the machine can do."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from elfs_lib.errors import ElfsError, choose

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# mallopt(3): blocks up to this come from memory that is kept, and this much of it may lie idle.
KEPT_BLOCK = 2**27
KEPT_IDLE = 2**29
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def resolve_device(name: str = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device that exists here.

    With ``ELFS_DETERMINISTIC=1`` in the environment, torch is held to algorithms that give the same
    bits every time; an operation that has none raises torch's own error, which names it. From the
    first call on, the process keeps the memory of large arrays that are freed (Linux).

    Raises:
        ElfsError: if the device is unknown or this machine does not have it.
    """
    if os.environ.get("ELFS_DETERMINISTIC", "0") != "0":
        # cuBLAS reads this when it is first used, and every stage asks for its device before that
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    _keep_freed_memory()
    # float32 means float32, whatever the environment says: exact neighbours count on its rounding
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind = choose("device", name.partition(":")[0], ("cpu", "cuda", "mps"))
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise ElfsError(f"device is {name!r} but torch finds none here: use device: auto or cpu.")
    device = torch.device(name)
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if device.index is not None and device.index >= count:
        raise ElfsError(f"device is {name!r} but torch finds only {count} here, counted from 0.")
    return device


def release_memory() -> None:
    """Give back the memory that is kept in reserve, on a GPU too, for other processes to use."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if trim := _libc("malloc_trim"):
        trim(0)


@functools.cache
def _keep_freed_memory() -> None:
    """Have malloc reuse what was freed; it would give large blocks back to the system at once.

    The system then clears every page of the next block, which took a sixth of a training step and
    a quarter of an embedding.
    """
    if option := _libc("mallopt"):
        option(M_MMAP_THRESHOLD, KEPT_BLOCK)
        option(M_TRIM_THRESHOLD, KEPT_IDLE)


def _libc(name: str) -> Callable[..., int] | None:
    """A function of the C library on Linux; other systems, and musl, have none of those here."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn "auto", "float32" or "bfloat16" into the dtype that autocast uses.

    ``auto`` picks bfloat16 where the hardware multiplies it faster than float32: CUDA with
    bfloat16 units, and CPUs with AVX512-BF16 or AMX. Elsewhere bfloat16 is emulated and slower.
    """
    if name != "auto":
        return PRECISIONS[choose("precision", name, PRECISIONS)]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every torch
        fast = any(getattr(torch.cpu, name, bool)() for name in asked)
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def matmul_peak(
    dtype: torch.dtype, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of a square matrix product, the best of five: what training is held against.

    Measured once for each process, in about a second.

    Args:
        dtype: Of the factors.
        device: Where.
        clock: Seconds since any moment.
    """
    size = 2048 if device.type == "cpu" else 8192  # what is small for a GPU ends too soon
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def product() -> float:
        start = clock()
        a @ a
        getattr(torch, device.type).synchronize()
        return clock() - start

    product()
    return 2 * size**3 / min(product() for _ in range(5))


def resident(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device; on the CPU it shares the array's memory where it can."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to ``dtype`` on ``device``; does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def describe_device(device: torch.device) -> str:
    """Name the hardware for a manifest: GPU model, or CPU with the threads torch uses."""
    spread = dist.is_available() and dist.is_initialized()
    times = f"{dist.get_world_size()} x " if spread else ""
    if device.type == "cuda":
        return times + torch.cuda.get_device_name(device)
    return f"{times}{device.type} ({torch.get_num_threads()} threads)"
