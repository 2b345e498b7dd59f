"""The one list of clusterings that give pseudo-labels, and ``cluster``, the way to run them.

A new clustering is one function ``(inputs, classes, *, seed, **options) -> Clusters`` and one line
in ``CLUSTERINGS``: the parameter ``clustering`` takes its name, and everything after it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from elfs_lib.errors import ElfsError, choose, is_whole


@dataclass(frozen=True)
class ClusteringInputs:
    """All that a clustering may look at.

    Attributes:
        embeddings: float32 [N, D], not necessarily normalised.
        neighbors: int32 [N, K], nearest first, the image itself left out.
    """

    embeddings: np.ndarray
    neighbors: np.ndarray


@dataclass(frozen=True)
class Clusters:
    """A clustering.

    Attributes:
        labels: int64 [N] in 0..C-1.
        confidence: float32 [N] in [0, 1], high is sure; None: the share of an image's neighbours
            that have its label.
    """

    labels: np.ndarray
    confidence: np.ndarray | None = None


@dataclass(frozen=True)
class Clustering:
    """One way to cluster.

    Attributes:
        name: What users type.
        function: ``(inputs, classes, *, seed, **options) -> Clusters``.
        citation: Key in the book's bibliography.
        summary: One line for people.
        options: The function's options that parameters of a run set: names of parameters by names
            of options. Stage ``clusters`` reads them and passes them on, and its key holds those
            that differ from the function's defaults.
        stage: The stage of a run that makes it.
        revision: To be raised when the labels that the function gives change, or a default of its
            options does.
    """

    name: str
    function: Callable[..., Clusters]
    _: KW_ONLY
    citation: str
    summary: str
    options: Mapping[str, str] = field(default_factory=dict)
    stage: str = "clusters"
    revision: int = 1


def temi(inputs: ClusteringInputs, classes: int, *, seed: int = 0, **options: Any) -> Clusters:
    """The aligned mean of TEMI's heads.

    Args:
        options: Of :class:`elfs_lib.clustering.temi.TemiConfig`.
    """
    from elfs_lib.clustering.temi import TemiConfig, consensus, fit_heads

    config = TemiConfig(classes=classes, **options)
    heads = fit_heads(inputs.embeddings, inputs.neighbors, config, seed=seed)
    found = consensus(heads, inputs.embeddings)
    return Clusters(found.pseudo["aligned_mean"], found.confidence)


def kmeans(inputs: ClusteringInputs, classes: int, *, seed: int = 0, restarts: int = 4) -> Clusters:
    """k-means on unit rows; see :func:`elfs_lib.clustering.metrics.kmeans_labels`."""
    from elfs_lib.clustering.metrics import kmeans_labels

    return Clusters(kmeans_labels(inputs.embeddings, classes, seed=seed, restarts=restarts))


def spectral(inputs: ClusteringInputs, classes: int, *, seed: int = 0) -> Clusters:
    """The most informative of several spectral clusterings; see
    :func:`elfs_lib.clustering.spectral.spectral_labels`."""
    from elfs_lib.clustering.spectral import spectral_labels

    return Clusters(spectral_labels(inputs.neighbors, classes, count=1, seed=seed)[0])


def turtle(inputs: ClusteringInputs, classes: int, *, seed: int = 0, **options: Any) -> Clusters:
    """The labels that a linear classifier learns best.

    Args:
        options: Of :class:`elfs_lib.clustering.turtle.TurtleConfig`.
    """
    from elfs_lib.clustering.turtle import TurtleConfig, fit_turtle

    found = fit_turtle(inputs.embeddings, classes, TurtleConfig(**options), seed=seed)
    return Clusters(found.labels, found.confidence)


CLUSTERINGS: dict[str, Clustering] = {
    entry.name: entry
    for entry in (
        Clustering(
            "temi",
            temi,
            citation="adaloglou2023",
            summary="heads on the embeddings agree with those of neighbours (the paper's)",
            stage="consensus",  # its heads are kept, in a stage of their own
        ),
        Clustering(
            "kmeans",
            kmeans,
            citation="hornik2012",
            summary="spherical k-means: on embeddings of length 1",
        ),
        Clustering(
            "spectral",
            spectral,
            citation="ng2001",
            summary="k-means on eigenvectors of the neighbour graph",
        ),
        Clustering(
            "turtle",
            turtle,
            citation="gadetsky2024",
            summary="the labels that a linear classifier learns best",
        ),
    )
}


def cluster(
    name: str, inputs: ClusteringInputs, classes: int, *, seed: int = 0, **options: Any
) -> Clusters:
    """Cluster by a method of the registry.

    Args:
        name: Key of :data:`CLUSTERINGS`.
        inputs: What it may look at.
        classes: C, the number of clusters, 2..N.
        seed: Same seed, same labels.
        options: The method's own.

    Returns:
        The labels, and a confidence for each image.

    Raises:
        ElfsError: if the name is unknown, ``classes`` is out of range, or the function gives
            anything but a class for each image.
    """
    entry, n = CLUSTERINGS[choose("clustering", name, CLUSTERINGS)], len(inputs.embeddings)
    if not is_whole(classes, 2, n):
        raise ElfsError(
            f"classes is {classes!r}: give a whole number from 2 to the number of images, {n}."
        )
    found = entry.function(inputs, int(classes), seed=seed, **options)
    try:
        labels, confidence = check_labels(found.labels, found.confidence, n, int(classes))
    except ElfsError as error:
        raise ElfsError(f"The function of clustering {name!r} is wrong: {error}") from None
    if confidence is None:
        confidence = np.empty(n, np.float32)
        for start in range(0, n, 2**16):  # of large pools, not all pairs at once
            part = slice(start, start + 2**16)
            agree = labels[inputs.neighbors[part]] == labels[part, None]
            confidence[part] = agree.mean(1, dtype=np.float32)
    return Clusters(labels, confidence)


def check_labels(
    labels: np.ndarray, confidence: np.ndarray | None, n: int, classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Check pseudo-labels; return them as int64 [N] and their confidence as float32 [N].

    Args:
        labels: Whole numbers in 0..classes-1, one for each of the ``n`` images.
        confidence: In [0, 1], one for each image, or None.

    Raises:
        ElfsError: if they are anything else.
    """
    labels = np.asarray(labels)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ElfsError(
            f"Pseudo-labels must be one whole number for each of the {n} images, not "
            f"{labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ElfsError(
            f"Pseudo-labels must lie in 0..{classes - 1} but span {labels.min()}..{labels.max()}."
        )
    if confidence is None:
        return labels.astype(np.int64), None
    confidence = np.asarray(confidence)
    if confidence.shape != (n,) or not ((confidence >= 0) & (confidence <= 1)).all():
        raise ElfsError(
            f"The confidence of pseudo-labels must be one number in [0, 1] for each of the {n} "
            "images."
        )
    return labels.astype(np.int64), confidence.astype(np.float32)
