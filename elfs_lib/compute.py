"""Device and precision: the only module that asks what the machine can do."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from elfs_lib.errors import ElfsError, choose, first_line

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

COMPILE = ("off", "auto", "on")
# Arithmetic of a training from which torch.compile pays: it takes about a minute, and a GPU does
# this much in about as long.
WORTH_COMPILING = 5e15
# Calls before a capture, while libraries choose algorithms and optimisers create their state.
WARM_UP = 3

# mallopt(3): blocks up to this come from memory that is kept, and this much of it may stay unused.
KEPT_BLOCK = 2**27
KEPT_IDLE = 2**29
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them

# Bytes of images that are held at a time beside a batch: samples, parts of a copy, images to test
HELD = 2**26


def configure_runtime() -> None:
    """Set what holds for the whole process: the arithmetic of torch, and malloc.

    Called wherever work starts: before a stage computes, whoever asks for it (a command, a
    notebook, a worker), by ``select``, and in each process of torchrun. A page that only reads what
    is there never imports torch. Whoever calls only the parts (:mod:`elfs_lib.training`, ...) calls
    this first, or has torch's own settings.

    - float32 is float32: no TF32 on CUDA. Exact neighbours rely on its rounding.
    - With ``ELFS_DETERMINISTIC=1`` in the environment, torch is restricted to algorithms that give
      the same bits every time; an operation that has none raises torch's own error, which names
      it. This must be set before the process first uses cuBLAS.
    - The process keeps the memory of large arrays that are freed (Linux).
    """
    if os.environ.get("ELFS_DETERMINISTIC", "0") != "0":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at first use
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    _keep_freed_memory()


def resolve_device(name: str = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device that exists here.

    Raises:
        ElfsError: if the device is unknown or this machine does not have it.
    """
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
    """FLOP/s of a square matrix product, the best of five: what training is compared with.

    Measured once for each process, in about a second.

    Args:
        dtype: Of the factors.
        device: Where.
        clock: Seconds since any moment.
    """
    size = 2048 if device.type == "cpu" else 8192  # a product that is small for a GPU ends too soon
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def product() -> float:
        start = clock()
        a @ a
        getattr(torch, device.type).synchronize()
        return clock() - start

    product()
    return 2 * size**3 / min(product() for _ in range(5))


def available(device: torch.device) -> int:
    """Bytes that can still be taken of a device's memory. On a GPU what torch keeps for reuse
    counts as free; elsewhere the limit of a container counts as all there is."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil  # only here, as Dask, which takes long to import
    from distributed.system import MEMORY_LIMIT

    own = psutil.Process().memory_info().rss
    return min(psutil.virtual_memory().available, MEMORY_LIMIT - own)


def resident(
    array: np.ndarray, device: torch.device, rows: np.ndarray | None = None
) -> torch.Tensor:
    """An array as a tensor on the device, without another copy on the way.

    Args:
        array: Of any size, a memory map too. All of it, on the CPU, shares its memory where it can.
        device: Where.
        rows: int64 [n], the rows that are wanted, in this order; None for all.
    """
    flags = array.flags
    if rows is None and device.type == "cpu" and flags.c_contiguous and flags.writeable:
        return torch.from_numpy(array)
    count = len(array) if rows is None else len(rows)
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    found = torch.empty((count, *array.shape[1:]), dtype=dtype, device=device)
    step = at_a_time(array[:1].nbytes, count)
    for part in (slice(start, start + step) for start in range(0, count, step)):
        found[part] = torch.tensor(array[part if rows is None else rows[part]])
    return found


def at_a_time(size: int, most: int) -> int:
    """How many images of a size in bytes are held at a time: one or more, at most ``most``, as
    ``HELD`` has room for."""
    return max(1, min(most, HELD // max(1, size)))


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to ``dtype`` on ``device``; does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def compiles(choice: str, device: torch.device, flops: float) -> bool:
    """Whether torch.compile should work on a network.

    Args:
        choice: "off", "auto" or "on". ``auto`` compiles on CUDA only, and there only work that
            takes longer than compiling.
        device: Where the network is.
        flops: Multiplications and additions of the whole work.
    """
    choose("compile", choice, COMPILE)
    return choice == "on" or (
        choice == "auto" and device.type == "cuda" and flops >= WORTH_COMPILING
    )


def replays(choice: str, device: torch.device) -> bool:
    """Whether steps are captured and replayed: on CUDA, unless ``choice`` (as for
    :func:`compiles`) is "off"."""
    return choose("compile", choice, COMPILE) != "off" and device.type == "cuda"


def compiled(network: nn.Module, *runs: Callable[[nn.Module], object]) -> nn.Module:
    """A network by torch.compile; if that fails, or its gradient is not finite, the network itself,
    and a sentence that says so.

    Args:
        network: Its parameters stay its own, and are those of what is returned.
        *runs: Each runs the network once, on a batch of one of the shapes that will come, with a
            backward pass if it is to be trained: torch compiles what it sees. Buffers (running
            moments) are put back afterwards, and gradients dropped.
    """
    held = [buffer.clone() for buffer in network.buffers()]
    fast = torch.compile(network, dynamic=False)
    try:
        for run in runs:
            run(fast)
        grads = [weight.grad for weight in network.parameters() if weight.grad is not None]
        if not all(torch.isfinite(grad).all() for grad in grads):
            raise FloatingPointError("the gradient is not finite")
    except Exception as error:  # compilers call compilers: any exception may come
        print(
            f"torch.compile failed ({type(error).__name__}: {first_line(error)[:120]}): going on "
            "without it.",
            file=sys.stderr,
        )
        fast = network
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), held, strict=True):
            buffer.copy_(before)
    network.zero_grad(set_to_none=True)
    return fast


class Replayed:
    """Work on tensors that a GPU repeats as a CUDA graph, without Python launching each kernel
    again.

    A step of a small network is hundreds of kernels that finish faster than Python can launch them.
    The first calls with tensors of new shapes are run as they are, the next is captured, and from
    then on replayed. So what the work reads besides its arguments must be tensors that stay at
    their address, such as weights; numbers keep their value of the capture. If the capture fails,
    all calls are run as they are, and one sentence says so.

    Args:
        work: Takes tensors, returns a tuple of tensors. It must not synchronise with the GPU.
        capture: What makes a graph of a call without arguments: returns its result, of which the
            values are not there yet, and what fills them in, as often as it is called.
    """

    def __init__(
        self,
        work: Callable[..., tuple[torch.Tensor, ...]],
        capture: Callable[[Callable[[], tuple]], tuple[tuple, Callable[[], None]]] | None = None,
    ):
        self._work, self._capture = work, capture or _Capture()
        self._calls: Counter[tuple] = Counter()
        self._graphs: dict[tuple, tuple] = {}
        self._works = True

    def __call__(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the work. What is returned may be overwritten by the next call."""
        shapes = tuple(tensor.shape for tensor in given)
        self._calls[shapes] += 1
        if shapes not in self._graphs and (not self._works or self._calls[shapes] <= WARM_UP):
            return self._work(*given)
        if shapes not in self._graphs:
            held = tuple(tensor.clone() for tensor in given)
            try:
                self._graphs[shapes] = held, *self._capture(lambda: self._work(*held))
            except RuntimeError as error:
                reason = first_line(error)[:120]
                print(f"No CUDA graph ({reason}): going on without one.", file=sys.stderr)
                self._works = False
                return self._work(*given)
        held, found, replay = self._graphs[shapes]
        torch._foreach_copy_(held, given)
        replay()
        return found


class _Capture:
    """Captures on the current stream; all graphs share their memory, since one runs at a time."""

    def __init__(self) -> None:
        self._pool = None

    def __call__(self, work: Callable[[], tuple]) -> tuple[tuple, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # what other threads upload meanwhile is not captured
        options = {"stream": torch.cuda.current_stream(), "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, pool=self._pool, **options):
            found = work()
        self._pool = graph.pool()
        return found, graph.replay


@contextmanager
def own_stream(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """A CUDA stream other than the default one, on which nothing can be captured."""
    if not wanted or device.type != "cuda":
        yield
        return
    outer, inner = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    inner.wait_stream(outer)
    with torch.cuda.stream(inner):
        yield
    outer.wait_stream(inner)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device, without waiting until a GPU has it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def describe_device(device: torch.device) -> str:
    """Name the hardware for a manifest: GPU model, or CPU with the threads torch uses."""
    spread = dist.is_available() and dist.is_initialized()
    times = f"{dist.get_world_size()} x " if spread else ""
    if device.type == "cuda":
        return times + torch.cuda.get_device_name(device)
    return f"{times}{device.type} ({torch.get_num_threads()} threads)"
