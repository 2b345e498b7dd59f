"""Seconds of each stage from the images to the list to label, as the manifests of a store have it.

    python -m benchmarks.whole_runs params/cifar10.yaml params/fashion_mnist.yaml

Runs no stage, and stops where one is not in the store (``ELFS_ARTIFACTS_DIR``). With ``--build``
and an empty store it times a whole run. What it found is printed, and written for the page on
performance (``book/data/whole_runs.json`` and the table) beside the peak of the machine that
``book/data/bench.json`` is of; runs that are not named here stay.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from benchmarks.book_data import DATA, Tables, write_tables
from elfs_lib.params import Params
from elfs_lib.project import default_store
from elfs_lib.stages import Run

FACTS = ("stage", "wall_s", "cpu_s", "train_flops", "device", "finished")


def stages(run: Run) -> list[dict]:
    """What the manifests say of the stages that lead to the list of the run's budget, in order.

    Raises:
        NotBuilt: if the store only looks and a stage is not there.
    """
    budget = run.params.budget
    found = [run.neighbors, run.temi, run.consensus, run.pseudo, *run.proxies]
    if run.params.hard_prune_ratio is None:
        found.append(run.search(budget))
    found.append(run.coreset("elfs", budget))
    embedded = {f"embeddings, {part.params.encoder}": part.embeddings for part in run.encoder_runs}
    if len(embedded) > 1:
        embedded["embeddings, joined"] = run.embeddings
    named = [("images", run.images), *embedded.items(), *((a.manifest["stage"], a) for a in found)]
    return [{name: a.manifest.get(name) for name in FACTS} | {"stage": s} for s, a in named]


def whole_table(facts: dict) -> pd.DataFrame:
    """One row a stage and a sum; shares of the peak where a manifest counts FLOPs."""
    rows = []
    for run, about in facts.items():
        found, peak = about["stages"], about["matmul_flops"]["bfloat16"]
        name = ", ".join([run, *sorted({s["device"] for s in found if s["device"]})])
        for s in found:
            spent = s["cpu_s"] or s["wall_s"]
            rows.append(
                {
                    "Run": name,
                    "Stage": s["stage"],
                    "Wall, s": f"{s['wall_s']:,.1f}",
                    "CPU, s": "not recorded" if s["cpu_s"] is None else f"{s['cpu_s']:,.1f}",
                    "Share of peak": f"{s['train_flops'] / spent / peak:.0%}"
                    if s["train_flops"] and "cpu" in s["device"]  # whose peak it is
                    else "",
                    "Finished": s["finished"].replace("T", " ").rstrip("Z"),
                }
            )
        total = sum(s["wall_s"] for s in found)
        rows.append(
            {
                "Run": name,
                "Stage": "sum",
                "Wall, s": f"{total:,.0f} ({total / 60:.1f} min)",
                "CPU, s": "",
                "Share of peak": "",
                "Finished": "",
            }
        )
    return pd.DataFrame(rows)


TABLES: Tables = {"performance_whole.csv": whole_table}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("params", nargs="+", type=Path, help="YAML of parameters of each run")
    parser.add_argument("--build", action="store_true", help="run the stages that are missing")
    args = parser.parse_args()
    store = default_store(look=not args.build)
    peak = json.loads((DATA / "bench.json").read_text())["matmul_flops"]
    runs = {
        f.stem: {"matmul_flops": peak, "stages": stages(Run(Params.load(f), store))}
        for f in args.params
    }
    file = DATA / "whole_runs.json"
    facts = (json.loads(file.read_text()) if file.exists() else {}) | runs
    file.write_text(json.dumps(facts, indent=1) + "\n")
    for table in write_tables(TABLES, facts).values():
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
