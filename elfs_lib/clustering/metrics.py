"""Clusterings: the k-means baseline, agreement with other labels, and empty clusters.

Agreement with true labels is analysis only: nothing here feeds the choice of a coreset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from threadpoolctl import ThreadpoolController

from elfs_lib.embedding.rows import forget, read_rows, unit_rows
from elfs_lib.errors import ElfsError

# A cluster that holds less than this share of N / C is called nearly empty.
NEARLY_EMPTY = 0.1

CLUSTERED = 2**16  # rows that k-means is fitted to, at most
BLOCK = 2**14  # rows that join the centres at a time


def contingency(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count how often two labellings meet.

    Args:
        first: int [N], labels >= 0.
        second: int [N], labels >= 0.

    Returns:
        int64 [A, B] with ``A = first.max() + 1``, ``B = second.max() + 1``; entry (a, b) counts
        the samples that ``first`` calls a and ``second`` calls b.

    Raises:
        ElfsError: if the lengths differ, are 0, or a label is negative or not an integer.
    """
    first, second = _checked_pair(first, second)
    return _contingency(first, second, int(first.max()) + 1, int(second.max()) + 1)


def match_clusters(
    predicted: np.ndarray, true: np.ndarray, *, clusters: int | None = None
) -> np.ndarray:
    """Map from clusters to classes that makes the most samples agree.

    One-to-one (Hungarian), unless there are more clusters than classes: then some could have no
    partner, and each cluster goes to its most frequent class.

    Args:
        predicted: int [N], clusters >= 0.
        true: int [N], classes >= 0.
        clusters: Number of clusters asked for, of which some may be empty; None: as many as occur.

    Returns:
        int64 [A]: the class of each cluster.

    Raises:
        ElfsError: see :func:`contingency`.
    """
    counts = contingency(predicted, true)
    if max(len(counts), clusters or 0) > counts.shape[1]:
        return counts.argmax(axis=1)
    return linear_sum_assignment(counts, maximize=True)[1]


def clustering_accuracy(
    predicted: np.ndarray, true: np.ndarray, *, clusters: int | None = None
) -> float:
    """Share of samples in agreement after :func:`match_clusters`.

    In [0, 1], higher is better; unchanged when clusters are renumbered (Yang et al., 2010). With
    more clusters than classes it is the purity, which grows with the number of clusters.

    Raises:
        ElfsError: see :func:`contingency`.
    """
    mapping = match_clusters(predicted, true, clusters=clusters)
    return float((mapping[np.asarray(predicted)] == np.asarray(true)).mean())


def clustering_report(
    predicted: np.ndarray, true: np.ndarray, *, clusters: int | None = None
) -> dict[str, float]:
    """Accuracy in [0, 1], NMI in [0, 1] and ARI in [-0.5, 1] of a clustering; higher is better.

    Raises:
        ElfsError: see :func:`contingency`.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        "accuracy": clustering_accuracy(predicted, true, clusters=clusters),
        "nmi": float(normalized_mutual_info_score(true, predicted)),
        "ari": float(adjusted_rand_score(true, predicted)),
    }


def quality_table(
    candidates: Mapping[str, np.ndarray], true: np.ndarray, *, clusters: int | None = None
) -> pd.DataFrame:
    """:func:`clustering_report` of several clusterings: a row each, columns ``accuracy``, ``NMI``
    and ``ARI``.

    Raises:
        ElfsError: see :func:`contingency`.
    """
    reports = {
        name: clustering_report(np.asarray(found), true, clusters=clusters)
        for name, found in candidates.items()
    }
    return pd.DataFrame(reports).T.set_axis(["accuracy", "NMI", "ARI"], axis="columns")


def matched_confusion(
    predicted: np.ndarray, true: np.ndarray, classes: int, *, clusters: int | None = None
) -> np.ndarray:
    """Confusion matrix after :func:`match_clusters`.

    Returns:
        int64 [classes, classes]: rows are true classes, columns the matched clusters.

    Raises:
        ElfsError: see :func:`contingency`; or if ``true`` holds a label >= ``classes``.
    """
    mapping = match_clusters(predicted, true, clusters=clusters)
    if int(np.max(true)) >= classes:
        raise ElfsError(
            f"classes is {classes} but the labels go up to {int(np.max(true))}: raise it."
        )
    return _contingency(np.asarray(true), mapping[np.asarray(predicted)], classes, classes)


def cluster_sizes(labels: np.ndarray, classes: int) -> np.ndarray:
    """Number of samples in each cluster, int64 [classes].

    Raises:
        ElfsError: if a label lies outside 0..classes-1.
    """
    labels = np.asarray(labels)
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ElfsError(
            f"labels must lie in 0..{classes - 1} but span {labels.min()}..{labels.max()}."
        )
    return np.bincount(labels, minlength=classes).astype(np.int64)


def collapse_notes(labels: np.ndarray, classes: int, *, name: str) -> list[str]:
    """Say in one sentence each which clusters are empty or nearly so; no sentence if none is.

    Args:
        labels: int [N] in 0..classes-1.
        classes: Number of clusters asked for.
        name: What the labelling is called in the sentence.
    """
    sizes = cluster_sizes(labels, classes)
    empty = np.flatnonzero(sizes == 0)
    thin = np.flatnonzero((sizes > 0) & (sizes < NEARLY_EMPTY * len(labels) / classes))
    notes = []
    if len(empty):
        notes.append(
            f"{name}: {len(empty)} of {classes} clusters are empty ({_listed(empty)}); "
            "fewer classes than asked for were found."
        )
    if len(thin):
        notes.append(
            f"{name}: {len(thin)} of {classes} clusters hold less than {NEARLY_EMPTY:.0%} of a "
            f"fair share ({_listed(thin)})."
        )
    return notes


@contextmanager
def two_threads() -> Iterator[None]:
    """At most two OpenMP threads, for k-means: its threads add their sums in the order in which
    they finish, and only a sum of two does not depend on the order. Import scikit-learn before."""
    openmp = ThreadpoolController().select(user_api="openmp")
    with openmp.limit(limits=min([2, *(pool["num_threads"] for pool in openmp.info())])):
        yield


def kmeans_labels(
    embeddings: np.ndarray, classes: int, *, seed: int = 0, restarts: int = 4
) -> np.ndarray:
    """k-means on L2-normalised rows, so that distance means cosine; the baseline for TEMI.

    Of more than 65,536 rows, and more than 256 a cluster, as many as that are clustered, evenly
    spread; the others join the nearest centre, a block at a time.

    Args:
        embeddings: float32 [N, D], finite, no row all zero; may be a memory map of any size.
        classes: Number of clusters, 2..N.
        seed: Seeds the k-means++ starts.
        restarts: Number of starts; the one of lowest inertia wins.

    Returns:
        int64 [N] in 0..classes-1.

    Raises:
        ElfsError: if ``classes`` is out of range or the embeddings cannot be normalised.
    """
    from sklearn.cluster import KMeans

    count = len(embeddings)
    if not 2 <= classes <= count:
        raise ElfsError(
            f"classes is {classes}: it must be from 2 to the number of images, {count}."
        )
    step = -(-count // max(CLUSTERED, 256 * classes))
    some = np.arange(0, count, step)
    model = KMeans(classes, n_init=restarts, random_state=seed, copy_x=False)
    with two_threads():
        if step == 1:
            return model.fit_predict(unit_rows(embeddings)).astype(np.int64)
        model.fit(unit_rows(read_rows(embeddings, some), some))
        found = np.empty(count, np.int64)
        for start in range(0, count, BLOCK):
            part = slice(start, min(start + BLOCK, count))
            rows = unit_rows(embeddings[part], range(part.start, part.stop))
            found[part] = model.predict(rows)
            forget(embeddings)
    return found


def _checked_pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ElfsError(
            "two labellings must be vectors of one length >= 1, "
            f"not {first.shape} and {second.shape}."
        )
    if first.dtype.kind not in "iu" or second.dtype.kind not in "iu":
        raise ElfsError(f"labellings must be integers, not {first.dtype} and {second.dtype}.")
    if min(first.min(), second.min()) < 0:
        raise ElfsError("labellings must not be negative: leave unlabelled samples out first.")
    return first, second


def _contingency(first: np.ndarray, second: np.ndarray, rows: int, columns: int) -> np.ndarray:
    flat = first.astype(np.int64) * columns + second.astype(np.int64)
    return np.bincount(flat, minlength=rows * columns).reshape(rows, columns)


def _listed(numbers: np.ndarray) -> str:
    shown = ", ".join(str(n) for n in numbers[:10])
    return shown + (", ..." if len(numbers) > 10 else "")
