"""How right a model is that was trained on all of CIFAR-10, and what that took.

    OMP_NUM_THREADS=2 python -m benchmarks.speedrun --recipe speedrun --epochs 10 --seeds 0 1 2

Trains a recipe on the 50,000 images with their true labels (this is analysis), once for each seed,
and tests the last step on the 10,000. A training takes many minutes, so each is written into
``book/data/speedrun.json`` as it ends, in place of an older one of the same recipe, length, seed,
machine and torch; the table of the page on performance is made from that file.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.cifar10 import labelled
from benchmarks.machine import machine_name
from benchmarks.timing import clock, clock_name
from elfs_lib.artifacts import write_text_atomic
from elfs_lib.compute import (
    COMPILE,
    configure_runtime,
    matmul_peak,
    resolve_device,
    resolve_precision,
)
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe

FACTS = DATA / "speedrun.json"
SETTING = ("recipe", "revision", "epochs", "crop_pad", "compile", "device", "clock", "torch")


def speedrun_table(facts: list[dict]) -> pd.DataFrame:
    """One row a recipe, length and machine: accuracy over the seeds, and what a training took."""
    lines = []
    for setting, own in pd.DataFrame(facts).groupby(list(SETTING), sort=False):
        recipe, _, epochs, crop_pad, compile, device, clock, version = setting
        spread = f" ± {own['accuracy'].std():.2f}" if len(own) > 1 else ""
        least = (own["pflop"] * 1e15 / own["peak_flops"]).mean()
        lines.append(
            {
                "Training": f"{recipe}, {epochs} epochs, shifts of {crop_pad} px"
                + ("" if compile == "off" else f", compile: {compile}"),
                "Test accuracy, %": f"{own['accuracy'].mean():.2f}{spread}",
                "Seeds": " ".join(map(str, sorted(own["seed"]))),
                "PFLOP": f"{own['pflop'].mean():.3f}",
                "Minutes": f"{own['seconds'].mean() / 60:.1f}",
                "Minutes at the peak": f"{least / 60:.1f}",
                "On": f"{device}, {clock}, torch {version}",
            }
        )
    return pd.DataFrame(lines)


TABLES: Tables = {"performance_speedrun.csv": speedrun_table}


def put(row: dict) -> list[dict]:
    """Write a row in place of an older one of its training. Returns all rows, in order."""
    old = json.loads(FACTS.read_text()) if FACTS.exists() else []
    key = (*SETTING, "seed")
    rows = [r for r in old if any(r[name] != row[name] for name in key)] + [row]
    rows.sort(key=lambda r: [r[name] for name in key])
    write_text_atomic(FACTS, json.dumps(rows, indent=1) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="speedrun")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--crop-pad", type=int, default=2, help="largest shift, in pixels")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", default="off", choices=COMPILE, help="auto: CUDA graphs")
    arguments = parser.parse_args()
    configure_runtime()
    recipe, length = find_recipe(arguments.recipe), Length(epochs=arguments.epochs)
    device = resolve_device(arguments.device)
    peak = matmul_peak(resolve_precision("auto", device), device, clock)
    data = labelled()
    for seed in arguments.seeds:
        start = clock()
        trained = train(
            data.train, data.train_labels, 10, recipe, length, seeds=Seeds.all(seed),
            crop_pad=arguments.crop_pad, device=arguments.device, compile=arguments.compile,
            desc=f"{arguments.recipe} {seed}",
        )  # fmt: skip
        spent = clock() - start
        row = {
            "recipe": arguments.recipe,
            "revision": recipe.revision,
            "epochs": arguments.epochs,
            "crop_pad": arguments.crop_pad,
            "compile": arguments.compile,
            "seed": seed,
            "accuracy": round(100 * trained.accuracy(data.test, data.test_labels), 2),
            "pflop": round(trained.flops / 1e15, 4),
            "seconds": round(spent, 1),
            "clock": clock_name(),
            "peak_flops": round(peak),
            "device": machine_name(device),
            "torch": torch.__version__,
        }
        print(row, flush=True)
        table = write_tables(TABLES, put(row))["performance_speedrun.csv"]
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
