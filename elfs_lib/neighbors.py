"""The K nearest images of each image by cosine similarity, the image itself left out.

ELFS (Zheng et al., 2025) and TEMI (Adaloglou et al., 2023) use K = 50.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from elfs_lib.clustering import unit_rows
from elfs_lib.errors import ElfsError, choose

METHODS = ("exact",)
# Candidates asked for beyond K + 1, so that near-ties are settled by one exact arithmetic.
SPARE = 8
# Floats gathered at once for exact similarities: a few MB, which stay in the cache.
GATHER_FLOATS = 1 << 20


@dataclass(frozen=True)
class Neighbors:
    """Nearest neighbours of N images.

    Attributes:
        indices: int32 [N, K], most similar first; row n never holds n.
        similarities: float32 [N, K], cosine in [-1, 1], descending along each row. Equal
            similarities stand in ascending order of index.
    """

    indices: np.ndarray
    similarities: np.ndarray


def nearest_neighbors(
    embeddings: np.ndarray, k: int, *, block: int = 4096, method: str = "exact"
) -> Neighbors:
    """Find the ``k`` most similar other rows of each row.

    Args:
        embeddings: float32 [N, D], finite, no row all zero; need not be normalised.
        k: Number of neighbours, 1..N-1.
        block: Rows searched at once; the result does not depend on it.
        method: "exact": every pair is compared.

    Raises:
        ElfsError: if ``k``, ``block`` or ``method`` is out of range, or a row is all zero or not
            finite.
    """
    choose("neighbour method", method, METHODS)
    rows = unit_rows(embeddings)
    if not 1 <= k < len(rows):
        raise ElfsError(
            f"k is {k}: it must be from 1 to {len(rows) - 1}, one less than the number of images, "
            "for an image is not its own neighbour."
        )
    if block < 1:
        raise ElfsError(f"block is {block}: it must be at least 1.")
    return _exact(rows, k, block)


def knn_accuracy(neighbors: Neighbors, labels: np.ndarray, *, k: int = 20) -> float:
    """Leave-one-out accuracy of a k-nearest-neighbour vote weighted by similarity (analysis only).

    Args:
        neighbors: As found by :func:`nearest_neighbors`.
        labels: int [N], true labels >= 0.
        k: Neighbours that vote, 1..K.

    Returns:
        Share of images in [0, 1] whose neighbours elect their own label; ties elect the lower.

    Raises:
        ElfsError: if ``labels`` does not fit or ``k`` exceeds the neighbours at hand.
    """
    labels = np.asarray(labels)
    count, found = neighbors.indices.shape
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ElfsError(f"labels must be {count} integers >= 0, not {labels.dtype} {labels.shape}.")
    if not 1 <= k <= found:
        raise ElfsError(f"k is {k}: only {found} neighbours were searched, use 1..{found}.")
    classes = int(labels.max()) + 1
    votes = labels[neighbors.indices[:, :k]].astype(np.int64) + classes * np.arange(count)[:, None]
    # Shifted by 1: a vote never counts less than nothing, whatever the sign of the cosine.
    weights = neighbors.similarities[:, :k].astype(np.float64) + 1.0
    tally = np.bincount(votes.ravel(), weights.ravel(), minlength=count * classes)
    return float((tally.reshape(count, classes).argmax(axis=1) == labels).mean())


def _exact(rows: np.ndarray, k: int, block: int) -> Neighbors:
    count = len(rows)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    wanted = min(k + 1 + SPARE, count)
    indices = np.empty((count, k), dtype=np.int32)
    similarities = np.empty((count, k), dtype=np.float32)
    for start in range(0, count, block):
        stop = min(start + block, count)
        found, candidates = index.search(rows[start:stop], wanted)
        own = np.arange(start, stop)
        indices[start:stop], similarities[start:stop] = _rank(rows, own, candidates, k)
        if wanted < count:
            # Whatever faiss left out is at most as similar as the last it found.
            doubtful = similarities[start:stop, -1] <= found[:, -1] + _rounding(rows)
            for row in own[doubtful]:
                indices[row], similarities[row] = _rank_all(rows, row, k)
    return Neighbors(indices, similarities)


def _rounding(rows: np.ndarray) -> float:
    """Bound on how far two float32 dot products of the same unit rows can differ."""
    return rows.shape[1] * 2.0**-22


def _rank(
    rows: np.ndarray, own: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order the candidates [B, M] of the rows ``own`` [B] by similarity, then index.

    The row itself is left out wherever it stands, if it stands there at all: among more than
    M duplicates it may not.

    Returns:
        Indices [B, k] and float32 similarities [B, k].
    """
    similarity = np.empty(candidates.shape, dtype=np.float32)
    step = max(1, GATHER_FLOATS // (candidates.shape[1] * rows.shape[1]))
    for start in range(0, len(own), step):
        part = slice(start, start + step)
        # One dot product per pair, always in one order: equal rows get equal similarities
        # wherever they stand, which a blocked matrix product does not promise.
        np.einsum("bd,bmd->bm", rows[own[part]], rows[candidates[part]], out=similarity[part])
    np.clip(similarity, -1.0, 1.0, out=similarity)
    similarity[candidates == own[:, None]] = -np.inf
    order = np.lexsort((candidates, -similarity), axis=1)[:, :k]
    return (
        np.take_along_axis(candidates, order, axis=1),
        np.take_along_axis(similarity, order, axis=1),
    )


def _rank_all(rows: np.ndarray, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours [k] and similarities [k] of one row among all rows."""
    rough = rows @ rows[row]
    rough[row] = -np.inf
    floor = np.partition(rough, -k)[-k] - 2 * _rounding(rows)
    candidates = np.flatnonzero(rough >= floor)[None]
    indices, similarities = _rank(rows, np.array([row]), candidates, k)
    return indices[0], similarities[0]
