"""Self-labelling after clustering: train on confident pseudo-labels, relabel, repeat.

Van Gansbeke et al. (SCAN, ECCV 2020) end with such a step. No ground-truth label is involved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import Recipe


@dataclass(frozen=True)
class Relabelled:
    """New pseudo-labels int64 [N] and their confidence float32 [N] (the model's top softmax)."""

    labels: np.ndarray
    confidence: np.ndarray
    changed: float  # share of the images whose label the last round changed


def most_confident(labels: np.ndarray, confidence: np.ndarray, keep: float) -> np.ndarray:
    """Rows of the most confident share ``keep`` of each pseudo-class, sorted: int64 [n].

    Taken class by class, so that no cluster starves because its confidence is lower overall.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.lexsort((members, -confidence[members]))
        chosen.append(members[order[: max(1, round(keep * len(members)))]])
    return np.sort(np.concatenate(chosen))


def relabel(
    images: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray,
    classes: int,
    recipe: Recipe,
    length: Length,
    *,
    keep: float = 0.5,
    seed: int = 0,
    **training,
) -> Relabelled:
    """One round: a fresh model learns the confident share and relabels every image.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], pseudo-labels.
        confidence: float [N], higher is more confident.
        classes: Number of classes.
        recipe: How to train.
        length: How long.
        keep: Share of each pseudo-class to train on, in (0, 1].
        seed: Seed of weights, order and augmentation.
        **training: Passed to :func:`elfs_lib.training.loop.train`.
    """
    subset = most_confident(labels, confidence, keep)
    trained = train(
        images,
        labels[subset],
        classes,
        recipe,
        length,
        seeds=Seeds.all(seed),
        subset=subset,
        desc="self-labelling",
        **training,
    )
    probabilities = trained.logits(images).softmax(1)
    top, named = probabilities.max(1)
    named = named.numpy()
    return Relabelled(named, top.numpy(), float((named != labels).mean()))
