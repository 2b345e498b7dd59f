"""Are half the epochs of a proxy enough to rank the images?

    python -m benchmarks.half_dynamics params/sweeps/cifar10_pipelines.yaml --seeds 0 1 2

Trains the first proxy of each pipeline again, with the schedule of all its epochs, and keeps the
AUM of the first half beside that of all: Spearman's rank correlation of the two, that of each with
the AUM on true labels (this is analysis), and, at the first budget and the beta that the search
found, the share of ELFS's coreset that both select and what a model reaches on each. Writes
``book/data/half_dynamics.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.compare_proxies import agreement, proxy_name
from benchmarks.machine import command
from elfs_lib.artifacts import write_text_atomic
from elfs_lib.compute import describe_device, resolve_device
from elfs_lib.project import default_store
from elfs_lib.runs.spec import load_sweep
from elfs_lib.selection.base import budget_count
from elfs_lib.selection.double_end import double_end_prune
from elfs_lib.stages import Run
from elfs_lib.stages.graph import TRAINING_PARAMETERS
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe


class Halves(DynamicsRecorder):
    """A recorder that keeps the AUM of the first half of the epochs, too."""

    def __init__(self, targets: torch.Tensor, epochs: int):
        super().__init__(targets, watch=0)
        self._half = max(1, epochs // 2)

    def end_epoch(self) -> None:
        super().end_epoch()
        if self.epochs == self._half:
            self.first_half = self.table()["aum"].to_numpy(copy=True)


def measure(run: Run) -> dict:
    """How the AUM of half the epochs of a run's first proxy ranks and selects, against all."""
    p = run.params
    device = resolve_device(p.device)
    recorder = Halves(torch.as_tensor(run.pseudo_labels).to(device), p.proxy_epochs)
    train(
        run.train_images,
        run.pseudo_labels,
        run.classes,
        find_recipe(p.proxy_recipe),
        Length(epochs=p.proxy_epochs),
        seeds=Seeds.all(p.seed),
        recorder=recorder,
        desc=f"proxy of pipeline {p.seed}",
        **{name: getattr(p, name) for name in TRAINING_PARAMETERS},
    )
    whole, half = recorder.table()["aum"].to_numpy(), recorder.first_half
    true = run.true_scores["aum"].to_numpy()
    count, beta = budget_count(p.budgets[0], len(whole)), run.hard_prune_ratio(p.budgets[0])
    halved = run.with_scores(half, "AUM of half the epochs")
    return {
        "pipeline": p.seed,
        "proxy": proxy_name(run),
        "budget": p.budgets[0],
        "hard_prune_ratio": beta,
        "device": describe_device(device),
        "spearman": agreement(whole, half),
        "spearman_true": {"all": agreement(whole, true), "half": agreement(half, true)},
        "shared": shared(whole, half, beta, count),
        "accuracy": {
            name: scored.evaluate("elfs", p.budgets[0], p.seed, hard_prune_ratio=beta).json(
                "result"
            )
            for name, scored in (("all", run), ("half", halved))
        },
    }


def shared(one: np.ndarray, other: np.ndarray, beta: float, count: int) -> float:
    """Share of ELFS's coreset that two scores, float [N], both select."""
    kept = (double_end_prune(aum, beta, count) for aum in (one, other))
    return len(np.intersect1d(*kept)) / count


def half_table(facts: dict) -> pd.DataFrame:
    """One row a pipeline: the AUM of half the epochs against that of all."""
    return pd.DataFrame(
        {
            "Proxy": row["proxy"],
            "Pipeline": row["pipeline"],
            "Half with all epochs": f"{row['spearman']:.3f}",
            "All, with true labels": f"{row['spearman_true']['all']:.3f}",
            "Half, with true labels": f"{row['spearman_true']['half']:.3f}",
            "Labelled": f"{row['budget']:.0%}",
            "β": f"{row['hard_prune_ratio']:g}",
            "Images in both coresets": f"{row['shared']:.0%}",
            "ELFS by all, %": f"{row['accuracy']['all']['accuracy']:.1f}",
            "ELFS by half, %": f"{row['accuracy']['half']['accuracy']:.1f}",
            "On": ", ".join(
                sorted({row["device"], *(a["device"] for a in row["accuracy"].values())})
            ),
        }
        for row in facts["rows"]
    )


TABLES: Tables = {"half_dynamics.csv": half_table}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="YAML of a sweep of whole pipelines")
    parser.add_argument("--seeds", nargs="+", type=int, required=True, help="of its pipelines")
    arguments = parser.parse_args()
    store = default_store()
    chosen = [p for p in load_sweep(arguments.sweep).pipelines if p.seed in arguments.seeds]
    if missing := set(arguments.seeds) - {p.seed for p in chosen}:
        parser.error(f"{arguments.sweep} has no pipeline of seed {min(missing)}")
    rows = []
    for params in chosen:
        rows.append(measure(Run(params, store)))
        seeds = [str(row["pipeline"]) for row in rows]
        made_by = command("benchmarks.half_dynamics", [arguments.sweep, "--seeds", *seeds])
        facts = {"command": made_by, "torch": torch.__version__, "rows": rows}
        write_text_atomic(DATA / "half_dynamics.json", json.dumps(facts, indent=1) + "\n")
        print(write_tables(TABLES, facts)["half_dynamics.csv"].to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
