"""BADGE (Ash et al., ICLR 2020): k-means++ over the gradient embeddings of the proxy's last layer.

The gradient embedding of image i is g_i = q_i (x) h_i with q_i = p_i - onehot(argmax p_i) and h_i
its features: C x D numbers that are never written down, because

    <g_i, g_j> = <q_i, q_j> <h_i, h_j>.

In the paper a network is trained on the labels bought so far, h is its last hidden layer, and the
picks come round after round. Without labels there is one round: p is the proxy's, trained on
pseudo-labels, and h is the embedding of the frozen encoder.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from elfs_lib.errors import ElfsError
from elfs_lib.progress import track
from elfs_lib.selection.base import Selection, SelectionInputs
from elfs_lib.selection.geometry import BLOCK, check_finite


def badge(inputs: SelectionInputs, count: int, *, seed: int, batch: int = 512) -> Selection:
    """k-means++ seeding on g: each pick is drawn with probability proportional to D^2.

    D^2 is the squared distance of g_i to the nearest pick; the first pick is the largest gradient,
    as in the authors' code. Draws come in rounds: distances of all N images are updated once a
    round, and within it a proposal from the old D^2 is accepted with probability new D^2 / old D^2.
    That is k-means++ exactly, for one matrix product a round instead of a pass a pick.

    Args:
        batch: Picks in a round.

    Returns:
        Scores are D of each pick when it was drawn (the norm of its gradient for the first).
    """
    if batch < 1:
        raise ElfsError(f"batch must be at least 1, not {batch!r}.")
    check_finite(inputs.embeddings)
    factors = _Factors(inputs.embeddings, inputs.probabilities)
    rng = np.random.default_rng(seed)
    nearest, taken = np.full(inputs.n, np.inf), np.zeros(inputs.n, dtype=bool)
    indices, squared = np.empty(count, dtype=np.int64), np.zeros(count)
    first = int(np.argmax(factors.norms))
    indices[0], squared[0], taken[first] = first, factors.norms[first], True
    this_round = _Picks(factors, batch)
    this_round.add(first)
    refused, rounds, cumulative = batch, 0, nearest  # a first update is due
    for position in track(range(1, count), "BADGE"):
        while True:
            if this_round.full or refused >= batch:
                this_round.lower(nearest)
                nearest[indices[:position]] = 0  # free of rounding
                cumulative = np.cumsum(nearest)
                refused, rounds = 0, rounds + 1
            if cumulative[-1] <= 0:  # only copies of picks are left: take them by index
                indices[position:] = np.flatnonzero(~taken)[: count - position]
                return Selection(indices, np.sqrt(squared), {"rounds": rounds})
            draw, toss = rng.random(2)
            i = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
            now = 0.0 if taken[i] else min(nearest[i], this_round.nearest_to(i))
            if toss * nearest[i] < now:
                break
            refused += 1
        indices[position], squared[position], taken[i] = i, now, True
        this_round.add(i)
    return Selection(indices, np.sqrt(squared), {"rounds": rounds})


class _Factors:
    """q_i, h_i and ||g_i||^2 = ||q_i||^2 ||h_i||^2 of all images."""

    def __init__(self, features: np.ndarray, probabilities: np.ndarray):
        self.features, self.probabilities = features, probabilities
        self.predicted = probabilities.argmax(1)
        self.norms = np.empty(len(features))
        for rows in self.blocks():
            q, h = self.of(rows)
            self.norms[rows] = np.einsum("nc,nc->n", q, q) * np.einsum("nd,nd->n", h, h)

    def blocks(self) -> Iterator[np.ndarray]:
        """All row numbers, a block at a time."""
        for start in range(0, len(self.features), BLOCK):
            yield np.arange(start, min(start + BLOCK, len(self.features)))

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(q float32 [B, C], h float32 [B, D]), copies."""
        q = self.probabilities[rows]
        q[np.arange(len(rows)), self.predicted[rows]] -= 1
        return q, self.features[rows]


class _Picks:
    """The picks of one round, which are not yet in the distances of all images."""

    def __init__(self, factors: _Factors, batch: int):
        self.factors, self.size = factors, 0
        self.q = np.empty((batch, factors.probabilities.shape[1]), dtype=np.float32)
        self.h = np.empty((batch, factors.features.shape[1]), dtype=np.float32)
        self.norms = np.empty(batch)

    @property
    def full(self) -> bool:
        return self.size == len(self.norms)

    def add(self, i: int) -> None:
        q, h = self.factors.of(np.array([i]))
        self.q[self.size], self.h[self.size] = q[0], h[0]
        self.norms[self.size] = self.factors.norms[i]
        self.size += 1

    def _nearest(self, rows: np.ndarray) -> np.ndarray:
        """Squared distance of each row to the nearest pick: float64 [B], at least 0."""
        q, h = self.factors.of(rows)
        inner = (q @ self.q[: self.size].T) * (h @ self.h[: self.size].T)
        squared = self.factors.norms[rows, None] + self.norms[: self.size] - 2.0 * inner
        return np.maximum(squared.min(1), 0)

    def nearest_to(self, i: int) -> float:
        """Squared distance of one image to the nearest pick; infinite when there is none."""
        return float(self._nearest(np.array([i]))[0]) if self.size else np.inf

    def lower(self, nearest: np.ndarray) -> None:
        """Update the distances of all images, in place, and start the next round."""
        if self.size:
            for rows in self.factors.blocks():
                nearest[rows] = np.minimum(nearest[rows], self._nearest(rows))
        self.size = 0
