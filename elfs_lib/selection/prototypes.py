"""One image of each cluster: TypiClust, k-means nearest and USL.

k-means makes as many clusters as images are asked for, and the methods differ in which image stands
for a cluster: the most typical, the one next to the centroid, or the one in the densest place. More
images have other clusters, so none of these lists is a prefix of a longer one.
"""

from __future__ import annotations

import warnings

import numpy as np

from elfs_lib.clustering.metrics import kmeans_labels
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError, is_whole
from elfs_lib.progress import track
from elfs_lib.selection.base import Selection, SelectionInputs
from elfs_lib.selection.by_class import rank_in_class
from elfs_lib.selection.geometry import distances_to_own_mean

DENSITY_NEIGHBORS = 20  # of USL
FEWEST = 5  # images of a cluster that TypiClust takes from before the others have run out


def typiclust(
    inputs: SelectionInputs,
    count: int,
    *,
    seed: int,
    most_clusters: int = 500,
    k: int = 20,
) -> Selection:
    """TypiClust (Hacohen et al., ICML 2022, its k-means variant): the most typical image of each
    cluster, largest clusters first.

    Typicality is 1 / the mean distance to the k nearest images of the same cluster, between
    L2-normalised embeddings. Asked for more images than there may be clusters, it deals in rounds:
    the most typical image of every cluster, then the second of every cluster, and so on. Clusters
    of fewer than 5 images are left for last, as the paper leaves them out.

    Args:
        most_clusters: Clusters at most.
        k: Neighbours, or all other images of a cluster that is smaller.

    Returns:
        Scores are typicalities, above 0 (0 for a cluster of one image; copies count as 1e-6 apart).

    Raises:
        ElfsError: if an option is below 1, or a row of the embeddings is zero or not finite.
    """
    if not (is_whole(most_clusters, 1) and is_whole(k, 1)):
        raise ElfsError(
            f"most_clusters and k must be whole numbers of at least 1, not {most_clusters!r} and "
            f"{k!r}."
        )
    from elfs_lib.embedding.neighbors import nearest_neighbors  # only here: it needs PyTorch

    rows = unit_rows(inputs.embeddings)
    clusters = kmeans_clusters(rows, min(count, most_clusters), seed=seed)
    typicality = np.zeros(inputs.n)
    for cluster in track(np.unique(clusters), "typicality"):
        members = np.flatnonzero(clusters == cluster)
        if len(members) > 1:
            near = nearest_neighbors(rows[members], min(k, len(members) - 1))
            typicality[members] = density(near.similarities)
    indices = _in_turns(clusters, typicality, count, fewest=FEWEST)
    return Selection(indices, typicality[indices], {"clusters": len(np.unique(clusters))})


def kmeans_nearest(inputs: SelectionInputs, count: int, *, seed: int) -> Selection:
    """The image next to each centroid (the baseline of Pourahmadi et al. 2021): k-means with as
    many clusters as images are asked for on L2-normalised embeddings, largest clusters first.

    Returns:
        Scores are distances to the centroid in [0, 2].

    Raises:
        ElfsError: if a row of the embeddings is zero or not finite.
    """
    rows = unit_rows(inputs.embeddings)
    clusters = kmeans_clusters(rows, count, seed=seed)
    distances = distances_to_own_mean(rows, clusters)
    indices = _in_turns(clusters, -distances, count)
    return Selection(indices, distances[indices])


def usl(inputs: SelectionInputs, count: int, *, seed: int, k: int | None = None) -> Selection:
    """USL (Wang et al., ECCV 2022): the densest image of each of ``count`` k-means clusters,
    largest clusters first.

    Density is 1 / the mean distance to the k nearest of all images, between L2-normalised
    embeddings. The paper's regulariser, which moves picks of adjacent clusters apart in further
    rounds, is left out.

    Args:
        k: Neighbours, at most K of ``inputs.neighbors``; None: 20, as the authors set on ImageNet
            (400 on CIFAR), or K if that is less.

    Returns:
        Scores are densities, above 0; copies count as 1e-6 apart.

    Raises:
        ElfsError: if k is out of range, or a row of the embeddings is zero or not finite.
    """
    found = inputs.neighbors.shape[1]
    k = min(DENSITY_NEIGHBORS, found) if k is None else k
    if not is_whole(k, 1, found):
        raise ElfsError(f"k must be from 1 to the {found} neighbours there are, not {k!r}.")
    dense = density(inputs.similarities[:, :k])
    clusters = kmeans_clusters(unit_rows(inputs.embeddings), count, seed=seed)
    indices = _in_turns(clusters, dense, count)
    return Selection(indices, dense[indices])


def density(similarities: np.ndarray) -> np.ndarray:
    """1 / the mean distance to the neighbours.

    Args:
        similarities: float32 [N, K], cosines.

    Returns:
        float64 [N], from 0.5 (opposite) to 1e6 (copies).
    """
    distances = np.sqrt(np.clip(2 - 2 * similarities.astype(np.float64), 0, None))
    return 1 / np.maximum(distances.mean(axis=1), 1e-6)


def kmeans_clusters(rows: np.ndarray, clusters: int, *, seed: int) -> np.ndarray:
    """k-means labels int64 [N] for any number of clusters from 1 to N; some may stay empty."""
    if clusters == 1:
        return np.zeros(len(rows), dtype=np.int64)
    with warnings.catch_warnings():
        # scikit-learn warns of fewer distinct images than clusters; all callers allow for that
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        return kmeans_labels(rows, clusters, seed=seed, restarts=1)


def _in_turns(clusters: np.ndarray, worth: np.ndarray, count: int, fewest: int = 1) -> np.ndarray:
    """Take images round by round: the best of each cluster, then the second of each.

    Args:
        clusters: int [N].
        worth: float [N], high is taken first inside a cluster; of equals the lower index.
        count: 1..N.
        fewest: Clusters of fewer images come after all others have run out.

    Returns:
        int64 [count]; within a round larger clusters first, of equals the lower index of the image.
    """
    place, size = rank_in_class(-worth, clusters)
    index = np.arange(len(clusters))
    return np.lexsort((index, -size, place, size < fewest))[:count]
