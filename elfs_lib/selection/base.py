"""What every selection method takes and gives: inputs, result, budget, polarity of the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from elfs_lib.errors import ElfsError, choose


@dataclass(frozen=True)
class Score:
    """A training-dynamics score.

    Attributes:
        name: Of its column in the table of :class:`elfs_lib.training.dynamics.DynamicsRecorder`,
            and what users type.
        hard: Which end of it is hard.
        range: Its values, over T epochs and C classes.
        summary: One line for people.
        citation: Key in the book's bibliography.
    """

    name: str
    _: KW_ONLY
    hard: Literal["low", "high"]
    range: str
    summary: str
    citation: str


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("aum", hard="low", range="[-T, T]",
              summary="area under the margin, summed over T epochs", citation="pleiss2020"),
        Score("margin_mean", hard="low", range="[-1, 1]",
              summary="area under the margin over T", citation="pleiss2020"),
        Score("forgetting", hard="high", range="[0, T + 1]",
              summary="times learnt and forgotten", citation="toneva2019"),
        Score("el2n", hard="high", range="[0, sqrt 2]",
              summary="norm of the early error vector", citation="paul2021"),
        Score("correctness", hard="low", range="[0, 1]",
              summary="share of epochs predicted right", citation="swayamdipta2020"),
        Score("entropy", hard="high", range="[0, log C]",
              summary="mean entropy of the prediction", citation="coleman2020"),
        Score("dual", hard="high", range="[0, 1)",
              summary="windowed std x (1 - mean) of p_y", citation="cho2025"),
        Score("dual_mean", hard="low", range="[0, 1]",
              summary="mean of p_y over the epochs", citation="cho2025"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class SelectionInputs:
    """All that a method may look at; a method's ``needs`` says which fields must be there.

    Attributes:
        n: Size of the training split, N.
        embeddings: float32 [N, D], not necessarily normalised.
        neighbors: int32 [N, K], nearest first, the image itself left out.
        similarities: float32 [N, K], cosine similarities of ``neighbors``.
        pseudo_labels: int64 [N], values in 0..C-1. For methods that the registry calls
            supervised the caller puts the true labels here.
        probabilities: float32 [N, C], softmax outputs of the proxy.
        scores: Columns of the dynamics table, each [N]. For supervised methods the caller
            computes them with true labels; for all others with pseudo-labels.
        classes: C, the number of classes (None: not known, read off ``pseudo_labels``).
    """

    n: int
    embeddings: np.ndarray | None = None
    neighbors: np.ndarray | None = None
    similarities: np.ndarray | None = None
    pseudo_labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    classes: int | None = None


@dataclass(frozen=True)
class Selection:
    """A coreset in the order in which it should be labelled.

    Attributes:
        indices: int64 [count], distinct positions in 0..N-1; the first is to be labelled first.
        scores: float64 [count], the method's own figure for each (see the method's polarity).
        info: What the method found on the way (threshold, strata, rounds ...), plain values.
    """

    indices: np.ndarray
    scores: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)


def budget_count(budget: float | int, n: int) -> int:
    """Turn a budget into a number of images.

    Args:
        budget: A share in (0, 1] given as a float (rounded to the nearest image, halves up), or a
            whole number of images from 1 to N. So 1.0 means all images and 1 means one image.
        n: Number of images, N.

    Returns:
        A count in 1..N.

    Raises:
        ElfsError: if the budget is 0, negative, above N, not a number, or above 1 and not whole.
    """
    rule = f"use a share in (0, 1] such as 0.1, or a whole number of images from 1 to {n}"
    if isinstance(budget, bool) or not isinstance(budget, Real) or not math.isfinite(budget):
        raise ElfsError(f"budget must be a number, not {budget!r}: {rule}.")
    if budget <= 0:
        raise ElfsError(f"budget must be above 0, not {budget!r}: {rule}.")
    if not isinstance(budget, Integral) and budget <= 1:
        count = round_half_up(float(budget) * n)
        if count == 0:
            raise ElfsError(f"budget {budget!r} of {n} images rounds to no image at all: {rule}.")
        return count
    if budget != int(budget):
        raise ElfsError(f"budget {budget!r} is neither a share nor a whole number: {rule}.")
    if budget > n:
        raise ElfsError(f"budget {budget!r} is above the {n} images there are: {rule}.")
    return int(budget)


def round_half_up(value: float) -> int:
    """Nearest whole number, halves up (Python's ``round`` sends 0.5 and 2.5 to even numbers)."""
    return math.floor(value + 0.5)


def easiness(scores: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """One score, turned so that ASCENDING means hardest first.

    Args:
        scores: Columns of the dynamics table (a mapping or a data frame), each [N].
        name: A name in ``SCORES``; its polarity decides whether the sign is flipped.

    Returns:
        float64 [N], a new array: low is hard, high is easy.

    Raises:
        ElfsError: if the score is unknown, missing from the table, or not finite.
    """
    choose("score", name, SCORES)
    if name not in scores:
        raise ElfsError(
            f"The table of scores has no column {name!r}: train the proxy with dynamics that "
            f"record it, or choose one of {', '.join(map(str, scores)) or 'none'}."
        )
    values = np.asarray(scores[name], dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ElfsError(f"Score {name!r} must be one finite number for each image: check training.")
    return values.copy() if SCORES[name].hard == "low" else -values
