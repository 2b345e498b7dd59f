"""D2 pruning (Maharana et al., ICLR 2024): difficulty and diversity by messages on the k-NN graph.

The graph is sparse, the greedy pick a heap: memory is O(N k), never N x N.
"""

from __future__ import annotations

import heapq

import numpy as np
from scipy.sparse import csr_matrix

from elfs_lib.errors import ElfsError, choose
from elfs_lib.progress import track
from elfs_lib.selection.base import Selection, SelectionInputs, easiness
from elfs_lib.selection.geometry import prototype_distances

DIFFICULTIES = ("prototypicality", "uniform")


def d2(
    inputs: SelectionInputs,
    count: int,
    *,
    seed: int,
    difficulty: str = "prototypicality",
    k: int = 10,
    gamma_f: float = 1.0,
    gamma_r: float = 0.1,
) -> Selection:
    """D2 pruning with a difficulty that needs no labels.

    Args:
        difficulty: "prototypicality": distance to the k-means centroid, scaled to [0, 1];
            "uniform": 1 for all, so that only the density of the graph counts.
        k: Neighbours of each image in the graph, at most K of ``inputs.neighbors``.
        gamma_f: Width of the forward message, >= 0.
        gamma_r: Width of the reverse message, >= 0; small values push picks farther apart.

    Returns:
        Scores are the values s_i when the image was picked; high (hard, in a dense part) first.

    Raises:
        ElfsError: if an option is out of range.
    """
    choose("difficulty", difficulty, DIFFICULTIES)
    if difficulty == "uniform":
        values = np.ones(inputs.n)
    else:
        values = _unit_interval(prototype_distances(inputs, seed=seed))
    return _message_passing(inputs, values, count, k, gamma_f, gamma_r)


def d2_supervised(
    inputs: SelectionInputs,
    count: int,
    *,
    seed: int,
    score: str,
    k: int = 10,
    gamma_f: float = 1.0,
    gamma_r: float = 0.1,
) -> Selection:
    """D2 pruning with a training-dynamics score as difficulty; the seed is ignored.

    Args:
        score: Column of ``inputs.scores``, turned so that high is hard and scaled to [0, 1].
        k, gamma_f, gamma_r: As in ``d2``.
    """
    values = _unit_interval(-easiness(inputs.scores, score))
    return _message_passing(inputs, values, count, k, gamma_f, gamma_r)


def _message_passing(
    inputs: SelectionInputs,
    difficulty: np.ndarray,
    count: int,
    k: int,
    gamma_f: float,
    gamma_r: float,
) -> Selection:
    """Forward messages once, then greedy picks with reverse messages.

    With e_ij(g) = exp(-g d(i, j)^2) on the undirected k-NN graph, d between unit embeddings:

        forward:  s_i = x_i + sum_j e_ij(gamma_f) x_j
        greedy:   i = argmax s, then s_j -= e_ij(gamma_r) s_i for its neighbours j

    Messages stop when the best s left is below 0 (the paper's rule would then raise neighbours),
    so values only fall and a heap with lazy updates finds each maximum.

    These are the paper's formulas. Its code takes exp(-d) for the forward message and exp(-g d) for
    the reverse one, d between features as they are, and on CIFAR first drops the hardest share,
    which it tunes with labels, and then selects inside each class.
    """
    found = inputs.neighbors.shape[1]
    if not 1 <= k <= found:
        raise ElfsError(f"k must be from 1 to the {found} neighbours there are, not {k!r}.")
    if min(gamma_f, gamma_r) < 0:
        raise ElfsError(f"gamma_f and gamma_r must be >= 0, not {gamma_f!r} and {gamma_r!r}.")
    value = difficulty + _graph(inputs, k, gamma_f) @ difficulty
    graph = _graph(inputs, k, gamma_r)
    start, target, weight = graph.indptr, graph.indices, graph.data
    heap = [(-s, i) for i, s in enumerate(value.tolist())]
    heapq.heapify(heap)
    indices, scores = np.empty(count, dtype=np.int64), np.empty(count)
    for position in track(range(count), "Message passing"):
        negative, i = heapq.heappop(heap)
        while -negative > value[i]:  # outdated: messages came in since it was put there
            negative, i = heapq.heappushpop(heap, (-float(value[i]), i))
        indices[position], scores[position] = i, value[i]
        edges = slice(start[i], start[i + 1])
        value[target[edges]] -= weight[edges] * max(-negative, 0.0)
    return Selection(indices, scores, {"edges": int(graph.nnz)})


def _graph(inputs: SelectionInputs, k: int, gamma: float) -> csr_matrix:
    """Undirected weights exp(-gamma d^2) as float64 [N, N], sparse, at most 2 N k entries."""
    n = inputs.n
    squared = np.clip(2 - 2 * inputs.similarities[:, :k].astype(np.float64), 0, None)
    column = inputs.neighbors[:, :k].ravel()
    row_start = np.arange(0, n * k + 1, k)
    directed = csr_matrix((np.exp(-gamma * squared).ravel(), column, row_start), shape=(n, n))
    return directed.maximum(directed.T).tocsr()


def _unit_interval(values: np.ndarray) -> np.ndarray:
    """Scale to [0, 1]; equal values become 1."""
    low, high = values.min(), values.max()
    return np.ones_like(values) if low == high else (values - low) / (high - low)
