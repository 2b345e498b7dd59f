"""A folder of 1,500 photos and 100 labels, as on the page "From a folder to a model": what a linear
probe makes of the list of each method and of random ones.

    python -m benchmarks.low_budget_folder

A seed is one whole repetition: it draws the photos from CIFAR-10's test split and makes the list.
The probe is tested on the photos that are not on the list. Writes ``low_budget_folder.csv`` and its
differences from random; one core takes about a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.book_data import DATA
from elfs_lib.artifacts import write_text_atomic
from elfs_lib.compute import configure_runtime
from elfs_lib.data.datasets import label_oracle, load_images
from elfs_lib.embedding.embed import embed
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.label_lock import stage_lock
from elfs_lib.results.low_budget import LOW_BUDGET_COLUMNS, difference_table, linear_probe
from elfs_lib.selection import SelectionInputs, select_by

ENCODER, PHOTOS, CLASSES, BUDGET, NEIGHBORS = "efficientnet_lite0", 1500, 10, 100, 50
TRIED = ("random", "typiclust", "max_herding", "kmeans_nearest", "usl")


def repetition(images: np.ndarray, labels: np.ndarray, seed: int) -> list[dict]:
    """The accuracy of each method's list on one draw of photos."""
    drawn = np.random.default_rng(seed).permutation(len(images))[:PHOTOS]
    with stage_lock("never", stage="the choice from a folder"):
        embeddings = embed(images[drawn], ENCODER)
        near = nearest_neighbors(embeddings, NEIGHBORS)
        inputs = SelectionInputs(
            PHOTOS,
            embeddings=embeddings,
            neighbors=near.indices,
            similarities=near.similarities,
            classes=CLASSES,
        )
        lists = {method: select_by(method, inputs, BUDGET, seed=seed).indices for method in TRIED}
    rows, true = [], labels[drawn]
    for method, own in lists.items():
        rest = np.setdiff1d(np.arange(PHOTOS), own)
        right = linear_probe(embeddings[own], true[own], embeddings[rest]) == true[rest]
        rows.append(
            {
                "dataset": "folder",
                "method": method,
                "labels_per_class": BUDGET // CLASSES,
                "budget": BUDGET / PHOTOS,
                "count": BUDGET,
                "seed": seed,
                "accuracy": 100 * float(right.mean()),
                "classes_covered": len(np.unique(true[own])),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    given = parser.parse_args()
    configure_runtime()
    images = load_images("cifar10")
    labels = label_oracle("cifar10", left_out=images.left_out).open("test", purpose="analysis")
    rows = [row for seed in given.seeds for row in repetition(images.test, labels, seed)]
    table = pd.DataFrame(rows)[list(LOW_BUDGET_COLUMNS)]
    for name, made in (("folder", table), ("folder_differences", difference_table(table))):
        text = made.to_csv(index=False, float_format="%.10g", lineterminator="\n")
        write_text_atomic(given.out / f"low_budget_{name}.csv", text)
        print(made.to_string(index=False))


if __name__ == "__main__":
    main()
