"""Ranks inside classes, and dividing a budget among classes."""

from __future__ import annotations

import numpy as np


def rank_in_class(ascending: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each image among those of its label (0 = lowest, ties by index), and the class size.

    Args:
        ascending: [N] sort key.
        labels: int [N].

    Returns:
        (int64 [N], int64 [N]).
    """
    order = np.lexsort((ascending, labels))  # lexsort is stable: equal keys stay in index order
    _, first, inverse, sizes = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    rank, size = np.empty((2, len(labels)), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - first[inverse]
    size[order] = sizes[inverse]
    return rank, size


def class_quantile(ascending: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where each image stands inside its class: (2 rank + 1) / (2 size), float64 [N] in (0, 1).

    Taking images in ascending order of this number gives every class its share of any budget to
    within an image (Webster's apportionment), and a smaller budget is a prefix of a larger one.
    """
    rank, size = rank_in_class(ascending, labels)
    return (2 * rank + 1) / (2 * size)


def proportional_slots(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide ``count`` places among the classes in proportion to their sizes.

    Returns:
        (label of each place [count], the place's number inside its class int64 [count]).
    """
    quantile = class_quantile(np.arange(len(labels)), labels)
    dealt = labels[np.lexsort((labels, quantile))[:count]]
    return dealt, rank_in_class(np.arange(count), dealt)[0]
