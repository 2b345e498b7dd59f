"""How every benchmark measures: alternating runs in one process, medians, and the spread.

On one CPU thread the clock is the CPU time of this process, which other programs on the machine
disturb little. On several threads, or with a GPU, it is the wall clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from elfs_lib.compute import matmul_peak

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage, baseline: What is measured, and what it is compared with.
        baseline_s, ours_s: Median seconds.
        ratio_median, ratio_min, ratio_max: Of baseline / ours, over the pairs of runs.
        repeats: Pairs of runs.
        share_of_peak: Arithmetic of ours over what a square product reaches in the same time, in
            [0, 1], or None where arithmetic is not what the stage spends its time on.
        note: What else there is to know.
    """

    stage: str
    baseline: str
    baseline_s: float
    ours_s: float
    ratio_median: float
    ratio_min: float
    ratio_max: float
    repeats: int
    share_of_peak: float | None
    note: str


def uses_cpu_time() -> bool:
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def clock_name() -> str:
    """What a table says of the seconds in it."""
    return "CPU time" if uses_cpu_time() else "wall clock"


def clock() -> float:
    """Seconds by the clock that fits, see above."""
    return time.process_time() if uses_cpu_time() else time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call; waits for a GPU to finish."""
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if torch.backends.mps.is_available():
        torch.mps.synchronize()
    return clock() - start


def compare(
    stage: str,
    baseline: str,
    plain: Callable[[], object],
    ours: Callable[[], object],
    *,
    repeats: int,
    flops: float | None = None,
    dtype: torch.dtype = torch.float32,
    warm_up: bool = True,
    note: str = "",
) -> Row:
    """Time two ways of doing one thing in turn, after a warm-up of each.

    Args:
        plain, ours: The two ways.
        repeats: Pairs of runs.
        flops: Multiplications and additions of ours, if they are the bulk of it.
        dtype: What ours multiplies in.
        warm_up: False where one run is long enough not to notice its start.
    """
    if warm_up:
        plain(), ours()
    pairs = [(seconds(plain), seconds(ours)) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    ours_s = statistics.median(b for _, b in pairs)
    return Row(
        stage=stage,
        baseline=baseline,
        baseline_s=statistics.median(a for a, _ in pairs),
        ours_s=ours_s,
        ratio_median=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        repeats=repeats,
        share_of_peak=flops / ours_s / matmul_peak(dtype, CPU, clock) if flops else None,
        note=note,
    )
