"""Training from disk against training from memory: speed, and memory as the images grow.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_streaming

Writes ``book/data/streaming.json`` and the table of the page on performance.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import machine_name
from benchmarks.timing import clock_name, compare

FACTS = DATA / "streaming.json"
SIZES = (20, 100, 400)  # MiB of images
PEAK = """
import resource, sys
import numpy as np
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe

images = np.load(sys.argv[1], mmap_mode="r")
train(
    images, np.arange(len(images)) % 10, 10, find_recipe("speedrun_tiny"), Length(steps=30),
    seeds=Seeds.all(0), device="cpu", precision="float32", loader=sys.argv[2],
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_images(file: Path, mib: int, side: int = 32) -> Path:
    """Random images of so many MiB, uint8 [N, 3, side, side], as a file that can be mapped."""
    shape = (mib * 2**20 // (3 * side**2), 3, side, side)
    images = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    images[:] = np.random.default_rng(0).integers(0, 256, shape[1:], dtype=np.uint8)
    images.flush()
    return file


def peak(file: Path, loader: str) -> float:
    """Largest memory of a process that trains 30 steps, MiB."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(file), loader],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout) / (2**20 if sys.platform == "darwin" else 1024)


def measure(folder: Path) -> dict:
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    memory = []
    for mib in SIZES:
        file = write_images(folder / "images.npy", mib)
        count = len(np.load(file, mmap_mode="r"))
        peaks = {loader: peak(file, loader) for loader in ("resident", "streamed")}
        memory.append({"n": count, "mib": mib, **peaks})
    images = np.load(file, mmap_mode="r")
    targets = np.arange(len(images)) % 10
    speed = []
    for recipe in ("speedrun_tiny", "speedrun_small"):

        def training(loader: str, recipe: str = recipe) -> None:
            train(
                images, targets, 10, find_recipe(recipe), Length(steps=40), seeds=Seeds.all(0),
                device="cpu", loader=loader,
            )  # fmt: skip

        row = compare(
            f"40 steps of {recipe}, images streamed",
            "resident",
            lambda: training("resident"),
            lambda: training("streamed"),
            repeats=5,
        )
        speed.append(vars(row))
    return {
        "device": machine_name(torch.device("cpu")),
        "clock": clock_name(),
        "torch": torch.__version__,
        "memory": memory,
        "speed": speed,
    }


def streaming_table(facts: dict) -> pd.DataFrame:
    """Memory as the images grow, and the ratio of the speeds."""
    lines = [
        {
            "What": f"peak memory, N = {row['n']:,} images of 32 px ({row['mib']} MiB)",
            "Resident": f"{row['resident']:,.0f} MiB",
            "Streamed": f"{row['streamed']:,.0f} MiB",
            "Ratio": f"{row['resident'] / row['streamed']:.2f}",
        }
        for row in facts["memory"]
    ]
    for row in facts["speed"]:
        spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        lines.append(
            {
                "What": row["stage"].replace(", images streamed", f", {facts['clock']}"),
                "Resident": f"{row['baseline_s']:.2f} s",
                "Streamed": f"{row['ours_s']:.2f} s",
                "Ratio": f"{row['ratio_median']:.2f} ({spread})",
            }
        )
    return pd.DataFrame(lines)


TABLES: Tables = {"performance_streaming.csv": streaming_table}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder))
    FACTS.write_text(json.dumps(facts, indent=1) + "\n")
    print(write_tables(TABLES, facts)["performance_streaming.csv"].to_string(index=False))


if __name__ == "__main__":
    main()
