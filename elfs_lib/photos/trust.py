"""How far to trust a list: other seeds, what it covers, and the search behind its beta.

Nothing here sees a label. What is computed is small beside the list itself: lists are made again
only by methods that train nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from elfs_lib.embedding.rows import unit_rows

RANDOM_LISTS = 5  # that a list's coverage is compared with
SAMPLED = 20_000  # images whose nearest listed one is looked for
BARELY = 0.5  # median confidence of pseudo-labels below which they are barely confident
ROWS_AT_ONCE = 4096


class Overlap(NamedTuple):
    """How much of a list comes back.

    Attributes:
        shares: Of the list on each other list, in [0, 1].
        chance: The mean share of a list on a random one, in [0, 1].
        noise: Two standard deviations of that share.
    """

    shares: tuple[float, ...]
    chance: float
    noise: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.shares))

    @property
    def by_chance(self) -> bool:
        """Whether the lists have no more in common than random ones may have."""
        return self.mean <= self.chance + self.noise


def overlap(chosen: np.ndarray, others: Sequence[np.ndarray], pool: int) -> Overlap:
    """Compare a list with others of its length.

    Args:
        chosen: int [count].
        others: Lists int [count].
        pool: Number of images that they are chosen from. The share on a random list is
            hypergeometric, with mean count / pool.
    """
    count, own = len(chosen), set(chosen.tolist())
    shares = tuple(len(own & set(other.tolist())) / count for other in others)
    chance = count / pool
    variance = chance * (1 - chance) * (pool - count) / max(1, pool - 1) / count
    return Overlap(shares, chance, 2 * math.sqrt(variance))


def coverage(embeddings: np.ndarray, lists: Sequence[np.ndarray], *, seed: int = 0) -> np.ndarray:
    """Mean over the images of the cosine similarity to the nearest listed one.

    Args:
        embeddings: float32 [N, D].
        lists: int [count], each with at least one image.
        seed: Draws at most 20,000 images that are looked at.

    Returns:
        float64 [number of lists] in [-1, 1].
    """
    rows = unit_rows(embeddings)
    seen = rows
    if len(rows) > SAMPLED:
        seen = rows[np.random.default_rng(seed).permutation(len(rows))[:SAMPLED]]
    parts = [seen[start : start + ROWS_AT_ONCE] for start in range(0, len(seen), ROWS_AT_ONCE)]
    return np.array(
        [
            sum(float((part @ rows[own].T).max(1).sum(dtype=np.float64)) for part in parts)
            / len(seen)
            for own in lists
        ]
    )


def coverage_table(
    embeddings: np.ndarray,
    pool: np.ndarray,
    list_of: Callable[[int], np.ndarray],
    lengths: Sequence[int],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """What lists of several lengths cover, beside random ones.

    Args:
        embeddings: float32 [N, D].
        pool: int [P], images that may be listed.
        list_of: Length -> the list int [length] of it.
        lengths: At least 1, at most P.
        seed: Draws the random lists.

    Returns:
        One row a length: images, coverage, and of 5 random lists the lowest and highest coverage,
        random_low and random_high; see :func:`coverage`.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.permutation(pool) for _ in range(RANDOM_LISTS)]
    rows = []
    for length in lengths:
        own, *drawn = coverage(
            embeddings, [list_of(length), *(draw[:length] for draw in draws)], seed=seed
        )
        rows.append((length, own, min(drawn), max(drawn)))
    return pd.DataFrame(rows, columns=["images", "coverage", "random_low", "random_high"])


class Searched(NamedTuple):
    """The search for beta, and what it can tell.

    Attributes:
        table: One row a beta, ascending: beta, accuracy (percent of the held-out pseudo-labels,
            mean over splits), error (its standard error), and alike (whether it may be as good as
            the best).
        best: The beta that was taken.
    """

    table: pd.DataFrame
    best: float

    @property
    def at_edge(self) -> bool:
        """Whether the best is the lowest or the highest of several."""
        betas = self.table["beta"].tolist()
        return len(betas) > 1 and self.best in (betas[0], betas[-1])

    @property
    def alike(self) -> list[float]:
        """Other betas that may be as good."""
        near = self.table[self.table["alike"] & (self.table["beta"] != self.best)]
        return near["beta"].tolist()


def searched(ratios: Sequence[float], scores: np.ndarray, best: float, held_out: int) -> Searched:
    """Judge a search for beta.

    Args:
        ratios: float [R], ascending.
        scores: float [R, S], percent of the held-out images that the model of a beta gets right;
            one column a split.
        best: The ratio that was taken.
        held_out: Images that a split holds out.

    A beta may be as good as the best if their accuracies differ by less than two standard errors of
    the difference. The standard error of one is that of a share of ``held_out`` images, or from the
    spread over splits where that is larger.
    """
    share = np.clip(np.asarray(scores, np.float64).mean(1) / 100, 0.0, 1.0)
    splits = scores.shape[1]
    error = np.sqrt(np.maximum(share * (1 - share), 0.25 / held_out) / (held_out * splits))
    if splits > 1:
        error = np.maximum(error, scores.std(axis=1, ddof=1) / 100 / math.sqrt(splits))
    table = pd.DataFrame({"beta": ratios, "accuracy": 100 * share, "error": 100 * error})
    own = table[table["beta"] == best].iloc[0]
    bound = 2 * np.hypot(table["error"], own["error"])
    table["alike"] = (own["accuracy"] - table["accuracy"]) < bound
    return Searched(table, best)
