"""How many classes do unlabelled images have? An estimate with its uncertainty.

Silhouette (Rousseeuw 1987) of k-means clusterings over a grid of K, on random subsets of the
images: subsets disagree where the images leave it open, and that is the uncertainty reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from elfs_lib.clustering.metrics import two_threads
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError
from elfs_lib.progress import track

GRID = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 25, 30, 40, 50)
COMPONENTS = 32
# Images a cluster, on average. Clusters of three or four fit single images: silhouettes rise again
# there, and K would come out at the edge of the grid.
LEAST = 8
AS_GOOD = 0.9  # a K is in the interval if its silhouette reaches this share of the best


@dataclass(frozen=True)
class ClassEstimate:
    """An estimate of the number of classes.

    Attributes:
        classes: The K of highest mean silhouette.
        low, high: Interval: every K whose mean silhouette reaches 90% of the best, and every K
            that was the best of some subset.
        grid: int64 [R], the numbers tried.
        silhouettes: float64 [R, B] in [-1, 1], one column a subset.
        subset: Images in each subset.
    """

    classes: int
    low: int
    high: int
    grid: np.ndarray
    silhouettes: np.ndarray
    subset: int

    def sentence(self) -> str:
        """The estimate, its interval and how it was made."""
        edge = "; that is the edge of what was tried, so give the number if you know it"
        return (
            f"about {self.classes} classes (between {self.low} and {self.high} fit about as "
            f"well): k-means on {COMPONENTS} principal components of the embeddings, K from "
            f"{self.grid[0]} to {self.grid[-1]}, best mean silhouette over "
            f"{self.silhouettes.shape[1]} random subsets of {self.subset:,} images"
            + (edge if self.classes in (self.grid[0], self.grid[-1]) else "")
        )


def estimate_classes(
    embeddings: np.ndarray, *, seed: int = 0, subsets: int = 8, subset_size: int = 1000
) -> ClassEstimate:
    """Estimate the number of classes of unlabelled images, from 2 to 50.

    Args:
        embeddings: float32 [N, D], finite, no row all zero, N >= 10.
        seed: Draws the subsets and starts k-means.
        subsets: Random subsets, each drawn without repetition: a repeated image would be a
            cluster of its own. Where there are fewer images than two subsets' worth, half of
            them at a time, so that subsets differ.
        subset_size: Largest subset; K is at most an eighth of it.

    Raises:
        ElfsError: if there are fewer than 10 images, or they are all the same.
    """
    rows = unit_rows(embeddings)
    if len(rows) < 10:
        raise ElfsError(
            f"{len(rows)} images are too few to estimate the number of classes: give classes."
        )
    if np.ptp(rows, axis=0).max() < 1e-5:
        raise ElfsError("The images are all alike: there are no classes to count.")
    parts = min(COMPONENTS, *rows.shape)
    points = PCA(parts, svd_solver="randomized", random_state=seed).fit_transform(rows)
    size = min(subset_size, max(10, len(rows) // 2))
    grid = np.array([k for k in GRID if k == 2 or k * LEAST <= size])
    silhouettes = np.full((len(grid), subsets), -1.0)
    rng = np.random.default_rng(seed)
    for column in track(range(subsets), "Counting classes"):
        chosen = points[rng.permutation(len(points))[:size]]
        different = len(np.unique(chosen, axis=0))
        ks = [int(k) for k in grid if k < different]  # copies make no further clusters
        with two_threads():
            found = [
                KMeans(k, n_init=2, random_state=seed + column).fit_predict(chosen) for k in ks
            ]
        silhouettes[: len(ks), column] = [silhouette_score(chosen, labels) for labels in found]
    means = silhouettes.mean(1)
    good = set(grid[means >= means.max() - (1 - AS_GOOD) * abs(means.max())].tolist())
    good |= set(grid[silhouettes.argmax(0)].tolist())
    best = int(grid[means.argmax()])
    return ClassEstimate(best, min(good), max(good), grid, silhouettes, size)
