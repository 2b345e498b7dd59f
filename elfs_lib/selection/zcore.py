"""ZCore (Griffin et al. 2024): zero-shot coverage and redundancy in random subspaces."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from elfs_lib.errors import ElfsError
from elfs_lib.progress import track
from elfs_lib.selection.base import Selection, SelectionInputs
from elfs_lib.selection.geometry import check_finite

SAMPLES_AN_IMAGE, MOST_SAMPLES = 20, 1_000_000  # the paper's million is 20 an image on CIFAR
SUBSPACES = 1000  # with a tenth of them, or fewer, two seeds agree much less on small sets


def zcore_samples(n: int) -> int:
    """The default number of samples, on which the time depends."""
    return min(SAMPLES_AN_IMAGE * n, MOST_SAMPLES)


def zcore(
    inputs: SelectionInputs,
    count: int,
    *,
    seed: int,
    samples: int | None = None,
    subspace_dim: int = 2,
    samples_per_subspace: int | None = None,
    neighbors: int = 1000,
    exponent: float = 4.0,
    random_start: bool = True,
) -> Selection:
    """Images that cover the embedding space and are not redundant, highest score first.

    A sample is a point of a random subspace, each coordinate triangular over (min, median, max) of
    that embedding dimension. The nearest image in the subspace (L1) covers it and gains 1; that
    image's nearest neighbours there lose 1 between them, in proportion to distance^-exponent
    (copies at distance 0 share all of it). Scores start uniform in [0, 1).

    The authors draw a new subspace for every sample. Here a subspace serves for
    ``samples_per_subspace`` samples, so that one k-d tree answers them all; and among copies of the
    covering image all lose alike, where the authors' code takes the first.

    Args:
        samples: Number of samples; None: 20 an image, at most a million.
        subspace_dim: Dimensions of a subspace (2 in the paper).
        samples_per_subspace: Samples that share a subspace; None: a thousandth of them, so that
            there are 1,000 subspaces; 1 is the paper's scheme.
        neighbors: Nearest neighbours that lose score (1000 in the paper).
        exponent: Power of the distance (4 in the paper).
        random_start: Start from uniform scores; False starts from 0.
    """
    n, dim = inputs.embeddings.shape
    if samples is None:
        samples = zcore_samples(n)
    if samples_per_subspace is None:
        samples_per_subspace = max(1, -(-samples // SUBSPACES))
    if min(samples, subspace_dim, samples_per_subspace, neighbors) < 1 or subspace_dim > dim:
        raise ElfsError(
            "samples, samples_per_subspace and neighbors must be at least 1 and subspace_dim from "
            f"1 to {dim}."
        )
    check_finite(inputs.embeddings)
    rng = np.random.default_rng(seed)
    scores = rng.random(n) if random_start else np.zeros(n)
    corners = _corners(inputs.embeddings)
    rounds = range(0, samples, samples_per_subspace)
    for start in track(rounds, "ZCore subspaces"):
        size = min(samples_per_subspace, samples - start)
        chosen = rng.choice(dim, subspace_dim, replace=False)
        points = inputs.embeddings[:, chosen].astype(np.float64)
        draws = triangular(rng, *corners[:, chosen], size)
        scores += _coverage_minus_redundancy(points, draws, min(neighbors, n - 1), exponent)
    indices = np.argsort(-scores, kind="stable")[:count]
    return Selection(indices, scores[indices], {"samples": samples, "subspaces": len(rounds)})


def _corners(embeddings: np.ndarray) -> np.ndarray:
    """Minimum, median and maximum of each dimension: float64 [3, D], a few columns at a time."""
    corners = np.empty((3, embeddings.shape[1]))
    for start in range(0, embeddings.shape[1], 16):
        columns = embeddings[:, start : start + 16]
        corners[:, start : start + 16] = (
            columns.min(0),
            np.median(columns, axis=0),
            columns.max(0),
        )
    return corners


def triangular(
    rng: np.random.Generator, low: np.ndarray, mode: np.ndarray, high: np.ndarray, size: int
) -> np.ndarray:
    """Triangular draws float64 [size, d] by the inverse of the distribution function.

    Unlike numpy's own it allows low == high, which constant dimensions (border pixels) have.
    """
    u = rng.random((size, len(low)))
    rise, fall, width = mode - low, high - mode, high - low
    return np.where(
        u * width < rise,
        low + np.sqrt(u * width * rise),
        high - np.sqrt((1 - u) * width * fall),
    )


def _coverage_minus_redundancy(
    points: np.ndarray, draws: np.ndarray, neighbors: int, exponent: float
) -> np.ndarray:
    """Change of all scores, float64 [N], by some draws [S, d] among the points [N, d]."""
    tree = cKDTree(points)
    _, covered = tree.query(draws, p=1)
    covering, times = np.unique(covered, return_counts=True)
    change = np.zeros(len(points))
    change[covering] += times
    if not neighbors:  # a single image has nobody to be redundant with
        return change
    distance, near = tree.query(points[covering], k=neighbors + 1, p=1)
    itself = near == covering[:, None]
    itself[~itself.any(1), -1] = True  # crowded out by copies of itself
    distance = distance[~itself].reshape(-1, neighbors)
    near = near[~itself].reshape(-1, neighbors)
    closest = distance[:, :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(closest == 0, distance == 0, (closest / distance) ** exponent)
    weight *= times[:, None] / weight.sum(1, keepdims=True)
    return change - np.bincount(near.ravel(), weight.ravel(), len(points))
