"""The K nearest images of each image by cosine similarity, the image itself left out.

ELFS (Zheng et al., 2025) and TEMI (Adaloglou et al., 2023) use K = 50.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from elfs_lib.compute import resolve_device, resolve_precision
from elfs_lib.embedding.disk_search import LEAST, Rows, search_on_disk
from elfs_lib.embedding.ranking import (
    RANKED,
    Neighbors,
    Ranking,
    key_values,
    rounding,
    score_keys,
)
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError, choose, is_whole
from elfs_lib.progress import track

SEARCHES = ("exact", "ivf", "hnsw", "ivf_pq")
# Candidates that a row keeps beyond 2 K before it overflows.
SPARE = 64
# Scores held at once on a GPU: 2 GiB.
SCORE_BYTES = 2**29
# Cells of 4 sqrt(N) that ivf looks into: its time grows with N to the power of 1.5.
PROBES = 32
# Rows that the others are ordered by.
PIVOTS = 256
# Mean cosine of all pairs from which float32 no longer tells them apart well enough.
TIGHT = 0.99


def nearest_neighbors(
    embeddings: np.ndarray,
    k: int,
    *,
    block: int = 1024,
    method: str = "exact",
    device: str = "cpu",
    folder: Path | None = None,
) -> Neighbors:
    """Find the ``k`` most similar other rows of each row.

    Args:
        embeddings: float32 [N, D], finite, no row all zero; need not be normalised.
        k: Number of neighbours, 1..N-1.
        block: Rows and columns compared at once; the result does not depend on it.
        method: "exact": every pair is compared. "ivf" compares each row with the rows of the
            32 nearest cells of 4 sqrt(N) that k-means makes, "hnsw" with those that a walk through
            a graph meets (both faiss); what they find is ranked exactly, but they miss some. Where
            the mean cosine is above 0.99, these three compare differences from the mean and rank in
            float64. "ivf_pq" is for memory maps that memory does not hold; see
            :mod:`elfs_lib.embedding.disk_search`. It needs a mean cosine below that, and compares
            in full what is small.
        device: See :func:`elfs_lib.compute.resolve_device`. A CUDA GPU scores the pairs of
            "exact", with the same result; everything else is done on the CPU.
        folder: Where "ivf_pq" keeps its index and leaves the answer, as memory maps; None: in a
            temporary folder, and the answer is in memory.

    Raises:
        ElfsError: if ``k``, ``block`` or ``method`` is out of range, a row is all zero or not
            finite, or there is no such device.
    """
    choose("neighbour method", method, SEARCHES)
    where = resolve_device(device)
    count = len(embeddings)
    if not is_whole(k, 1, count - 1):
        raise ElfsError(
            f"k is {k!r}: it must be a whole number from 1 to {count - 1}, one less than the "
            "number of images, for an image is not its own neighbour."
        )
    if block < 1:
        raise ElfsError(f"block is {block}: it must be at least 1.")
    if method == "ivf_pq" and count >= LEAST:
        return _on_disk(embeddings, k, folder)
    rows = unit_rows(embeddings)
    if float(np.square(rows.mean(axis=0, dtype=np.float64)).sum()) > TIGHT:
        return _in_cone(where, np.asarray(embeddings, np.float64), k, block, method)
    if method in ("ivf", "hnsw"):
        return _approximate(rows, k, method)
    return _exact_on(where, rows, k) if where.type == "cuda" else _exact(rows, k, block)


def plain_neighbors(embeddings: np.ndarray, k: int) -> Neighbors:
    """The definition of :func:`nearest_neighbors`, for small N: all N x N cosines in float64, ties
    by index. The fast ways to it must give the same."""
    rows = np.asarray(embeddings, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)  # an image is not its own neighbour
    indices = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    similarities = np.take_along_axis(cosines, indices, axis=1)
    return Neighbors(indices.astype(np.int32), similarities.astype(np.float32))


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
    labels = _fitting(labels, neighbors)
    count, found = neighbors.indices.shape
    if not 1 <= k <= found:
        raise ElfsError(f"k is {k}: only {found} neighbours were searched, use 1..{found}.")
    classes = int(labels.max()) + 1
    right = 0
    for start in range(0, count, RANKED):  # all tallies at once would be N x C
        part = slice(start, start + RANKED)
        votes = labels[neighbors.indices[part, :k]].astype(np.int64)
        votes += classes * np.arange(len(votes))[:, None]
        # Shifted by 1: a vote never counts less than nothing, whatever the sign of the cosine.
        weights = neighbors.similarities[part, :k].astype(np.float64) + 1.0
        tally = np.bincount(votes.ravel(), weights.ravel(), minlength=len(votes) * classes)
        right += int((tally.reshape(-1, classes).argmax(axis=1) == labels[part]).sum())
    return right / count


def neighbor_information(neighbors: Neighbors, labels: np.ndarray) -> float:
    """Mutual information of an image's label and the label of one of its neighbours, in nats.

    From 0 (labels do not follow the neighbours) to log C (C labels that occur equally often and
    that all neighbours share). TEMI maximises a relative of it, with soft labels and an exponent
    beta (Adaloglou et al., 2023): where its clusters have more of it than the true classes, a
    better optimum need not be nearer to these.

    Args:
        neighbors: As found by :func:`nearest_neighbors`.
        labels: int [N], classes or clusters >= 0.

    Raises:
        ElfsError: if ``labels`` does not fit.
    """
    from sklearn.metrics import mutual_info_score  # only here: it takes a while to load

    labels = _fitting(labels, neighbors).astype(np.int64)
    own, near = np.repeat(labels, neighbors.indices.shape[1]), labels[neighbors.indices].ravel()
    classes = int(labels.max()) + 1
    pairs = np.bincount(own * classes + near, minlength=classes**2).reshape(classes, classes)
    return float(mutual_info_score(None, None, contingency=pairs))


def recall(found: Neighbors, exact: Neighbors) -> float:
    """Share of the exact neighbours that ``found`` holds too, in [0, 1]."""
    pairs = zip(found.indices, exact.indices, strict=True)
    return float(np.mean([np.isin(true, own, kind="sort").mean() for own, true in pairs]))


def _fitting(labels: np.ndarray, neighbors: Neighbors) -> np.ndarray:
    labels, count = np.asarray(labels), len(neighbors.indices)
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ElfsError(f"labels must be {count} integers >= 0, not {labels.dtype} {labels.shape}.")
    return labels


def _on_disk(embeddings: np.ndarray, k: int, folder: Path | None) -> Neighbors:
    rows = Rows(embeddings)
    if rows.mean_cosine > TIGHT:
        raise ElfsError(
            f"The mean cosine of the embeddings is {rows.mean_cosine:.4f}, too near to 1 for "
            "neighbor_search: ivf_pq; set encoder_pca, which takes off what they have in common, "
            "or use exact."
        )
    if folder is not None:
        return search_on_disk(rows, k, folder)
    with tempfile.TemporaryDirectory() as temporary:
        found = search_on_disk(rows, k, Path(temporary))
        return Neighbors(np.array(found.indices), np.array(found.similarities))


def _exact(rows: np.ndarray, k: int, block: int) -> Neighbors:
    """Score pairs in blocks, keep those that may be among the nearest, rank them exactly."""
    # Rows that are alike go side by side: most neighbours are then found in the first block, and
    # rows that are ranked together share candidates in the cache.
    fast = resolve_precision("auto", torch.device("cpu"))
    names = _by_likeness(rows, fast)
    ranking = Ranking(rows[names], names, k)
    for dtype in dict.fromkeys((fast, torch.float32)):
        pending = np.flatnonzero(~ranking.done)
        if len(pending):
            listed = _sweep(ranking.rows, pending, k, block, dtype)
            sure = np.flatnonzero(~listed.overflowed)
            ranking.add(pending[sure], listed.columns[sure], listed.fill[sure])
    return ranking.finish()


def _exact_on(device: torch.device, rows: np.ndarray, k: int, held: int = SCORE_BYTES) -> Neighbors:
    """Score rows with all others on a device in float32, ``held`` pairs at once; rank the best
    exactly. Rows whose best the rough scores cannot tell are left to the ranking's own search."""
    count = len(rows)
    wide = min(k + SPARE, count - 1)
    columns = torch.from_numpy(rows).to(device)
    ranking = Ranking(rows, np.arange(count), k)
    step = max(1, held // count)
    for start in track(range(0, count, step), "neighbours"):
        scores = columns[start : start + step] @ columns.T
        scores.diagonal(start).fill_(-torch.inf)
        best, found = scores.topk(wide)
        # No unlisted row can be among the k nearest, even at the maximum rounding error of both.
        sure = best[:, -1] < best[:, k - 1] - 2 * rounding(rows)
        own = np.flatnonzero(sure.cpu().numpy() | (wide == count - 1))
        ranking.add(start + own, found.cpu().numpy()[own], np.full(len(own), wide))
    return ranking.finish()


def _in_cone(device: torch.device, rows: np.ndarray, k: int, block: int, method: str) -> Neighbors:
    """Rank rows float64 [N, D] whose cosines are all about 1, by their distance at length 1.

    What they have in common is taken off first, so that float32 finds the candidates; these are
    ranked in float64. Rows without sure candidates are compared with all in float64.
    """
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)  # so that no length overflows
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    scale = float(np.linalg.norm(rows, axis=1).max()) or 1.0
    rough = (rows / scale).astype(np.float32)
    if method in ("exact", "ivf_pq"):
        parts = _closest(device, rough, k, block)
    else:
        parts = iter([_candidates(rough, k, method)])
    count, row = len(rows), 0
    indices = np.empty((count, k), np.int32)
    similarities = np.empty((count, k), np.float32)
    for found, fill in parts:
        for some, sure in zip(found, fill, strict=True):
            candidates = np.sort(some[:sure]) if sure >= k else np.delete(np.arange(count), row)
            distance = np.square(rows[candidates] - rows[row]).sum(axis=1)
            order = np.argsort(distance, kind="stable")[:k]
            indices[row], similarities[row] = candidates[order], 1 - distance[order] / 2
            row += 1
    return Neighbors(indices, similarities)


def _closest(
    device: torch.device, rough: np.ndarray, k: int, block: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The closest others [R, M] of a block of rows float32 at a time, and how many of them count
    [R]: none where float32 cannot tell them from those that are not listed."""
    columns = torch.from_numpy(rough).to(device)
    half = columns.square().sum(dim=1) / 2
    count, wide = len(rough), min(k + SPARE, len(rough) - 1)
    for start in track(range(0, count, block), "neighbours"):
        scores = columns[start : start + block] @ columns.T - half
        scores.diagonal(start).fill_(-torch.inf)
        best, found = scores.topk(wide)
        sure = (best[:, -1] < best[:, k - 1] - 4 * rounding(rough)) | (wide == count - 1)
        yield found.cpu().numpy(), np.where(sure.cpu().numpy(), wide, 0)


def _approximate(rows: np.ndarray, k: int, method: str) -> Neighbors:
    """Let a faiss index find candidates, rank them exactly."""
    found, fill = _candidates(rows, k, method, cosine=True)
    ranking = Ranking(rows, np.arange(len(rows)), k)
    enough = np.flatnonzero(fill >= k)
    ranking.add(enough, found[enough], fill[enough])
    return ranking.finish()


def _candidates(
    rows: np.ndarray, k: int, method: str, *, cosine: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """What a faiss index finds for each row float32, ascending [N, M], and how much that is [N];
    by inner product or else by distance."""
    import faiss  # only here: it takes a while to load

    count, width = rows.shape
    metric = faiss.METRIC_INNER_PRODUCT if cosine else faiss.METRIC_L2
    if method == "ivf":
        cells = max(1, min(round(4 * count**0.5), count // 39))  # faiss wants 39 rows a cell
        flat = faiss.IndexFlat(width, metric)
        index = faiss.IndexIVFFlat(flat, width, cells, metric)
        index.nprobe = min(cells, PROBES)
        index.train(rows[:: max(1, count // (128 * cells))])
    else:
        index = faiss.IndexHNSWFlat(width, 32, metric)
        index.hnsw.efSearch = 4 * k
    index.add(rows)
    found = index.search(rows, min(k + 1 + SPARE, count))[1]
    found = np.where((found < 0) | (found == np.arange(count)[:, None]), count, found)
    found.sort(axis=1)  # those that are missing go last
    return found, (found < count).sum(axis=1)


def _by_likeness(rows: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The order of the rows int64 [N] by their nearest pivot, of a few rows far from each other."""
    few = rows[:: max(1, len(rows) // PIVOTS)]
    chain = [0]
    between = few @ few.T
    while len(chain) < len(few):
        between[:, chain[-1]] = -np.inf
        chain.append(int(between[chain[-1]].argmax()))
    few = torch.from_numpy(few[chain]).to(dtype)
    parts = torch.from_numpy(rows).split(4096)
    nearest = torch.cat([(part.to(dtype) @ few.T).float().argmax(dim=1) for part in parts])
    return np.argsort(nearest.numpy(), kind="stable")


def _sweep(rows: np.ndarray, own: np.ndarray, k: int, block: int, dtype: torch.dtype) -> _Shortlist:
    """Shortlist the neighbours of the rows ``own`` [R] among all rows by products in ``dtype``.

    If all rows are asked for, each product of two blocks serves the rows of both.
    """
    whole = torch.from_numpy(rows)
    rounded = whole.to(dtype)
    # |x'y' - xy| <= |x' - x| |y| + |x'| |y' - y| for rows x, y of length 1, rounded to x', y'
    lost = torch.linalg.vector_norm(rounded.float() - whole, dim=1).numpy() * (1 + 1e-5)
    error = lost[own] + (1 + lost[own]) * lost.max() + rounding(rows)
    listed = _Shortlist(error, k, dtype)
    memory = torch.empty(block**2, dtype=dtype)

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        shape = len(left), len(right)
        return torch.mm(left, right.T, out=memory[: math.prod(shape)].view(shape))

    blocks = [slice(i, min(i + block, len(rows))) for i in range(0, len(rows), block)]
    if len(own) < len(rows):
        for start in track(range(0, len(own), block), "neighbours"):
            part = slice(start, min(start + block, len(own)))
            for columns in blocks:
                keys = score_keys(product(rounded[own[part]], rounded[columns]))
                inside = (own[part] >= columns.start) & (own[part] < columns.stop)
                keys[inside, own[part][inside] - columns.start] = listed.nothing
                listed.add(part, columns.start, keys)
    else:
        # Blocks with themselves come first: then every row knows what a good score is.
        for part in blocks:
            keys = score_keys(product(rounded[part], rounded[part]))
            np.fill_diagonal(keys, listed.nothing)
            listed.add(part, part.start, keys)
        pairs = list(itertools.combinations(blocks, 2))
        for part, columns in track(pairs, "neighbours"):
            # Once no negative score is good enough, their order is irrelevant.
            scores = product(rounded[part], rounded[columns])
            keys = score_keys(scores, ordered=listed.floor.min() < 0)
            listed.add(part, columns.start, keys)
            listed.add(columns, part.start, keys.T)
    listed.finish(block)
    return listed


def _floor_keys(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Key of the largest score that is not above each float32 value."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32)
    shift = 32 - 8 * dtype.itemsize
    # cutting a float's last bits moves it towards 0: up, if it is negative
    bits = np.where(bits < 0, (bits ^ np.iinfo(np.int32).max) - ((1 << shift) - 1), bits)
    return (bits >> shift).astype(dtype)


class _Shortlist:
    """For each of R rows the columns that may be among its k best, as rough scores come in.

    A column is dropped only if it cannot be: k others are better even if every score is off by
    as much as it can be. A row with more than ``room`` columns so close to each other that the
    rough scores cannot part them overflows.

    Args:
        error: float32 [R], how far a score of a row can be from the exact similarity before it
            is rounded to ``dtype``.
        k: Best columns wanted.
        dtype: Of the scores.
    """

    def __init__(self, error: np.ndarray, k: int, dtype: torch.dtype):
        count, self.room, self.k = len(error), 2 * k + SPARE, k
        key = np.dtype(np.int16 if dtype == torch.bfloat16 else np.int32)
        self.margin, self.rounding = 2 * error, torch.finfo(dtype).eps / 2
        self.nothing, self.all = np.iinfo(key).min, np.iinfo(key).max
        self.columns = np.empty((count, self.room), dtype=np.int32)
        self.keys = np.full((count, self.room), self.nothing, dtype=key)
        self.fill = np.zeros(count, dtype=np.int64)
        self.floor = np.full(count, self.nothing + 1, dtype=key)
        self.overflowed = np.zeros(count, dtype=bool)

    def add(self, rows: slice, start: int, keys: np.ndarray) -> None:
        """Take in the scores [n, C] of ``rows`` with the columns from ``start`` on."""
        good = keys >= self.floor[rows, None]
        first, count = rows.start, len(keys)
        if np.count_nonzero(good) > self.room * count:
            self._merge(np.arange(count), first, start, keys)
            return
        row, column = _nonzero(good)
        new = np.bincount(row, minlength=count)
        crowded = np.flatnonzero(self.fill[rows] + new > self.room)
        if len(crowded):
            self._merge(crowded, first, 0, keys[:, :0])
            crowded = crowded[self.fill[rows][crowded] + new[crowded] > self.room]
        if len(crowded):
            self._merge(crowded, first, start, keys)
            new[crowded] = 0
            fits = new[row] > 0
            row, column = row[fits], column[fits]
        slot = np.arange(len(row)) + (self.fill[rows] - np.cumsum(new) + new)[row]
        self.columns[first + row, slot] = start + column
        self.keys[first + row, slot] = keys[row, column]
        self.fill[rows] += new

    def finish(self, block: int) -> None:
        """Drop what the last floor leaves out, ``block`` rows at a time."""
        for start in range(0, len(self.fill), block):
            some = np.arange(min(block, len(self.fill) - start))
            self._merge(some, start, 0, self.keys[: len(some), :0])

    def _merge(self, some: np.ndarray, first: int, start: int, keys: np.ndarray) -> None:
        """Raise the floor of some rows by all that they have seen and drop what is below."""
        own = first + some
        pool = np.concatenate([self.keys[own], keys[some]], axis=1)
        best = np.partition(pool, -self.k, axis=1)[:, -self.k]
        value = key_values(best)
        floor = _floor_keys(value - self.margin[own] - np.abs(value) * self.rounding, pool.dtype)
        floor = np.where(best > self.nothing, np.maximum(floor, self.floor[own]), self.floor[own])
        good = pool >= floor[:, None]
        counts = good.sum(axis=1)
        over = counts > self.room
        floor[over], good[over], counts[over] = self.all, False, 0
        self.overflowed[own] |= over
        row, place = _nonzero(good)
        seen = self.columns[own]
        column = np.where(
            place < self.room,
            seen[row, np.minimum(place, self.room - 1)],
            start + place - self.room,
        )
        slot = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        self.keys[own] = self.nothing
        self.keys[own[row], slot] = pool[row, place]
        self.columns[own[row], slot] = column
        self.fill[own], self.floor[own] = counts, floor


def _nonzero(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that are set, by row; fast for a transposed mask too."""
    if mask.flags.c_contiguous:
        return np.divmod(np.flatnonzero(mask), mask.shape[1])
    column, row = np.divmod(np.flatnonzero(mask.T), mask.shape[0])
    # short integers are sorted by their digits, in linear time
    order = np.argsort(row.astype(np.min_scalar_type(mask.shape[0])), kind="stable")
    return row[order], column[order]
