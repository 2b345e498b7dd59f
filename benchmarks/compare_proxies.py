"""Does a short proxy rank images as the long one does?

    OMP_NUM_THREADS=1 python -m benchmarks.compare_proxies --images 3000 --epochs 8 --steps 200

Trains proxies of each recipe on one subset of CIFAR-10 with its true labels (this is analysis),
compares their AUM by Spearman's rank correlation, and trains one coreset model for each: the ELFS
selection at one budget and one hard-prune ratio, all with the same recipe. Two proxies of one
recipe that differ only in their seed show how much of a difference is noise. Writes
``book/data/proxies.csv``.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from benchmarks.machine import cpu_model
from benchmarks.timing import clock, uses_cpu_time
from elfs_lib.datasets import load_images
from elfs_lib.dynamics import DynamicsRecorder
from elfs_lib.labels import label_oracle
from elfs_lib.selection import SelectionInputs, budget_count, select
from elfs_lib.stages import data_dir
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe

OUT = Path(__file__).resolve().parent.parent / "book" / "data" / "proxies.csv"
RECIPES = ("speedrun_small", "speedrun", "resnet18")


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
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    source = {"name": "cifar10", "data_dir": data_dir()}
    images = load_images(**source)
    labels = label_oracle(**source, left_out=images.left_out)
    true = labels.open("train", purpose="analysis")
    test_labels = labels.open("test", purpose="analysis")
    chosen = np.random.default_rng(0).permutation(len(true))[: arguments.images]
    pixels, true = images.train[chosen], true[chosen]
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
                "coreset_accuracy": round(100 * model.accuracy(images.test, test_labels), 2),
            }
        )
        print(rows[-1], flush=True)
    for row in rows:
        own = aums[row["recipe"], row["seed"]]
        for recipe in arguments.recipes:
            others = [a for (r, s), a in aums.items() if r == recipe and a is not own]
            rho = np.mean([spearmanr(own, a).statistic for a in others]) if others else np.nan
            row[f"spearman_{recipe}"] = round(float(rho), 4)
    table = pd.DataFrame(rows).assign(
        images=arguments.images,
        epochs=arguments.epochs,
        budget=arguments.budget,
        hard_prune_ratio=arguments.hard_prune_ratio,
        steps=arguments.steps,
        cpu=cpu_model(),
        clock="CPU time" if uses_cpu_time() else "wall clock",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    table.to_csv(arguments.out, index=False, lineterminator="\n")
    print(table.iloc[:, : 5 + len(arguments.recipes)].to_string(index=False))


if __name__ == "__main__":
    main()
