"""Exact nearest neighbours against a bare faiss IndexFlatIP search."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

from benchmarks.timing import Row, compare
from elfs_lib.neighbors import nearest_neighbors


def run(quick: bool) -> Iterator[Row]:
    n, dim, k = (4000, 256, 50) if quick else (20_000, 1280, 50)
    rows = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def plain() -> None:
        index = faiss.IndexFlatIP(dim)
        index.add(unit)
        index.search(unit, k + 1)

    yield compare(
        f"exact top-{k} of {n:,} x {dim}",
        "faiss IndexFlatIP",
        plain,
        lambda: nearest_neighbors(rows, k),
        repeats=3,
        note="ours also drops the image itself and orders ties by index",
    )
