"""What a selection will need, estimated before it starts from measured growth.

``growth.json`` beside this file holds the measurements; ``benchmarks/bench_selection.py`` makes it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import lsq_linear, nnls

from elfs_lib.errors import ElfsError, choose
from elfs_lib.selection.base import budget_count
from elfs_lib.selection.registry import METHODS
from elfs_lib.selection.zcore import zcore_samples

GROWTH = Path(__file__).with_name("growth.json")


class Cost(NamedTuple):
    """An estimate: bytes at the peak, inputs included, and seconds on one core."""

    bytes: int
    seconds: float


def expected_cost(method: str, n: int, dim: int, budget: float | int, *, classes: int = 10) -> Cost:
    """Estimate memory and time of a selection with the method's default options.

    Time follows a power law in N, D, the budget's share and C; memory is linear in N, N D and N C:
    both fitted to measurements on one core of the machine that ``growth_note`` names. Far outside
    the measured sizes it is an order of magnitude, not a promise. What comes before (embeddings,
    neighbours, proxy) is not counted.

    Args:
        method: A name in ``METHODS``.
        n: Number of images, N.
        dim: Dimension of the embeddings, D.
        budget: Share in (0, 1] or count.
        classes: C.

    Raises:
        ElfsError: if the method is unknown or was not measured, the budget does not fit, or a size
            is below 1.
    """
    choose("method", method, METHODS)
    if min(n, dim, classes) < 1:
        raise ElfsError(f"n, dim and classes must be at least 1, not {n}, {dim} and {classes}.")
    share = budget_count(budget, n) / n
    if not is_measured(method):
        raise ElfsError(
            f"The cost of {method!r} was not measured: run python -m benchmarks.bench_selection."
        )
    time, memory = _fits()[measured_as(method)]
    samples = zcore_samples(n) if method == "zcore" else 1
    seconds = np.exp(_time_terms(n, dim, classes, share, samples) @ time)
    return Cost(int(_memory_terms(n, dim, classes) @ memory), float(seconds))


def stages_before(method: str) -> tuple[str, ...]:
    """The stages that a run needs before a method's selection; ``expected_cost`` counts none.

    Raises:
        ElfsError: if the method is unknown.
    """
    entry = METHODS[choose("method", method, METHODS)]
    trains = bool(entry.needs & {"scores", "probabilities"})
    clusters = not entry.supervised and (trains or "pseudo_labels" in entry.needs)
    needed = {
        "every label": entry.supervised,
        "embeddings": clusters or bool(entry.needs & {"embeddings", "neighbors"}),
        "neighbours": clusters or "neighbors" in entry.needs,
        "clustering": clusters,
        "proxy training": trains,
        "search for beta": entry.takes_beta,
    }
    return tuple(stage for stage, is_needed in needed.items() if is_needed)


def growth_note() -> str:
    """On what the growth was measured."""
    return json.loads(GROWTH.read_text())["machine"]


def measured_as(method: str) -> str:
    """The method that was measured for all those that run the same function."""
    same = (name for name, entry in METHODS.items() if entry.function is METHODS[method].function)
    return next(same)


def is_measured(method: str) -> bool:
    """Whether there are measurements of a method; a new one of your own has none."""
    return measured_as(method) in _fits()


def _time_terms(n: float, dim: float, classes: float, share: float, samples: float) -> np.ndarray:
    return np.array([1.0, *np.log([n, dim, classes, share, samples])])


def _memory_terms(n: float, dim: float, classes: float) -> np.ndarray:
    return np.array([1.0, n, n * dim, n * classes])


@lru_cache(maxsize=1)
def _fits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each measured method: exponents of time (the constant first), coefficients of memory."""
    rows = json.loads(GROWTH.read_text())["rows"]
    fits = {}
    for method in {row["method"] for row in rows}:
        own = [row for row in rows if row["method"] == method]
        time_terms = np.array(
            [_time_terms(*(r[k] for k in ("n", "dim", "classes", "share", "samples"))) for r in own]
        )
        seconds = np.array([r["seconds"] for r in own])
        # Long runs weigh more: in short ones the terms that grow slowest still show
        weight = np.sqrt(seconds)
        # More images, dimensions, budget or samples never cost less; more classes may (herding)
        low = [-np.inf, 0, 0, -1, 0, 0]
        time = lsq_linear(time_terms * weight[:, None], np.log(seconds) * weight, (low, np.inf)).x
        terms = np.array([_memory_terms(r["n"], r["dim"], r["classes"]) for r in own])
        size = np.array([r["bytes"] for r in own], dtype=np.float64)
        # Relative errors count, else the largest size alone would fix the fit
        memory = nnls(terms / size[:, None], np.ones(len(own)))[0]
        fits[method] = (time, memory)
    return fits
