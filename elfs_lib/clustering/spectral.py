"""Spectral clustering of a neighbour graph: Ng, Jordan and Weiss (NeurIPS 2001).

Each image is described by the leading eigenvectors of the graph's normalised adjacency, scaled to
length 1, and k-means finds the clusters there. How many neighbours and how many eigenvectors to
take is not known beforehand, so several are tried, and compared without labels: by the mutual
information of the labels of neighbours.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from elfs_lib.clustering.metrics import two_threads
from elfs_lib.embedding.neighbors import Neighbors, neighbor_information
from elfs_lib.errors import ElfsError
from elfs_lib.progress import track

NEIGHBORS = (15, 20, 30)  # of the graphs, or as many as there are
DIMENSIONS = (1.0, 1.5, 2.0, 2.5)  # eigenvectors, times the number of clusters
RESTARTS = 3  # of k-means
SPARE = 2  # clusterings that are tried for each one that is kept
TOLERANCE = 1e-3  # of the eigenvalues; k-means sees no difference below it


def spectral_labels(
    neighbors: np.ndarray, classes: int, *, count: int, seed: int = 0
) -> np.ndarray:
    """Several spectral clusterings, the most informative first.

    Args:
        neighbors: int [N, K], nearest neighbours of each image, nearest first.
        classes: Number of clusters, 2..N.
        count: How many clusterings.
        seed: Of k-means.

    Returns:
        int64 [count, N] in 0..classes-1, by falling mutual information of the labels of neighbours
        (:func:`elfs_lib.embedding.neighbors.neighbor_information`).

    Raises:
        ElfsError: if the eigenvectors cannot be found.
    """
    from sklearn.cluster import KMeans

    sizes = sorted({min(k, neighbors.shape[1]) for k in NEIGHBORS})
    widths = sorted({min(round(d * classes), len(neighbors) - 2) for d in DIMENSIONS})
    vectors = {k: spectral_vectors(neighbors[:, :k], widths[-1]) for k in sizes}
    rounds = -(-SPARE * count // (len(sizes) * len(widths)))
    near = Neighbors(neighbors, np.ones(neighbors.shape, np.float32))
    found = []
    plan = list(itertools.product(range(rounds), sizes, widths))
    with two_threads():
        for number, k, width in track(plan, "spectral clustering"):
            points = vectors[k][:, :width]
            points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
            draw = np.random.SeedSequence([seed, number, k, width]).generate_state(1)[0]
            model = KMeans(classes, n_init=RESTARTS, random_state=int(draw), copy_x=False)
            labels = model.fit_predict(points).astype(np.int64)
            found.append((neighbor_information(near, labels), labels))
    found.sort(key=lambda pair: -pair[0])  # stable: of equals the first
    return np.stack([labels for _, labels in found[:count]])


def spectral_vectors(neighbors: np.ndarray, dimensions: int) -> np.ndarray:
    """Leading eigenvectors of D^-1/2 A D^-1/2, A = the neighbour graph plus its transpose.

    Args:
        neighbors: int [N, K].
        dimensions: How many, below N.

    Returns:
        float64 [N, dimensions], by falling eigenvalue.

    Raises:
        ElfsError: if they do not converge.
    """
    count, near = neighbors.shape
    rows = np.repeat(np.arange(count), near)
    graph = sparse.csr_matrix((np.ones(rows.size), (rows, neighbors.ravel())), (count, count))
    graph = graph + graph.T
    degree = np.asarray(graph.sum(1)).ravel()
    scale = sparse.diags(degree**-0.5)
    operator = scale @ graph @ scale
    parts = _parts(graph, degree, dimensions)
    if parts.shape[1] == dimensions:
        return parts
    if parts.shape[1]:
        whole = operator
        operator = LinearOperator(whole.shape, lambda x: whole @ x - parts @ (parts.T @ x))
    try:
        # a fixed start: the same graph gives the same vectors
        values, vectors = eigsh(
            operator,
            k=dimensions - parts.shape[1],
            which="LA",
            tol=TOLERANCE,
            v0=np.ones(count),
        )
    except ArpackNoConvergence as error:
        raise ElfsError(
            "The eigenvectors of the neighbour graph did not converge: use temi_start: random."
        ) from error
    return np.hstack([parts, vectors[:, np.argsort(-values, kind="stable")]])


def _parts(graph: sparse.csr_matrix, degree: np.ndarray, most: int) -> np.ndarray:
    """Where a graph falls apart, the eigenvector of each part, float64 [N, parts], largest first.

    They share the eigenvalue 1, and the Lanczos iteration finds one vector of an eigenvalue.
    """
    parts, part = connected_components(graph, directed=False)
    if parts == 1:
        return np.empty((len(degree), 0))
    largest = np.argsort(-np.bincount(part), kind="stable")[:most]
    vectors = np.sqrt(degree)[:, None] * (part[:, None] == largest)
    return vectors / np.linalg.norm(vectors, axis=0)
