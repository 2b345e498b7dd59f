"""Does a short proxy rank images as the long one does?

    OMP_NUM_THREADS=1 python -m benchmarks.compare_proxies --images 2000 --epochs 8 --steps 100

Trains proxies of each recipe on one subset of CIFAR-10 with its true labels (this is analysis),
compares their AUM by Spearman's rank correlation, and trains one coreset model for each: the ELFS
selection at one budget and one hard-prune ratio, all with the same recipe. Two proxies of one
recipe that differ only in their seed show how much of a difference is noise. Writes
``book/data/proxies.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.cifar10 import labelled
from benchmarks.machine import cpu_model
from benchmarks.timing import clock, clock_name
from elfs_lib.dynamics import DynamicsRecorder
from elfs_lib.selection import SelectionInputs, budget_count, select
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe

RECIPES = ("speedrun_small", "speedrun", "resnet18")


def proxy_table(facts: dict) -> pd.DataFrame:
    """One row a recipe: its cost, its coresets, and how alike the orders are that it gives."""
    lines = []
    for recipe in dict.fromkeys(row["recipe"] for row in facts["rows"]):
        own = [row for row in facts["rows"] if row["recipe"] == recipe]
        accuracy = [row["coreset_accuracy"] for row in own]
        line = {
            "Proxy": recipe,
            "CPU seconds": f"{np.mean([row['proxy_s'] for row in own]):,.0f}",
            "PFLOP": f"{np.mean([row['proxy_pflop'] for row in own]):.3f}",
            "Coreset accuracy, %": f"{np.mean(accuracy):.1f} ± {np.std(accuracy, ddof=1):.1f}",
        }
        for other in dict.fromkeys(row["recipe"] for row in facts["rows"]):
            rho = [row["spearman"][other] for row in own]
            line[f"Spearman with {other}"] = f"{np.mean(rho):.2f}"
        lines.append(line)
    return pd.DataFrame(lines)


TABLES: Tables = {"performance_proxies.csv": proxy_table}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=15, help="of every proxy")
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--hard-prune-ratio", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=300, help="of each coreset model")
    parser.add_argument("--seeds", type=int, default=2, help="proxies of each recipe")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: one proxy says nothing of the noise.")
    data = labelled()
    chosen = np.random.default_rng(0).permutation(len(data.train))[: arguments.images]
    pixels, true = data.train[chosen], data.train_labels[chosen]
    count = budget_count(arguments.budget, len(true))
    rows, aums = [], {}
    for recipe, seed in itertools.product(arguments.recipes, range(arguments.seeds)):
        recorder = DynamicsRecorder(torch.as_tensor(true), torch.device("cpu"))
        start = clock()
        trained = train(
            pixels, true, 10, find_recipe(recipe), Length(epochs=arguments.epochs),
            seeds=Seeds.all(seed), device="cpu", recorder=recorder, desc=recipe,
        )  # fmt: skip
        spent = clock() - start
        scores = {c: v.to_numpy() for c, v in recorder.table().items() if c != "index"}
        aums[recipe, seed] = scores["aum"]
        inputs = SelectionInputs(n=len(true), classes=10, scores=scores)
        coreset = select(
            "elfs", inputs, count, score="aum", hard_prune_ratio=arguments.hard_prune_ratio
        ).indices
        model = train(
            pixels, true[coreset], 10, find_recipe("speedrun_small"), Length(steps=arguments.steps),
            seeds=Seeds.all(seed), subset=coreset, device="cpu", desc="coreset",
        )  # fmt: skip
        rows.append(
            {
                "recipe": recipe,
                "seed": seed,
                "proxy_s": round(spent, 1),
                "proxy_pflop": round(trained.flops / 1e15, 4),
                "coreset_accuracy": round(100 * model.accuracy(data.test, data.test_labels), 2),
            }
        )
        print(rows[-1], flush=True)
    for row in rows:
        own = aums[row["recipe"], row["seed"]]
        for recipe in arguments.recipes:
            others = [a for (r, s), a in aums.items() if r == recipe and a is not own]
            rho = np.mean([spearmanr(own, a).statistic for a in others])
            row.setdefault("spearman", {})[recipe] = round(float(rho), 4)
    facts = {
        **{name: value for name, value in vars(arguments).items() if name != "recipes"},
        "cpu": cpu_model(),
        "clock": clock_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    (DATA / "proxies.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(write_tables(TABLES, facts)["performance_proxies.csv"].to_string(index=False))


if __name__ == "__main__":
    main()
