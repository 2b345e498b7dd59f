"""DUAL with beta-sampling (Cho et al., ICML 2025)."""

from __future__ import annotations

import numpy as np

from elfs_lib.errors import ElfsError
from elfs_lib.selection.base import Selection, SelectionInputs, easiness

ANCHORS = 10  # images whose mean places the distribution, as in the authors' code
EDGE = 1e-6  # keeps log p and log (1 - p) finite; float32 means resolve no finer


def dual(
    inputs: SelectionInputs,
    count: int,
    *,
    seed: int,
    c_d: float = 4.0,
    concentration: float = 15.0,
) -> Selection:
    """Sample without replacement, with weights DUAL score x beta density at the mean of p_y.

    With pruning rate r and mu the mean of p_y over the 10 highest DUAL scores, the density is
    Beta(C + 1 - b, b) with b = C (1 - mu) (1 - r^c_d): at low pruning rates it sits where DUAL is
    highest, and at high ones it moves to the easy images, where few labels teach most.

    Args:
        c_d: How late the distribution moves (4 in the authors' code, for CIFAR-100; larger: later).
        concentration: C. C + 1 - b is that of the authors' code, which a reader's correction of
            it makes C - b; the difference is small.

    Returns:
        Images in the order in which they were drawn; scores are their DUAL scores.
    """
    if c_d <= 0 or concentration <= 0:
        raise ElfsError(f"c_d and concentration must be > 0, not {c_d!r} and {concentration!r}.")
    score, mean = -easiness(inputs.scores, "dual"), easiness(inputs.scores, "dual_mean")
    if score.min() < 0 or mean.min() < 0 or mean.max() > 1:
        raise ElfsError("Scores dual must be >= 0 and dual_mean in [0, 1]: check the dynamics.")
    anchor = mean[np.argsort(-score, kind="stable")[:ANCHORS]].mean()
    rate = 1 - count / inputs.n
    b = concentration * (1 - anchor) * (1 - rate**c_d)
    a = concentration + 1 - b
    inner = np.clip(mean, EDGE, 1 - EDGE)
    with np.errstate(divide="ignore"):  # log 0 = -inf: an image without score is drawn last
        log_weight = np.log(score) + (a - 1) * np.log(inner) + (b - 1) * np.log1p(-inner)
    # The largest of log weight + Gumbel noise are a weighted sample without replacement
    keys = log_weight + np.random.default_rng(seed).gumbel(size=inputs.n)
    indices = np.argsort(-keys, kind="stable")[:count]
    return Selection(
        indices, score[indices], {"beta_a": float(a), "beta_b": float(b), "anchor": float(anchor)}
    )
