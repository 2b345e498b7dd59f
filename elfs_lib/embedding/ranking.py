"""The answer of a search for neighbours: candidates ranked by exact similarity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

# Rows ranked at once.
RANKED = 4096


@dataclass(frozen=True)
class Neighbors:
    """Nearest neighbours of N images.

    Attributes:
        indices: int32 [N, K], most similar first; row n never holds n.
        similarities: float32 [N, K], cosine in [-1, 1], descending along each row. Equal
            similarities stand in ascending order of index; in a tight cone, where many would be
            equal in float32, those that are equal in float64.
    """

    indices: np.ndarray
    similarities: np.ndarray


def score_keys(scores: torch.Tensor, *, ordered: bool = True) -> np.ndarray:
    """Integers in the order of the scores, int16 [R, C] of bfloat16 and int32 of float32.

    A float's bits are an integer in its order but for negative numbers, which run backwards below
    all others; they are left so if not ``ordered``. NumPy compares short integers much faster
    than anything compares bfloat16.
    """
    width = {torch.bfloat16: torch.int16, torch.float32: torch.int32}[scores.dtype]
    bits = scores.view(width).numpy()
    if ordered:
        sign = bits >> (8 * bits.itemsize - 1)
        sign &= np.iinfo(bits.dtype).max
        bits ^= sign
    return bits


def key_values(keys: np.ndarray) -> np.ndarray:
    """The float32 scores behind keys."""
    bits = keys.astype(np.int32) << (32 - 8 * keys.itemsize)
    if keys.itemsize == 2:
        sign = (keys.astype(np.int32) >> 31) & 0x7FFF0000
    else:
        sign = (bits >> 31) & np.iinfo(np.int32).max
    return (bits ^ sign).view(np.float32)


def rounding(rows: np.ndarray) -> float:
    """Bound on how far two float32 dot products of the same unit rows can differ."""
    return rows.shape[1] * 2.0**-22


class Ranking:
    """The answer as it fills: candidates of some rows at a time, ranked by exact similarity.

    Args:
        rows: float32 [N, D] of length 1.
        names: int64 [N], what each row is called in the answer.
        k: Neighbours of each row.
    """

    def __init__(self, rows: np.ndarray, names: np.ndarray, k: int):
        self.rows, self.names, self.k = rows, names, k
        self.done = np.zeros(len(rows), dtype=bool)
        self.indices = np.empty((len(rows), k), dtype=np.int32)
        self.similarities = np.empty((len(rows), k), dtype=np.float32)

    def add(self, own: np.ndarray, candidates: np.ndarray, counts: np.ndarray) -> None:
        """Rank the first ``counts`` [R] of the candidates [R, M] of the rows ``own`` [R]."""
        for start in range(0, len(own), RANKED):
            part = slice(start, start + RANKED)
            self._rank(own[part], candidates[part], counts[part])
        self.done[own] = True

    def finish(self) -> Neighbors:
        """The answer; rows without candidates are compared with every other."""
        for row in np.flatnonzero(~self.done):
            rough = self.rows @ self.rows[row]
            rough[row] = -np.inf
            floor = np.partition(rough, -self.k)[-self.k] - 2 * rounding(self.rows)
            candidates = np.flatnonzero(rough >= floor)
            self._rank(np.array([row]), candidates[None], np.array([len(candidates)]))
        return Neighbors(self.indices, self.similarities)

    def _rank(self, own: np.ndarray, candidates: np.ndarray, counts: np.ndarray) -> None:
        found = rank(self.rows[own], self.rows, self.names, candidates, counts, self.k)
        target = self.names[own]
        self.indices[target], self.similarities[target] = found


def rank(
    left: np.ndarray,
    right: np.ndarray,
    names: np.ndarray,
    candidates: np.ndarray,
    counts: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates of each row and their similarities [R, k], best first, ties by index.

    Args:
        left: float32 [R, D] of length 1, the rows.
        right: float32 [N, D] of length 1, what they are compared with.
        names: int64 [N], what each of these is called in the answer.
        candidates: int [R, M], places in ``right``.
        counts: int [R], how many of a row's candidates count: the first, at least k.
        k: Neighbours of each row.
    """
    used = np.arange(candidates.shape[1]) < counts[:, None]
    found = candidates[used]
    # one integer says both, and integers are sorted fastest
    exact = _similarities(left, right, found, counts)
    place = ~score_keys(exact).astype(np.int64) << 32
    order = np.full(candidates.shape, np.iinfo(np.int64).max)
    order[used] = place | names[found]
    order.sort(axis=1)
    best = order[:, :k]
    return best & np.iinfo(np.int32).max, key_values((~(best >> 32)).astype(np.int32))


def _similarities(
    left: np.ndarray, right: np.ndarray, found: np.ndarray, counts: np.ndarray
) -> torch.Tensor:
    """Exact similarity float32 [sum of counts] of each row with its candidates.

    One dot product for each pair, always in one order: equal rows get equal similarities
    wherever they stand, which a blocked matrix product does not promise.
    """
    ends = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
    nothing = torch.zeros(len(found))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR")  # silence torch's beta warning
        pairs = torch.sparse_csr_tensor(
            ends, torch.from_numpy(found).long(), nothing, (len(left), len(right)),
            check_invariants=False,  # columns are not sorted, which nothing here needs
        )  # fmt: skip
    columns = torch.from_numpy(right).T
    exact = torch.sparse.sampled_addmm(pairs, torch.from_numpy(left), columns, beta=0.0).values()
    return exact.clamp_(-1.0, 1.0)
