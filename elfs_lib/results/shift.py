"""What pseudo-labels do to the scores: the distribution shift that double-end pruning answers.

Everything here is analysis: it takes ground-truth labels or scores made from them, as arrays that
the caller opened, and nothing here feeds back into a selection.

Source: Zheng et al., "ELFS: Label-Free Coreset Selection with Proxy Training Dynamics",
ICLR 2025, section 4 (arXiv:2406.04273).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from elfs_lib.clustering.metrics import match_clusters
from elfs_lib.errors import ElfsError

EASY_SHARE = 0.2


@dataclass(frozen=True)
class ScoreShift:
    """How two score distributions over the same images differ.

    Attributes:
        n: Number of images.
        ks_statistic: Largest gap between the two distribution functions, in [0, 1].
        wasserstein: Wasserstein-1 distance, in units of the score, >= 0.
        spearman: Rank correlation image by image, in [-1, 1]; NaN if one score is constant.
    """

    n: int
    ks_statistic: float
    wasserstein: float
    spearman: float


@dataclass(frozen=True)
class ClassBalance:
    """How evenly a coreset covers the classes.

    Attributes:
        counts: int64 [C], images of each class.
        entropy: Entropy of the shares divided by log C, in [0, 1]; 1 is perfect balance.
    """

    counts: np.ndarray
    entropy: float


def compare_scores(pseudo_scores: np.ndarray, true_scores: np.ndarray) -> ScoreShift:
    """Compare scores made with pseudo-labels to scores made with true labels.

    Args:
        pseudo_scores: float [N], one score per image from pseudo-labels.
        true_scores: float [N], the same score of the same images from true labels.

    Raises:
        ElfsError: if the arrays are empty, not finite, or differ in length.
    """
    pseudo = _floats("pseudo_scores", pseudo_scores)
    true = _floats("true_scores", true_scores)
    _same_length("pseudo_scores", pseudo, "true_scores", true)
    # The asymptotic form: the exact one is slow above some 10,000 images and no different there.
    ks = stats.ks_2samp(pseudo, true, method="asymp")
    constant = np.ptp(pseudo) == 0 or np.ptp(true) == 0
    return ScoreShift(
        n=len(pseudo),
        ks_statistic=float(ks.statistic),
        wasserstein=float(stats.wasserstein_distance(pseudo, true)),
        spearman=float("nan") if constant else float(stats.spearmanr(pseudo, true).statistic),
    )


def pseudo_label_error_by_decile(
    scores: np.ndarray,
    pseudo_labels: np.ndarray,
    true_labels: np.ndarray,
    *,
    bins: int = 10,
) -> pd.DataFrame:
    """Share of wrong pseudo-labels from the hardest to the easiest tenth of the images.

    Args:
        scores: float [N], ascending = hardest first (AUM as it is, other scores through
            ``easiness``). Ties break by index.
        pseudo_labels: int [N], numbered arbitrarily: clusters are matched to classes first.
        true_labels: int [N].
        bins: Number of equal groups; 10 gives deciles.

    Returns:
        One row per group: ``decile`` (0 = hardest), ``count``, ``score_low``, ``score_high``,
        ``error`` in [0, 1], ``standard_error`` (binomial).

    Raises:
        ElfsError: if the arrays are empty or differ in length, or ``bins`` is not in [1, N].
    """
    score = _floats("scores", scores)
    pseudo = _labels("pseudo_labels", pseudo_labels)
    true = _labels("true_labels", true_labels)
    _same_length("scores", score, "pseudo_labels", pseudo)
    _same_length("scores", score, "true_labels", true)
    if not 1 <= bins <= len(score):
        raise ElfsError(f"bins is {bins}: choose a number from 1 to the {len(score)} images.")
    wrong = match_clusters(pseudo, true)[pseudo] != true
    rows = []
    for number, members in enumerate(np.array_split(np.argsort(score, kind="stable"), bins)):
        error = float(wrong[members].mean())
        rows.append(
            {
                "decile": number,
                "count": len(members),
                "score_low": float(score[members[0]]),
                "score_high": float(score[members[-1]]),
                "error": error,
                "standard_error": float(np.sqrt(error * (1 - error) / len(members))),
            }
        )
    return pd.DataFrame(rows)


def easy_share(
    indices: np.ndarray, easiness_reference: np.ndarray, *, top: float = EASY_SHARE
) -> float:
    """Share of a coreset that lies among the easiest images of the whole training set.

    The reference should be the AUM from *true* labels, so that 'easy' does not depend on the
    pseudo-labels whose effect is measured. A random coreset scores ``top`` in expectation, which
    is the line to compare with. The default of 20% is wide enough to hold several images per
    class in small coresets, and narrow enough that CCS's equal-width strata tell apart: AUM piles
    up at the easy end, and one fifth of the images is about where the pile begins.

    Args:
        indices: int [count], the coreset, without duplicates.
        easiness_reference: float [N], ascending = hardest first. Ties break by index.
        top: Share of the training set that counts as easy, in (0, 1].

    Returns:
        Share in [0, 1].

    Raises:
        ElfsError: if the coreset is empty or points outside the reference, or ``top`` is not in
            (0, 1].
    """
    reference = _floats("easiness_reference", easiness_reference)
    chosen = _indices("indices", indices, len(reference))
    if not 0 < top <= 1:
        raise ElfsError(f"top is {top}: choose a share above 0 and at most 1.")
    number = max(1, round(top * len(reference)))
    easy = np.zeros(len(reference), dtype=bool)
    easy[np.argsort(reference, kind="stable")[-number:]] = True
    return float(easy[chosen].mean())


def class_balance(labels: np.ndarray, num_classes: int) -> ClassBalance:
    """Measure how evenly the labels of a coreset cover the classes.

    Args:
        labels: int [count], labels of the chosen images, in [0, num_classes).
        num_classes: C >= 1.

    Raises:
        ElfsError: if there are no labels or one is outside [0, num_classes).
    """
    values = _labels("labels", labels)
    if num_classes < 1 or values.max() >= num_classes:
        raise ElfsError(
            f"labels reach {values.max()} but num_classes is {num_classes}: pass the number of "
            "classes of the dataset."
        )
    counts = np.bincount(values, minlength=num_classes)
    shares = counts / counts.sum()
    entropy = float(stats.entropy(shares) / np.log(num_classes)) if num_classes > 1 else 1.0
    return ClassBalance(counts, entropy)


def jaccard_overlap(coresets: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Overlap of coresets: images in both divided by images in either.

    Args:
        coresets: name -> int [count], each without duplicates; counts may differ.

    Returns:
        Symmetric frame [M, M] with the names on both axes, values in [0, 1], ones on the diagonal.

    Raises:
        ElfsError: if there is no coreset, or one is empty, negative or has duplicates.
    """
    if not coresets:
        raise ElfsError("coresets is empty: pass at least one coreset by name.")
    names = list(coresets)
    sets = [_indices(f"coresets[{name!r}]", coresets[name], None) for name in names]
    overlap = np.eye(len(names))
    for i, left in enumerate(sets):
        for j in range(i):
            both = len(np.intersect1d(left, sets[j], assume_unique=True))
            overlap[i, j] = overlap[j, i] = both / (len(left) + len(sets[j]) - both)
    return pd.DataFrame(overlap, index=names, columns=names)


def chance_overlap(budget: float) -> float:
    """Jaccard overlap that two independent random coresets of one budget share in expectation.

    Args:
        budget: Share of the training set, in (0, 1].

    Returns:
        ``budget / (2 - budget)``: of two coresets of share b, b^2 is expected in both and
        2b - b^2 in either.

    Raises:
        ElfsError: if ``budget`` is not in (0, 1].
    """
    if not 0 < budget <= 1:
        raise ElfsError(f"budget is {budget}: choose a share above 0 and at most 1.")
    return budget / (2 - budget)


def _floats(name: str, values: np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ElfsError(f"{name} has shape {array.shape}: pass one score per image, at least one.")
    if not np.isfinite(array).all():
        raise ElfsError(f"{name} holds NaN or infinite values: remove or recompute those scores.")
    return array


def _labels(name: str, values: np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ElfsError(f"{name} must be whole numbers, one per image, at least one.")
    if array.min() < 0:
        raise ElfsError(f"{name} holds {array.min()}: number classes and clusters from 0.")
    return array.astype(np.int64)


def _indices(name: str, values: np.ndarray, size: int | None) -> np.ndarray:
    array = _labels(name, values)
    if len(np.unique(array)) != len(array):
        raise ElfsError(f"{name} names an image twice: a coreset holds each index once.")
    if size is not None and array.max() >= size:
        raise ElfsError(f"{name} reaches {array.max()} but there are only {size} images.")
    return array


def _same_length(name: str, left: np.ndarray, other: str, right: np.ndarray) -> None:
    if len(left) != len(right):
        raise ElfsError(
            f"{name} has {len(left)} entries and {other} has {len(right)}: pass both for the same "
            "images in the same order."
        )
