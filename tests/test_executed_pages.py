"""Executed pages: each result has a floor, below which it got worse."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from conftest import ROOT

from elfs_lib.results import executed, sentences

RUNS = ROOT / "book" / "runs"
#: In percent, percentage points (gain of TEMI over k-means) and rank correlation (AUM under
#: pseudo-labels and under true ones).
FLOORS = {
    "digits": {"knn": 95, "temi": 80, "over_kmeans": 5, "spearman": 0.3, "elfs": 85},
    "fashion_mnist": {"knn": 86, "temi": 74, "over_kmeans": 5, "elfs": 89.5},
    "cifar10": {"knn": 87, "temi": 80.5, "over_kmeans": 5, "elfs": 83},
    "cifar100": {"knn": 44, "temi": 22, "over_kmeans": 3, "elfs": 65},
}


def results(dataset: str) -> dict[str, float]:
    """The same results as in :data:`FLOORS`, of the pages and the table of a run."""

    def texts(page: str) -> list[str]:
        return [*executed.texts(RUNS / dataset / f"{page}.ipynb")]

    def shares(page: str) -> str:
        """The text whose main result is a share of the images, in bold."""
        (found,) = (text for text in texts(page) if re.search(r"\*\*[\d.]+%\*\*", text))
        return found

    def first(pattern: str, text: str) -> float:
        return float(re.search(pattern, text).group(1))

    temi = shares("02_temi_clustering")
    (shift,) = filter(None, map(sentences.read_shift, texts("04_distribution_shift")))
    table = pd.read_csv(RUNS / dataset / "results.csv").query("method == 'elfs'")
    return {
        "knn": first(r"\*\*([\d.]+)%\*\*", shares("01_embeddings")),
        "temi": first(r"\*\*([\d.]+)%\*\*", temi),
        "over_kmeans": first(r"([-+][\d.]+)", temi),
        "spearman": shift["spearman"],
        "elfs": table.groupby("budget")["accuracy"].mean().max(),
    }


@pytest.mark.parametrize(
    "dataset",
    [pytest.param("digits", marks=pytest.mark.book), "fashion_mnist", "cifar10", "cifar100"],
)
def test_no_result_is_below_its_floor(dataset: str):
    found = results(dataset)
    low = {name: found[name] for name, floor in FLOORS[dataset].items() if not found[name] >= floor}
    assert not low
