"""Principal components of a table of features."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 14  # rows at a time


def principal_axes(rows: Tensor, mean: Tensor, count: int) -> Tensor:
    """Directions of largest variance, largest first.

    The sign of an axis is arbitrary: its largest entry is made positive. Rows are read block by
    block, so no centred copy of them is made.

    Args:
        rows: float32 [N, D].
        mean: float32 [D], of the rows.
        count: At most min(N, D).

    Returns:
        float32 [D, count], orthonormal columns.
    """
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in rows.split(BLOCK):
        centred = block - mean
        covariance += (centred.T @ centred).double()
    _, vectors = torch.linalg.eigh(covariance / len(rows))
    axes = vectors.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return (axes * largest.sign()).float()
