"""Coverage-centric coreset selection (Zheng et al., ICLR 2023, algorithm 1)."""

from __future__ import annotations

import numpy as np

from elfs_lib.errors import ElfsError
from elfs_lib.selection.base import Selection, SelectionInputs, easiness
from elfs_lib.selection.double_end import hard_prune_count


def ccs(
    inputs: SelectionInputs,
    count: int,
    *,
    seed: int,
    score: str,
    hard_prune_ratio: float,
    strata: int = 50,
) -> Selection:
    """Drop the hardest, cut the rest into strata of equal score width, sample them evenly.

    The strata take their share smallest first; one that has too few images passes its leftover
    budget on to those that follow. The list takes from the strata round robin, hard strata first,
    so a coreset labelled only in part still covers the whole range.

    Args:
        score: Which column of ``inputs.scores`` is stratified.
        hard_prune_ratio: beta in [0, 1), the share of the hardest images left out. The CCS paper
            tunes it with labels for each dataset and budget.
        strata: Number of strata, at least 1 (50 in the paper).

    Returns:
        Scores are those of the column, with its own polarity; in that order.

    Raises:
        ElfsError: if strata is below 1, or beta and the budget add up to more than all images.
    """
    if strata < 1:
        raise ElfsError(f"strata must be at least 1, not {strata!r}.")
    ascending = easiness(inputs.scores, score)
    dropped = hard_prune_count(inputs.n, hard_prune_ratio, count)
    pool = np.argsort(ascending, kind="stable")[dropped:]
    stratum = equal_width_strata(ascending[pool], strata)
    sizes = np.bincount(stratum, minlength=strata)
    quotas = pass_on_quotas(sizes, count)
    # A random order inside each stratum; its first ``quota`` images are the sample
    shuffled = np.random.default_rng(seed).permutation(len(pool))
    shuffled = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    by_stratum = stratum[shuffled]
    turn = np.arange(len(pool)) - (np.cumsum(sizes) - sizes)[by_stratum]
    taken = turn < quotas[by_stratum]
    dealt = np.lexsort((by_stratum[taken], turn[taken]))
    indices = pool[shuffled[taken][dealt]]
    raw = np.asarray(inputs.scores[score], dtype=np.float64)[indices]
    return Selection(
        indices,
        raw,
        {
            "score": score,
            "hard_prune_ratio": float(hard_prune_ratio),
            "dropped_hard": dropped,
            "strata_sizes": sizes.tolist(),
            "strata_quotas": quotas.tolist(),
        },
    )


def equal_width_strata(values: np.ndarray, strata: int) -> np.ndarray:
    """Stratum of each value: int64 [N] in 0..strata-1, of equal width from min to max."""
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(len(values), dtype=np.int64)
    position = (values - low) / (high - low) * strata
    return np.minimum(position.astype(np.int64), strata - 1)


def pass_on_quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    """How many images each stratum gives: an even share, what is missing passed on.

    Args:
        sizes: int64 [S], images in each stratum; their sum is at least ``count``.
        count: The whole budget.

    Returns:
        int64 [S], never above ``sizes``, sum exactly ``count``.
    """
    quotas = np.zeros_like(sizes)
    left = count
    for turn, stratum in enumerate(np.argsort(sizes, kind="stable")):
        quotas[stratum] = min(sizes[stratum], left // (len(sizes) - turn))
        left -= quotas[stratum]
    return quotas
