"""Coverage: greedy picks so that every image lies close to one (ProbCover, MaxHerding, facility
location).

All three maximise the generalised coverage of Bae et al. (ECCV 2024),

    C(S) = mean_n max_{s in S} k(x_s, x_n),

with a kernel k >= 0 of their own: a top-hat, a Gaussian, the cosine. C grows with S, and what an
image adds only shrinks as S grows (it is submodular), so an old gain bounds the present one and few
of them have to be recomputed for a pick. The kernel is computed in tiles and never kept: memory is
O(N D), time O(N^2 D) once and less from then on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError
from elfs_lib.progress import track
from elfs_lib.selection.base import Selection, SelectionInputs
from elfs_lib.selection.prototypes import kmeans_clusters

TILE = 512, 4096  # candidates and images compared at once: 8 MB, which stay in the cache
FIRST = 16  # candidates whose gains are updated first
ROUNDING = 1e-6  # of cosines in float32
ALIKE = 1e-5  # gains that differ by less, beside 1 and themselves, are equal

# Turns cosine similarities float32 into values of the kernel, float32, in place
Kernel = Callable[[np.ndarray], np.ndarray]


def prob_cover(
    inputs: SelectionInputs,
    count: int,
    *,
    seed: int,
    delta: float | None = None,
    clusters: int | None = None,
    purity: float = 0.95,
) -> Selection:
    """ProbCover (Yehuda et al., NeurIPS 2022, algorithm 1): the image whose ball covers the most
    images that no earlier ball covers; a ball holds what is closer than delta.

    Delta is the largest radius at which at least ``purity`` of the balls are pure, that is, hold
    images of one k-means cluster only. A ball is pure up to the distance of the
    nearest image of another cluster, so delta is a quantile of these distances and no grid is
    searched. Embeddings are L2-normalised. Once everything is covered, coverage starts over.

    Args:
        delta: Radius of the balls, above 0; None: found as above.
        clusters: k of k-means; None: the number of classes.
        purity: Share of the balls that must be pure, in (0, 1].

    Returns:
        Scores are the shares of all images that the pick covers first, in [0, 1]; ``info`` has
        delta and how often coverage started. A smaller count is a prefix of a larger one.

    Raises:
        ElfsError: if an option is out of range, the number of clusters is not known, or a row of
            the embeddings is zero or not finite.
    """
    if delta is not None and not 0 < delta < np.inf:
        raise ElfsError(f"delta must be above 0, not {delta!r}.")
    if not 0 < purity <= 1:
        raise ElfsError(f"purity must be in (0, 1], not {purity!r}.")
    rows = unit_rows(inputs.embeddings)
    if delta is None:
        clusters = inputs.classes if clusters is None else clusters
        if clusters is None:
            raise ElfsError("The number of classes is not known: give clusters or delta a value.")
        labels = kmeans_clusters(rows, clusters, seed=seed)
        others = np.sort(nearest_of_other_clusters(rows, labels))[::-1]
        # As many balls as may be impure reach beyond the nearest image of another cluster
        threshold = float(others[min(int(round((1 - purity) * len(rows), 9)), len(rows) - 1)])
    else:
        threshold = 1 - delta**2 / 2
    least = np.float32(threshold + ROUNDING)  # an image at exactly delta stays outside

    def top_hat(cosine: np.ndarray) -> np.ndarray:
        return np.greater(cosine, least, out=cosine)

    chosen = _greedy_coverage(rows, count, top_hat, "ProbCover")
    radius = float(np.sqrt(max(2 - 2 * threshold, 0)))
    return Selection(chosen.indices, chosen.scores, {"delta": radius, **chosen.info})


def nearest_of_other_clusters(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cosine similarity of each image to the nearest one of another cluster.

    Args:
        rows: float32 [N, D] of length 1.
        labels: int [N], the clusters.

    Returns:
        float32 [N] in [-1, 1]; -1 where there is no other cluster.
    """
    order = np.argsort(labels, kind="stable")
    rows = rows[order]
    ends = np.searchsorted(labels[order], labels[order], side="right")
    nearest = np.full(len(rows), -1, dtype=np.float32)
    start = 0
    while start < len(rows):  # each pair once: with the clusters that come later
        end = ends[start]
        own = slice(start, min(start + TILE[0], end))
        for part in _parts(len(rows), first=end):
            cosine = rows[own] @ rows[part].T
            np.maximum(nearest[own], cosine.max(axis=1), out=nearest[own])
            np.maximum(nearest[part], cosine.max(axis=0), out=nearest[part])
        start = own.stop
    found = np.empty_like(nearest)
    found[order] = nearest
    return found


def max_herding(inputs: SelectionInputs, count: int, *, seed: int, sigma: float = 1.0) -> Selection:
    """MaxHerding (Bae et al., ECCV 2024): greedy coverage with a Gaussian kernel,
    k(x, y) = exp(-||x - y||^2 / sigma^2) on L2-normalised embeddings. The seed is ignored.

    The paper finds the method robust to sigma. Whether its Gaussian has a 2 in the denominator was
    not checked; with one, its width w is our sigma = sqrt(2) w.

    Args:
        sigma: Width of the kernel, above 0.

    Returns:
        Scores are gains of coverage in [0, 1], descending. A smaller count is a prefix of a larger
        one.

    Raises:
        ElfsError: if sigma is not above 0, or a row of the embeddings is zero or not finite.
    """
    if not 0 < sigma < np.inf:
        raise ElfsError(f"sigma must be above 0, not {sigma!r}.")
    scale = np.float32(2 / sigma**2)

    def gaussian(cosine: np.ndarray) -> np.ndarray:
        cosine -= 1
        cosine *= scale
        return np.exp(cosine, out=cosine)

    return _greedy_coverage(unit_rows(inputs.embeddings), count, gaussian, "MaxHerding")


def facility_location(inputs: SelectionInputs, count: int, *, seed: int) -> Selection:
    """Facility location (Wei et al., ICML 2015, for selection of data): greedy coverage with
    k(x, y) = (1 + cos(x, y)) / 2. The seed is ignored.

    The similarity is shifted to be at least 0, so that the first pick is the image closest to all
    others; later picks are those of the cosine as it is.

    Returns:
        Scores are gains of coverage in [0, 1], descending. A smaller count is a prefix of a larger
        one.

    Raises:
        ElfsError: if a row of the embeddings is zero or not finite.
    """

    def shifted_cosine(cosine: np.ndarray) -> np.ndarray:
        cosine += 1
        cosine *= np.float32(0.5)
        return cosine

    return _greedy_coverage(
        unit_rows(inputs.embeddings), count, shifted_cosine, "facility location"
    )


def _greedy_coverage(rows: np.ndarray, count: int, kernel: Kernel, name: str) -> Selection:
    """Lazy greedy (Minoux 1978) on the coverage of unit rows float32 [N, D].

    Gains are updated in blocks of doubling size, from the best bound downwards, until no
    bound is above the best gain. Where no image adds coverage any more, coverage starts over from
    the images that are left, so that lists of any length are as spread as the first picks.
    """
    n = len(rows)
    covered = np.zeros(n, dtype=np.float32)
    full = coverage_gains(rows, np.arange(n), covered, kernel)
    bound = full.copy()
    indices, scores, rounds = np.empty(count, dtype=np.int64), np.empty(count), 1
    for position in track(range(count), name):
        best = _best(rows, bound, covered, kernel)
        if bound[best] <= ALIKE:
            covered[:], rounds = 0, rounds + 1
            bound = np.where(np.isinf(bound), -np.inf, full)
            best = _best(rows, bound, covered, kernel)
        indices[position], scores[position] = best, bound[best] / n
        bound[best] = -np.inf
        for part in _parts(n):
            np.maximum(covered[part], kernel(rows[part] @ rows[best]), out=covered[part])
    return Selection(indices, scores, {"rounds": rounds})


def _best(rows: np.ndarray, bound: np.ndarray, covered: np.ndarray, kernel: Kernel) -> int:
    """The image of the largest gain, of equals the first; bounds are tightened in place.

    Ties are common: of two images that only cover each other, either adds as much, and a far image
    covers itself alone. So gains that differ by no more than rounding are equal, and of images
    that can at best be equal only those before the winner are looked at.
    """
    index, stale = np.arange(len(bound)), ~np.isinf(bound)
    size, winner, least, most = FIRST, len(bound), -np.inf, -np.inf
    while True:
        open_ones = np.flatnonzero(stale & ((bound > most) | (bound >= least) & (index < winner)))
        if not len(open_ones):
            return winner
        best_first = np.argsort(-bound[open_ones], kind="stable")[:size]
        which = np.sort(open_ones[best_first])
        bound[which] = np.minimum(bound[which], coverage_gains(rows, which, covered, kernel))
        stale[which] = False
        best = bound[~stale].max()
        least, most = best - ALIKE * (1 + best), best + ALIKE * (1 + best)
        winner = int(np.argmax(~stale & (bound >= least)))
        size *= 2


def coverage_gains(
    rows: np.ndarray, candidates: np.ndarray, covered: np.ndarray, kernel: Kernel
) -> np.ndarray:
    """Sum over all images of what each candidate adds to their coverage: float64 [B]."""
    gains = np.zeros(len(candidates))
    for start in range(0, len(candidates), TILE[0]):
        block = rows[candidates[start : start + TILE[0]]]
        for part in _parts(len(rows)):
            added = kernel(block @ rows[part].T)
            added -= covered[part]
            np.maximum(added, 0, out=added)
            gains[start : start + TILE[0]] += added.sum(axis=1)
    return gains


def _parts(n: int, first: int = 0) -> list[slice]:
    """The rows from ``first`` on, a tile at a time."""
    return [slice(start, start + TILE[1]) for start in range(first, n, TILE[1])]
