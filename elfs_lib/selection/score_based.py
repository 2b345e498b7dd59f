"""Methods that read one column of scores, or none: random and hardest first."""

from __future__ import annotations

import numpy as np

from elfs_lib.selection.base import Selection, SelectionInputs, easiness


def random(inputs: SelectionInputs, count: int, *, seed: int) -> Selection:
    """A uniform sample: each image draws a number in [0, 1) and the lowest draws are taken."""
    draws = np.random.default_rng(seed).random(inputs.n)
    indices = np.argsort(draws, kind="stable")[:count]
    return Selection(indices, draws[indices])


def hardest(inputs: SelectionInputs, count: int, *, seed: int, score: str) -> Selection:
    """The hardest images by one score, hardest first; the seed is ignored.

    Args:
        score: Which column of ``inputs.scores``; its polarity says which end is hard.
    """
    indices = np.argsort(easiness(inputs.scores, score), kind="stable")[:count]
    return Selection(
        indices, np.asarray(inputs.scores[score], dtype=np.float64)[indices], {"score": score}
    )
