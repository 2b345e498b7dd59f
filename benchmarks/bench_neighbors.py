"""Exact nearest neighbours against a bare faiss IndexFlatIP search, and growth with N."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.timing import Row, compare, seconds
from elfs_lib.compute import resolve_precision
from elfs_lib.embedding.neighbors import nearest_neighbors, recall

K = 50
IMAGENET = 1_281_167
# How the work grows: all pairs; 32 of 4 sqrt(N) cells; for a graph, not less than was seen
POWER = {"exact": 2, "ivf": 1.5, "hnsw": 2}


def rows_like_embeddings(n: int, dim: int) -> np.ndarray:
    """1,000 clusters of 32 dimensions in float32 [N, dim], with noise in every direction."""
    rng = np.random.default_rng(0)
    inner = rng.standard_normal((1000, 32))[rng.integers(0, 1000, n)]
    inner += rng.standard_normal((n, 32))
    outer = inner @ rng.standard_normal((32, dim)) + 2 * rng.standard_normal((n, dim))
    return outer.astype(np.float32)


def run(quick: bool) -> Iterator[Row]:
    for n, dim in [(6000, 256)] if quick else [(20_000, 1280), (50_000, 1280)]:
        rows = rows_like_embeddings(n, dim)
        found = {}

        def plain(rows: np.ndarray = rows, found: dict = found) -> None:
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            faiss.omp_set_num_threads(torch.get_num_threads())
            index = faiss.IndexFlatIP(unit.shape[1])
            index.add(unit)
            found["plain"] = index.search(unit, K + 1)[0][:, 1:]

        def ours(rows: np.ndarray = rows, found: dict = found) -> None:
            found["ours"] = nearest_neighbors(rows, K).similarities

        row = compare(
            f"exact top-{K} of {n:,} x {dim}",
            "faiss IndexFlatIP",
            plain,
            ours,
            repeats=3,
            warm_up=n < 50_000,
            flops=float(dim) * n**2,
            dtype=resolve_precision("auto", torch.device("cpu")),
            note="each pair counted once; ours also drops the image itself and orders ties",
        )
        if not np.allclose(found["plain"], found["ours"], atol=1e-5):
            raise AssertionError("The two searches found different neighbours.")
        yield row


def more(quick: bool) -> dict[str, object]:
    """Seconds and recall of each kind of search as N grows, and extrapolated to ImageNet."""
    sizes, dim = ((1000, 2000, 4000), 64) if quick else ((4000, 8000, 16_000), 768)
    found = []
    for n in sizes:
        rows = rows_like_embeddings(n, dim)
        exact = nearest_neighbors(rows, K)
        for method in POWER:
            result = {}

            def search(
                rows: np.ndarray = rows, method: str = method, result: dict = result
            ) -> None:
                result["found"] = nearest_neighbors(rows, K, method=method)

            spent = seconds(search)
            found.append(
                {"method": method, "n": n, "dim": dim, "seconds": spent,
                 "recall": recall(result["found"], exact)}
            )  # fmt: skip
    return {
        "growth": found,
        "extrapolated_n": IMAGENET,
        "extrapolated_seconds": {m: extrapolated(found, m, IMAGENET) for m in POWER},
    }


def extrapolated(found: list[dict], method: str, target: int) -> float:
    """Seconds at N = ``target`` along a N + b N^power, each point counting alike."""
    n, spent = np.array([(r["n"], r["seconds"]) for r in found if r["method"] == method]).T
    terms = np.stack([n, n ** POWER[method]], axis=1)
    factors = nnls(terms / spent[:, None], np.ones(len(n)))[0]
    return float(factors @ [target, float(target) ** POWER[method]])
