"""Double-end pruning: ELFS's own selection (Zheng et al. 2025), and the label-free search of its
one free number, the hard-prune ratio beta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from elfs_lib.errors import ElfsError, choose, is_whole
from elfs_lib.progress import track
from elfs_lib.selection.base import (
    Selection,
    SelectionInputs,
    budget_count,
    easiness,
    round_half_up,
)
from elfs_lib.selection.by_class import class_quantile, rank_in_class

RATIOS = tuple(round(0.1 * step, 1) for step in range(10))  # the paper's grid: 0, 0.1 ... 0.9
QUOTAS = ("proportional", "equal")


def hard_prune_count(n: int, hard_prune_ratio: float, count: int) -> int:
    """How many of the hardest images go: round(beta N), but never so many that fewer than ``count``
    remain.

    Raises:
        ElfsError: if beta is outside [0, 1) or beta N + count exceeds N by more than rounding.
    """
    if not 0 <= hard_prune_ratio < 1:  # also refuses NaN
        raise ElfsError(f"hard_prune_ratio must be in [0, 1), not {hard_prune_ratio!r}.")
    if not _fits(hard_prune_ratio, n, count):
        raise ElfsError(
            f"hard_prune_ratio {hard_prune_ratio:g} and a budget of {count} of {n} images add up "
            f"to more than all images: use a hard_prune_ratio of at most {(n - count) / n:.3g}."
        )
    return min(round_half_up(hard_prune_ratio * n), n - count)


def feasible_ratios(ratios: Iterable[float], n: int, count: int) -> list[float]:
    """The betas of a grid that leave ``count`` of ``n`` images, ascending.

    Raises:
        ElfsError: if there is none.
    """
    fitting = sorted({float(r) for r in ratios if 0 <= r < 1 and _fits(r, n, count)})
    if not fitting:
        raise ElfsError(
            f"No hard-prune ratio of {list(ratios)} fits a budget of {count} of {n} images: "
            f"add one in [0, 1) that is at most {(n - count) / n:.3g}."
        )
    return fitting


def _fits(hard_prune_ratio: float, n: int, count: int) -> bool:
    """Whether round(beta N) images can go and ``count`` stay, to within half an image."""
    return hard_prune_ratio * n + count <= n + 0.5 + 1e-9 * n


def double_end_prune(easiness: np.ndarray, hard_prune_ratio: float, count: int) -> np.ndarray:
    """Drop the hardest beta N images, keep the next ``count``, drop the easy rest.

    Args:
        easiness: float [N], low is hard (see ``selection.easiness``). Ties break by index.
        hard_prune_ratio: beta in [0, 1).
        count: How many to keep, 1..N.

    Returns:
        int64 [count], hardest kept image first. For a fixed beta the first k of it are the
        coreset of budget k, so labelling may stop early or go on later.

    Raises:
        ElfsError: if a score is not finite, the count is not in 1..N, or beta and the budget add up
            to more than 1.
    """
    easiness = np.asarray(easiness)
    if easiness.ndim != 1 or not np.isfinite(easiness).all():
        raise ElfsError("easiness must be one finite number for each image, in one dimension.")
    if not is_whole(count, 1, len(easiness)):
        raise ElfsError(
            f"count must be a whole number from 1 to {len(easiness)}, not {count!r}: budget_count "
            "makes one of a share."
        )
    dropped = hard_prune_count(len(easiness), hard_prune_ratio, count)
    return np.argsort(easiness, kind="stable")[dropped : dropped + count]


def double_end(
    inputs: SelectionInputs, count: int, *, seed: int, score: str, hard_prune_ratio: float
) -> Selection:
    """Double-end pruning on one score; the seed is ignored.

    Args:
        score: Which column of ``inputs.scores`` ranks the images, with its own polarity.
        hard_prune_ratio: beta in [0, 1), normally from ``search_hard_prune_ratio``.
    """
    ascending = easiness(inputs.scores, score)
    indices = double_end_prune(ascending, hard_prune_ratio, count)
    raw = np.asarray(inputs.scores[score], dtype=np.float64)[indices]
    return Selection(
        indices,
        raw,
        {
            "score": score,
            "hard_prune_ratio": float(hard_prune_ratio),
            "dropped_hard": hard_prune_count(inputs.n, hard_prune_ratio, count),
            "score_hardest_kept": float(raw[0]),
            "score_easiest_kept": float(raw[-1]),
        },
    )


def double_end_balanced(
    inputs: SelectionInputs,
    count: int,
    *,
    seed: int,
    score: str,
    hard_prune_ratio: float,
    quota: str = "proportional",
) -> Selection:
    """Double-end pruning inside each pseudo-class, with the exact total; the seed is ignored.

    Every image gets its quantile inside its class, hardest first. Dropping the round(beta N) lowest
    quantiles prunes each class at its own hard end, and the next ones in order are kept, so every
    class has its share of the budget to within rounding and a smaller budget is a prefix.

    Args:
        score: Which column of ``inputs.scores`` ranks the images.
        hard_prune_ratio: beta in [0, 1).
        quota: "proportional" keeps the classes' shares; "equal" deals the budget round robin, and
            what a small class cannot fill goes to the others.
    """
    choose("quota", quota, QUOTAS)
    dropped = hard_prune_count(inputs.n, hard_prune_ratio, count)
    quantile = class_quantile(easiness(inputs.scores, score), inputs.pseudo_labels)
    kept = np.lexsort((inputs.pseudo_labels, quantile))[dropped:]
    if quota == "equal":
        labels = inputs.pseudo_labels[kept]
        turn, _ = rank_in_class(np.arange(len(kept)), labels)
        kept = kept[np.lexsort((labels, turn))]
    indices = kept[:count]
    raw = np.asarray(inputs.scores[score], dtype=np.float64)[indices]
    return Selection(
        indices,
        raw,
        {"score": score, "hard_prune_ratio": float(hard_prune_ratio), "dropped_hard": dropped},
    )


@dataclass(frozen=True)
class SearchResult:
    """The label-free search of the hard-prune ratio.

    Attributes:
        ratios: float64 [R], the ratios that fit the budget, ascending.
        scores: float64 [R, S], validation score against pseudo-labels, one column a seed.
        best: The ratio with the best mean; of equals the smallest.
    """

    ratios: np.ndarray
    scores: np.ndarray
    best: float


def search_hard_prune_ratio(
    easiness: np.ndarray,
    budget: float | int,
    *,
    fit_and_score: Callable[[np.ndarray, np.ndarray], float],
    ratios: Sequence[float] = RATIOS,
    seed: int | Sequence[int] = 0,
    validation_share: float = 0.1,
) -> SearchResult:
    """Choose beta without labels (Zheng et al. 2025).

    The pseudo-labelled images are split 90/10 (again for each seed). For each beta the 90% are
    double-end pruned to the budget's share, the caller trains on what is kept and validates on the
    10%, both with pseudo-labels, and the best mean wins.

    Args:
        easiness: float [N], low is hard.
        budget: Share in (0, 1] or count, of all N images.
        fit_and_score: Called with (train int64 [n], validation int64 [m]), positions in 0..N-1;
            trains on pseudo-labels and returns a score where higher is better.
        ratios: The betas to try; those with beta + budget above 1 are left out.
        seed: One seed, or several: a split for each.
        validation_share: Share that is held out, in (0, 1).

    Raises:
        ElfsError: if no ratio fits the budget, the split leaves a side empty, or a score is not
            finite.
    """
    n = len(easiness)
    count = budget_count(budget, n)
    feasible = feasible_ratios(ratios, n, count)
    held_out = round_half_up(validation_share * n) if 0 < validation_share < 1 else 0
    if not 1 <= held_out < n:
        raise ElfsError(
            f"validation_share {validation_share!r} of {n} images must leave both sides of the "
            "split some images: use a share such as 0.1."
        )
    seeds = [seed] if np.isscalar(seed) else list(seed)
    scores = np.empty((len(feasible), len(seeds)))
    kept = max(1, round_half_up(count / n * (n - held_out)))
    splits = [np.random.default_rng(s).permutation(n) for s in seeds]
    cells = [(r, s) for s in range(len(seeds)) for r in range(len(feasible))]
    for r, s in track(cells, "Searching the hard-prune ratio"):
        validation, train = np.sort(splits[s][:held_out]), np.sort(splits[s][held_out:])
        ratio = min(feasible[r], 1 - kept / len(train))  # the share of the 90% may round up
        pruned = train[double_end_prune(easiness[train], ratio, kept)]
        scores[r, s] = fit_and_score(pruned, validation)
        if not math.isfinite(scores[r, s]):
            raise ElfsError(
                f"Training for hard_prune_ratio {feasible[r]:g} gave the score {scores[r, s]}: "
                "lower the learning rate or train longer."
            )
    best = feasible[int(np.argmax(scores.mean(1)))]  # argmax takes the first, smallest, of equals
    return SearchResult(np.asarray(feasible), scores, best)
