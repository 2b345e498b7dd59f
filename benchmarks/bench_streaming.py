"""Training from disk against training from memory: speed, and memory as the images grow; and what
the order of the images costs.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_streaming
    OMP_NUM_THREADS=1 python -m benchmarks.bench_streaming --only memory      one part

Writes ``book/data/streaming.json`` and the tables of the pages on performance and scale.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import machine_name
from benchmarks.timing import clock_name, compare
from elfs_lib.compute import configure_runtime

FACTS = DATA / "streaming.json"
SIZES = (20, 100, 400)  # MiB of images
COLD = 2048  # MiB of images of 256 px
WAYS = {"resident": "full", "streamed": "full", "streamed in blocks": "blocks"}
PEAK = """
import dataclasses, resource, sys
import numpy as np
from torch import nn
from elfs_lib.compute import configure_runtime
from elfs_lib.training import models
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe

configure_runtime()
images = np.load(sys.argv[1], mmap_mode="r", allow_pickle=False)
models.NETWORKS["linear"] = lambda images, classes: nn.Sequential(
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(images.shape[1], classes)
)
train(
    images, np.arange(len(images)) % 10, 10,
    dataclasses.replace(find_recipe("speedrun_tiny"), network="linear"), Length(epochs=1),
    seeds=Seeds.all(0), device="cpu", precision="float32", loader=sys.argv[2],
    shuffle=sys.argv[3],
)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.platform == "linux":  # where that counts the process that started this one, too
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak)
"""


def write_images(file: Path, mib: float, side: int = 32) -> Path:
    """Random images of so many MiB, uint8 [N, 3, side, side], as a file that can be mapped."""
    rng, count = np.random.default_rng(0), int(mib * 2**20) // (3 * side**2)
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (count, 3, side, side))
    block = max(1, 2**24 // images[0].nbytes)
    for start in range(0, count, block):
        part = images[start : start + block]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    images.flush()
    return file


def peak(file: Path, loader: str, shuffle: str = "full") -> float:
    """Largest memory of a process that trains on each image once, MiB.

    The model is linear in the mean colours: what a network needs does not depend on how many images
    there are, and its time would be most of a measurement.
    """
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(file), loader, shuffle],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout) / (2**20 if sys.platform == "darwin" else 1024)


def cold_reads(folder: Path) -> list[dict]:
    """Wall seconds of reading each image once in batches of 256, in both orders, two times each by
    turns, when the page cache holds none of them."""
    from elfs_lib.training.loader import StreamedLoader

    file = write_images(folder / "large.npy", COLD, side=256)
    images = np.load(file, mmap_mode="r", allow_pickle=False)
    layouts = {"full": None, "blocks": torch.arange(len(images))}
    spent = {shuffle: [] for shuffle in layouts}
    for shuffle in 2 * [*layouts]:
        loader = StreamedLoader(
            images, None, torch.device("cpu"), batch=256, layout=layouts[shuffle]
        )
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        start = time.perf_counter()
        for _ in loader._batches(loader.order()):
            pass
        spent[shuffle].append(time.perf_counter() - start)
    file.unlink()
    return [
        {"shuffle": shuffle, "n": len(images), "mib": COLD, "seconds": seconds}
        for shuffle, seconds in spent.items()
    ]


def memory(folder: Path) -> list[dict]:
    """Peak memory of each way as the images grow, MiB."""
    rows = []
    for mib in SIZES:
        file = write_images(folder / "images.npy", mib)
        count = len(np.load(file, mmap_mode="r", allow_pickle=False))
        peaks = {way: peak(file, way.split()[0], shuffle) for way, shuffle in WAYS.items()}
        rows.append({"n": count, "mib": mib, **peaks})
    return rows


def speed(folder: Path) -> list[dict]:
    """Seconds of both ways of streaming, by turns with resident images."""
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    file = write_images(folder / "images.npy", SIZES[-1])
    images = np.load(file, mmap_mode="r", allow_pickle=False)
    targets = np.arange(len(images)) % 10
    rows = []
    for recipe in ("speedrun_tiny", "speedrun_small"):

        def training(way: str, recipe: str = recipe) -> None:
            train(
                images, targets, 10, find_recipe(recipe), Length(steps=40), seeds=Seeds.all(0),
                device="cpu", loader=way.split()[0], shuffle=WAYS[way],
            )  # fmt: skip

        for way in [*WAYS][1:]:
            row = compare(
                f"40 steps of {recipe}, images {way}",
                "resident",
                lambda: training("resident"),
                lambda way=way: training(way),
                repeats=5,
            )
            rows.append(vars(row) | {"way": way})
    return rows


PARTS = {"memory": memory, "speed": speed, "cold": cold_reads}


def streaming_table(facts: dict) -> pd.DataFrame:
    """Memory as the images grow, and the ratio of the speeds."""
    lines = []
    for row in facts["memory"]:
        line = {"What": f"peak memory of an epoch, N = {row['n']:,} of 32 px ({row['mib']} MiB)"}
        line |= {_title(way): f"{row[way]:,.0f} MiB" for way in WAYS}
        lines.append(line)
    for row in facts["speed"]:
        own = row["stage"].partition(", images")[0]
        line = {"What": f"{own}, {facts['clock']}", "Resident": f"{row['baseline_s']:.2f} s"}
        spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        line[_title(row["way"])] = (
            f"{row['ours_s']:.2f} s, ratio {row['ratio_median']:.2f} ({spread})"
        )
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def _title(way: str) -> str:
    return way.capitalize()


def order_table(facts: dict) -> pd.DataFrame:
    """What a disk gives in both orders."""
    lines = []
    for row in facts["cold"]:
        least, most = min(row["seconds"]), max(row["seconds"])
        lines.append(
            {
                "shuffle": row["shuffle"],
                "N, images of 256 px": f"{row['n']:,}",
                "MiB": f"{row['mib']:,}",
                "Wall seconds, twice": " and ".join(f"{s:.1f}" for s in row["seconds"]),
                "MB/s": f"{row['mib'] * 2**20 / 1e6 / most:,.0f} to "
                f"{row['mib'] * 2**20 / 1e6 / least:,.0f}",
            }
        )
    return pd.DataFrame(lines)


TABLES: Tables = {
    "performance_streaming.csv": streaming_table,
    "scaling_shuffle.csv": order_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    arguments = parser.parse_args()
    configure_runtime()
    machine = {
        "device": machine_name(torch.device("cpu")),
        "clock": clock_name(),
        "torch": torch.__version__,
    }
    facts = json.loads(FACTS.read_text()) if FACTS.exists() else {}
    if {*PARTS} - {*arguments.only} and any(facts.get(name) != machine[name] for name in machine):
        raise SystemExit(f"{FACTS} is of another machine or torch: measure all parts.")
    facts |= machine
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            facts[name] = PARTS[name](Path(folder))
        if facts.keys() >= PARTS.keys():
            FACTS.write_text(json.dumps(facts, indent=1) + "\n")
            made = write_tables(TABLES, facts)
    for table in made.values():
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
