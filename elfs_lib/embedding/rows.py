"""Rows of embeddings at length 1, which cosine similarity is between."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from elfs_lib.errors import ElfsError

READ = 4096  # rows that are read at a time


def unit_rows(embeddings: np.ndarray, numbers: Sequence[int] | None = None) -> np.ndarray:
    """Rows scaled to length 1: float32 [N, D], a new C-ordered array.

    Args:
        embeddings: float [N, D].
        numbers: What a message calls each row, if they are some of many.

    Raises:
        ElfsError: if the array is not 2-d, is empty, or a row is not finite or has no direction.
    """
    array = np.asarray(embeddings)
    if array.ndim != 2 or 0 in array.shape:
        raise ElfsError(f"embeddings must be [N, D] with N, D >= 1, not shape {array.shape}.")
    rows = np.array(array, dtype=np.float32, order="C")
    # Rows are scaled by their largest entry first, so that no length overflows or underflows.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    numbers = range(len(rows)) if numbers is None else numbers
    bad = ~np.isfinite(largest[:, 0])
    if bad.any():
        raise ElfsError(
            f"embeddings: {int(bad.sum())} rows hold NaN or infinity (first: row "
            f"{numbers[int(bad.argmax())]}); check the images or the encoder."
        )
    zero = largest[:, 0] == 0
    if zero.any():
        raise ElfsError(
            f"embeddings: {int(zero.sum())} rows are all zero (first: row "
            f"{numbers[int(zero.argmax())]}) and have no cosine similarity; leave those images out "
            "or use another encoder."
        )
    rows /= largest
    rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return rows


def read_rows(embeddings: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The rows ``which`` [R] of an array [N, D], in memory. Of a memory map a few are read at a
    time, for the system maps whole stretches of the file along with them."""
    plain = np.asarray(embeddings)
    found = np.empty((len(which), plain.shape[1]), plain.dtype)
    for start in range(0, len(which), READ):
        part = slice(start, start + READ)
        found[part] = plain[which[part]]
        forget(embeddings)
    return found


def forget(array: np.ndarray) -> None:
    """Give back the memory that a shared memory map has taken up; what was written to it stays, in
    the page cache or on disk. Other arrays are left alone."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.mode == "c":
            return  # what was written to it is nowhere else
        array = array.base
    if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)
