"""Methods that look at the embeddings alone, or at embeddings and pseudo-classes.

All of them hold N x D at most twice (the input and one normalised copy) and never N x N.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from elfs_lib.clustering.metrics import kmeans_labels
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError
from elfs_lib.progress import track
from elfs_lib.selection.base import Selection, SelectionInputs
from elfs_lib.selection.by_class import proportional_slots

BLOCK = 8192  # rows handled at once: a few MB of temporaries


def prototypicality(
    inputs: SelectionInputs, count: int, *, seed: int, clusters: int | None = None
) -> Selection:
    """Self-supervised prototypes (Sorscher et al. 2022): keep what is far from its own.

    k-means on the L2-normalised embeddings; an image far from its centroid is atypical, so hard.
    Clusters have no quota: some may give many images and others few.

    Args:
        clusters: k of k-means; None: the number of classes.

    Returns:
        Scores are distances to the centroid in [0, 2], descending; high is atypical, so hard.

    Raises:
        ElfsError: if the number of clusters is not known or out of range, or a row of the
            embeddings is zero or not finite.
    """
    distances = prototype_distances(inputs, seed=seed, clusters=clusters)
    indices = np.argsort(-distances, kind="stable")[:count]
    return Selection(indices, distances[indices])


def prototype_distances(
    inputs: SelectionInputs, *, seed: int, clusters: int | None = None
) -> np.ndarray:
    """Distance of each normalised embedding to its k-means centroid: float64 [N] in [0, 2]."""
    clusters = inputs.classes if clusters is None else clusters
    if clusters is None:
        raise ElfsError("The number of classes is not known: give the option clusters a value.")
    labels = kmeans_labels(inputs.embeddings, clusters, seed=seed, restarts=1)
    return distances_to_own_mean(unit_rows(inputs.embeddings), labels)


def moderate(inputs: SelectionInputs, count: int, *, seed: int) -> Selection:
    """Moderate coreset (Xia et al. 2023): around the median distance to the class mean.

    All images are ranked by the distance of their embedding (as given, not normalised) to the mean
    of their pseudo-class (as in the paper; its code takes the median in each dimension instead);
    the middle of that ranking is taken, from the middle outwards. The seed is ignored.

    Returns:
        Scores are differences to the median distance, at least 0; low first.

    Raises:
        ElfsError: if a row of the embeddings is not finite.
    """
    check_finite(inputs.embeddings)
    distances = distances_to_own_mean(inputs.embeddings, inputs.pseudo_labels)
    order = np.argsort(distances, kind="stable")
    from_middle = np.abs(2 * np.arange(inputs.n) - (inputs.n - 1))
    indices = order[np.argsort(from_middle, kind="stable")[:count]]
    median = float(np.median(distances))
    return Selection(indices, np.abs(distances[indices] - median), {"median_distance": median})


def k_center(inputs: SelectionInputs, count: int, *, seed: int, batch: int = 1024) -> Selection:
    """Greedy k-center (Sener & Savarese 2018, algorithm 1) on L2-normalised embeddings.

    Starts from an image that the seed draws; then always takes the image farthest from all picks.
    Distances to N images are updated for a whole batch of picks by one matrix product:
    only the ``batch`` farthest images are followed pick by pick, and that is exact as long as the
    farthest of them is farther than every image outside, whose distance can only shrink.

    Args:
        batch: How many images are followed between two updates; no influence on the result beyond
            rounding.

    Returns:
        Scores are distances in [0, 2] to the nearest earlier pick (2 for the first).
    """
    if batch < 1:
        raise ElfsError(f"batch must be at least 1, not {batch!r}.")
    rows = unit_rows(inputs.embeddings)
    nearest = np.full(len(rows), 4.0, dtype=np.float32)  # squared; no two unit rows are farther
    indices, squared = np.empty(count, dtype=np.int64), np.empty(count)
    indices[0], squared[0] = np.random.default_rng(seed).integers(len(rows)), 4.0
    fresh = 0  # picks before this one are already in ``nearest``
    followed, local, local_rows, outside = np.empty(0, np.int64), np.empty(0), rows[:0], np.inf
    for position in track(range(1, count), "k-center greedy"):
        if local.size == 0 or local.max() <= outside:
            _lower_distances(rows, indices[fresh:position], nearest)
            fresh = position
            followed, outside = _farthest(nearest, batch)
            local, local_rows = nearest[followed].copy(), rows[followed]
        j = int(np.argmax(local))  # the first of equals: ``followed`` ascends
        indices[position], squared[position] = followed[j], max(local[j], 0)
        np.minimum(local, 2 - 2 * (local_rows @ local_rows[j]), out=local)
        local[j] = -np.inf
    return Selection(indices, np.sqrt(squared))


def _lower_distances(rows: np.ndarray, picks: np.ndarray, nearest: np.ndarray) -> None:
    """Update squared distances to the nearest pick, in place; picks get -inf."""
    targets = rows[picks].T.copy()
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        np.minimum(nearest[part], 2 - 2 * (rows[part] @ targets).max(1), out=nearest[part])
    nearest[picks] = -np.inf


def _farthest(nearest: np.ndarray, batch: int) -> tuple[np.ndarray, float]:
    """The ``batch`` farthest images in ascending index order, and the farthest of the others."""
    if batch >= len(nearest):
        return np.arange(len(nearest)), -np.inf
    chosen = np.argpartition(-nearest, batch)[:batch]
    chosen = np.union1d(chosen, [np.argmax(nearest)])  # of equals the first must be among them
    others = nearest.copy()
    others[chosen] = -np.inf
    return chosen, float(others.max())


def herding(inputs: SelectionInputs, count: int, *, seed: int, per_class: bool = True) -> Selection:
    """Herding (Welling 2009): the mean of the picks follows the true mean.

    w starts at the mean m of the L2-normalised embeddings; each step takes the image x with the
    largest <w, x> and sets w := w + m - x. No image is taken twice. The seed is ignored.

    Args:
        per_class: Herd inside each pseudo-class, the budget dealt in proportion to class sizes
            (as iCaRL and DeepCore do); False: one herd over all images.

    Returns:
        Scores are <w, x> when the image was picked; high first inside a class.

    Raises:
        ElfsError: if a row of the embeddings is zero or not finite.
    """
    rows = unit_rows(inputs.embeddings)
    labels = inputs.pseudo_labels if per_class else np.zeros(inputs.n, dtype=np.int64)
    dealt, place = proportional_slots(labels, count)
    indices, scores = np.empty(count, dtype=np.int64), np.empty(count)
    for label in track(np.unique(dealt), "Herding classes"):
        members, here = np.flatnonzero(labels == label), dealt == label
        order, values = _herd(rows[members], int(here.sum()))
        indices[here], scores[here] = members[order][place[here]], values[place[here]]
    return Selection(indices, scores)


def _herd(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Herding order int64 [count] of rows float32 [M, D], and <w, x> of each pick."""
    mean = rows.mean(axis=0, dtype=np.float64)
    weight, free = mean.copy(), np.zeros(len(rows), dtype=np.float32)
    order, values = np.empty(count, dtype=np.int64), np.empty(count)
    for step in range(count):
        match = rows @ weight.astype(np.float32) + free
        pick = int(np.argmax(match))
        order[step], values[step], free[pick] = pick, match[pick], -np.inf
        weight += mean - rows[pick]
    return order, values


def distances_to_own_mean(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Distance of each row to the mean of the rows of its label.

    Args:
        rows: float32 [N, D].
        labels: int [N], at least 0.

    Returns:
        float64 [N], at least 0.
    """
    classes = int(labels.max()) + 1
    sums = np.zeros((classes, rows.shape[1]))
    for start in range(0, len(rows), BLOCK):
        block, own = rows[start : start + BLOCK], labels[start : start + BLOCK]
        ones = (np.ones(len(own)), (own, np.arange(len(own))))
        sums += csr_matrix(ones, shape=(classes, len(own))) @ block.astype(np.float64)
    means = sums / np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]
    distances = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        distances[part] = np.linalg.norm(rows[part] - means[labels[part]], axis=1)
    return distances


def check_finite(embeddings: np.ndarray) -> None:
    """Refuse NaN and infinity, block by block.

    Raises:
        ElfsError: if a row is not finite, or the array is not 2-d.
    """
    if embeddings.ndim != 2:
        raise ElfsError(f"embeddings must be [N, D], not shape {embeddings.shape}.")
    for start in range(0, len(embeddings), BLOCK):
        bad = ~np.isfinite(embeddings[start : start + BLOCK]).all(1)
        if bad.any():
            raise ElfsError(
                f"embeddings: row {start + int(bad.argmax())} holds NaN or infinity; "
                "check the image or the encoder."
            )
