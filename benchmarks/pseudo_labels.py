"""What each step of the way to pseudo-labels gives, by the true labels: k-means, TURTLE, spectral
clustering, TEMI from random weights and from spectral clusterings, with more, wider and longer
trained heads, a classifier on its labels, and self-labelling by a new network and by the encoder.

    python -m benchmarks.pseudo_labels params/cifar10.yaml --seeds 0 1 2
    python -m benchmarks.pseudo_labels params/cifar10.yaml -p encoder_views=null --steps k-means

Each seed is one clustering of the same embeddings. Rows go into ``book/data/pseudo_labels.json`` as
they are measured, in place of older ones of the same step, setting, seed and machine; the table of
the page on pseudo-labels is made from that file. This is analysis: nothing of it is selected by.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import machine_name
from elfs_lib.artifacts import write_text_atomic
from elfs_lib.clustering.metrics import clustering_report, kmeans_labels
from elfs_lib.clustering.spectral import spectral_labels
from elfs_lib.compute import resolve_device
from elfs_lib.embedding.neighbors import Neighbors, knn_accuracy, neighbor_information
from elfs_lib.params import Params, parse_yaml
from elfs_lib.project import default_store
from elfs_lib.results.evaluation import display_name
from elfs_lib.results.low_budget import linear_probe
from elfs_lib.results.provenance import as_setting
from elfs_lib.stages import Run

FACTS = DATA / "pseudo_labels.json"
KEY = ("dataset", "setting", "step", "seed", "device", "torch")


def _clustered(run: Run, column: str = "aligned_mean", **changes: object) -> np.ndarray:
    own = Run(run.params.model_copy(update=changes), run.store)
    return own.consensus.table("labels")[column].to_numpy()


def _classified(run: Run) -> np.ndarray:
    """What a linear probe names all images, after it learnt the more confident half of each
    pseudo-class."""
    table = Run(run.params.model_copy(update=SPECTRAL), run.store).consensus.table("labels")
    rank = table.groupby("aligned_mean")["confidence"].rank(pct=True, method="first")
    rows, half = run.embeddings.array("embeddings"), (rank > 0.5).to_numpy()
    labels = table["aligned_mean"].to_numpy()[half]
    return linear_probe(rows[half], labels, rows, strength=10)


def _relabelled(run: Run, rounds: int, **changes: object) -> np.ndarray:
    changes = {"relabel_rounds": rounds, "relabel_start": "random", **changes}
    return Run(run.params.model_copy(update=changes), run.store).pseudo_labels


RANDOM, SPECTRAL = {"temi_start": "random"}, {"temi_start": "spectral"}
FROM_ENCODER = {"relabel_start": "encoder", "relabel_keep": 0.9}

#: What is measured, in the order of the table: a name, and what gives labels int64 [N].
STEPS: dict[str, Callable[[Run], np.ndarray]] = {
    "k-means": lambda run: kmeans_labels(
        np.asarray(run.embeddings.array("embeddings")), run.classes, seed=run.params.seed
    ),
    "TURTLE": lambda run: _relabelled(run, 0, clustering="turtle"),
    "spectral clustering, most informative": lambda run: spectral_labels(
        np.asarray(run.neighbors.array("indices")),
        run.classes,
        count=run.params.temi_heads,
        seed=run.params.seed,
    )[0],
    "TEMI, random start: lowest loss": lambda run: _clustered(run, "lowest_loss", **RANDOM),
    "TEMI, random start: plain mean": lambda run: _clustered(run, "plain_mean", **RANDOM),
    "TEMI, random start: aligned mean": lambda run: _clustered(run, **RANDOM),
    "the same with 50 heads": lambda run: _clustered(run, temi_heads=50, **RANDOM),
    "the same for 200 epochs": lambda run: _clustered(run, temi_epochs=200, **RANDOM),
    "TEMI, spectral start: lowest loss": lambda run: _clustered(run, "lowest_loss", **SPECTRAL),
    "TEMI, spectral start: aligned mean": lambda run: _clustered(run, **SPECTRAL),
    "the same with 512 hidden units": lambda run: _clustered(run, temi_hidden=512, **SPECTRAL),
    "then a linear classifier": _classified,
    "instead, one round of self-labelling": lambda run: _relabelled(run, 1),
    "and a second round": lambda run: _relabelled(run, 2),
    "instead, two rounds from the encoder": lambda run: _relabelled(run, 2, **FROM_ENCODER),
}


def steps_table(facts: list[dict]) -> pd.DataFrame:
    """One row a dataset, setting and step: means over seeds, with their spread."""
    lines = []
    for (dataset, setting, step), own in pd.DataFrame(facts).groupby(
        ["dataset", "setting", "step"], sort=False
    ):
        spread = f" ± {own['accuracy'].std():.1f}" if len(own) > 1 else ""
        lines.append(
            {
                "Embeddings": display_name(dataset) + (f", {setting}" if setting else ""),
                "20-NN, %": f"{own['knn_accuracy'].mean():.1f}",
                "Step": step,
                "Right, %": f"{own['accuracy'].mean():.1f}{spread}",
                "NMI": f"{own['nmi'].mean():.2f}",
                "Information of neighbours": f"{own['information'].mean():.2f}",
                "Seeds": " ".join(map(str, sorted(own["seed"]))),
            }
        )
    return pd.DataFrame(lines)


TABLES: Tables = {"pseudo_labels.csv": steps_table}


def put(row: dict) -> list[dict]:
    """Write a row in place of an older one of its kind. Returns all rows, in the table's order."""
    old = json.loads(FACTS.read_text()) if FACTS.exists() else []
    rows = [r for r in old if any(r[name] != row[name] for name in KEY)] + [row]
    rows.sort(key=lambda r: (r["dataset"], r["setting"], [*STEPS].index(r["step"]), r["seed"]))
    write_text_atomic(FACTS, json.dumps(rows, indent=1) + "\n")
    return rows


def measure(run: Run, step: str) -> dict:
    """Labels of a step, compared with the true ones."""
    true = run.labels.open("train", purpose="analysis")
    near = Neighbors(run.neighbors.array("indices"), run.neighbors.array("similarities"))
    start = time.perf_counter()
    labels = STEPS[step](run)
    return {
        "step": step,
        "seed": run.params.seed,
        **clustering_report(labels, true),
        "information": neighbor_information(near, labels),
        "knn_accuracy": 100 * knn_accuracy(near, true, k=min(20, run.params.neighbors)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("params", type=Path, help="YAML of a labelled dataset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", nargs="+", choices=[*STEPS], default=[*STEPS])
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    changes = {name: parse_yaml(text) for name, _, text in (p.partition("=") for p in arguments.p)}
    for seed in arguments.seeds:
        run = Run(Params.load(arguments.params, {**changes, "seed": seed}), default_store())
        run.check()
        for step in arguments.steps:
            row = measure(run, step) | {
                "dataset": run.params.dataset,
                "setting": as_setting(changes),
                "device": machine_name(resolve_device(run.params.device)),
                "torch": torch.__version__,
            }
            row["accuracy"] *= 100
            print(row, flush=True)
            table = write_tables(TABLES, put(row))["pseudo_labels.csv"]
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
