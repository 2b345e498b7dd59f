"""A pool larger than memory, end to end under a limit: neighbours, clusters, a score, the list.

    OMP_NUM_THREADS=1 python -m benchmarks.pool              measure (about ten minutes of one core)
    OMP_NUM_THREADS=1 python -m benchmarks.pool --render     only the tables and the figure

Writes ``book/data/pool.json``, and the tables and the figure of the page on scale. Linux only.

Each size runs in a process of its own that may not have more than 4 GiB of private memory: the
kernel refuses the next byte (``RLIMIT_DATA``). Pages of files that are mapped, which the kernel may
take back, count too in the end: the process fails if its resident memory ever was above the limit.
The rows are synthetic, like those of ``bench_neighbors`` but of 100 clusters; they are written to a
file before, outside of the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.optimize import nnls

from benchmarks import bench_scaling
from benchmarks.bench_scaling import CLASSES, EPOCHS, GPUS, POOL, WIDTH
from benchmarks.bench_temi import step_flops
from benchmarks.book_data import DATA, Tables, coloured, write_figure, write_tables
from benchmarks.machine import cpu_model
from elfs_lib.errors import ElfsError

FACTS = DATA / "pool.json"
SIZES = (100_000, 316_000, 1_000_000)
LIMIT = 4 * 2**30
CLUSTERS, K, BUDGET = 100, 50, 0.01
BLOCK = 2**14
ASKED = 500  # rows whose neighbours are compared with the exact ones
PASSES = 3  # epochs of the linear proxy
# What a stage's time is a sum of: a start, something for each row, and for the search the codes
# that a row is compared with, which grow as the square root of N.
POWERS = {
    "neighbours": (0, 1, 1.5),
    "k-means": (0, 1),
    "linear proxy": (0, 1),
    "ELFS": (0, 1),
}


def write_rows(file: Path, count: int, width: int = WIDTH) -> None:
    """``CLUSTERS`` clusters of 32 dimensions in float32 [count, width], with noise in every
    direction."""
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((CLUSTERS, 32), dtype=np.float32)
    axes = rng.standard_normal((32, width), dtype=np.float32)
    rows = np.lib.format.open_memmap(file, "w+", np.float32, (count, width))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        inner = middles[rng.integers(0, CLUSTERS, size)]
        inner += rng.standard_normal((size, 32), dtype=np.float32)
        noise = rng.standard_normal((size, width), dtype=np.float32)
        rows[start : start + size] = inner @ axes + 2 * noise
    rows.flush()


# ---------------------------------------------------------------------- inside the limit


def run(file: Path, limit: int) -> dict:
    """All stages on the rows of a file, in at most ``limit`` bytes.

    Raises:
        ElfsError: if resident memory was above it.
    """
    import resource

    import torch

    from elfs_lib.clustering.registry import ClusteringInputs, cluster
    from elfs_lib.embedding.neighbors import nearest_neighbors
    from elfs_lib.selection import SelectionInputs, budget_count, select_by

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # what is imported by now counts too
    rows = np.load(file, mmap_mode="r", allow_pickle=False)
    count = len(rows)
    stages = {}

    def measured(name: str, work: Callable[[], object]) -> object:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        cpu, wall = time.process_time(), time.perf_counter()
        found = work()
        stages[name] = {
            "cpu_s": round(time.process_time() - cpu, 3),
            "wall_s": round(time.perf_counter() - wall, 3),
            "peak_bytes": peak(),
        }
        if stages[name]["peak_bytes"] > limit:
            raise ElfsError(f"Stage {name!r} took {peak():,} bytes of {limit:,}.")
        return found

    near = measured(
        "neighbours", lambda: nearest_neighbors(rows, K, method="ivf_pq", folder=file.parent)
    )
    inputs = ClusteringInputs(rows, near.indices)
    clusters = measured("k-means", lambda: cluster("kmeans", inputs, CLUSTERS, restarts=1))
    scores = measured("linear proxy", lambda: linear_proxy(rows, clusters.labels))
    amount = budget_count(BUDGET, count)
    chosen = measured(
        "ELFS",
        lambda: select_by(
            "elfs",
            SelectionInputs(n=count, classes=CLUSTERS, scores={"aum": scores}),
            amount,
            hard_prune_ratio=0.1,
        ),
    )
    return {
        "n": count,
        "dim": rows.shape[1],
        "rows_bytes": rows.nbytes,
        "selected": len(set(chosen.indices.tolist())),
        "recall": round(recall(rows, near.indices), 3),
        "stages": stages,
    }


def peak() -> int:
    """Most bytes that were resident since the peak was reset, pages of mapped files among them."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def linear_proxy(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUM float [N] of a softmax regression on pseudo-labels, trained by Adam on unit rows."""
    import torch

    from elfs_lib.embedding.rows import forget, unit_rows
    from elfs_lib.training.dynamics import DynamicsRecorder
    from elfs_lib.training.loader import block_order

    targets, generator = torch.from_numpy(labels), torch.Generator().manual_seed(0)
    recorder = DynamicsRecorder(targets)
    model = torch.nn.Linear(rows.shape[1], CLUSTERS)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(PASSES):
        for batch in block_order(torch.arange(len(rows)), 1024, 16, generator).split(1024):
            logits = model(torch.from_numpy(unit_rows(rows[batch.numpy()])))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, targets[batch]).backward()
            optimizer.step()
            recorder.update(batch, logits)
            forget(rows)
        recorder.end_epoch()
    return recorder.table()["aum"].to_numpy()


def recall(rows: np.ndarray, found: np.ndarray) -> float:
    """Share of the true neighbours among those found, of rows that are evenly spread."""
    from elfs_lib.embedding.rows import unit_rows

    asked = np.arange(0, len(rows), -(-len(rows) // ASKED))
    queries = unit_rows(rows[asked])
    best = np.full((len(asked), K), -np.inf, np.float32)
    names = np.zeros((len(asked), K), np.int64)
    for start in range(0, len(rows), BLOCK):
        scores = queries @ unit_rows(rows[start : start + BLOCK]).T
        own = (asked >= start) & (asked < start + BLOCK)
        scores[own, asked[own] - start] = -np.inf
        scores = np.concatenate([best, scores], axis=1)
        place = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        best = np.take_along_axis(scores, place, axis=1)
        old = np.take_along_axis(names, np.minimum(place, K - 1), axis=1)
        names = np.where(place < K, old, start + place - K)
    pairs = zip(names, found[asked], strict=True)
    return float(np.mean([np.isin(true, own).mean() for true, own in pairs]))


# ---------------------------------------------------------------------- outside


def measure(count: int, limit: int, width: int = WIDTH) -> dict:
    """What :func:`run` gives in a process of its own.

    Raises:
        ElfsError: if it failed, or needed more memory than the limit.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        write_rows(file, count, width)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.pool", "--run", str(file), "--limit", str(limit)],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise ElfsError(f"{count:,} rows did not do with {limit:,} bytes: {last}")
    # faiss writes to the same stream, and its words may come last
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def carried_on(facts: dict, stage: str, n: float) -> float:
    """Seconds of a stage at N = ``n`` along a sum of ``POWERS`` of N, none of them negative, fitted
    to what was measured, each size counting alike."""
    sizes = np.array([row["n"] for row in facts["rows"]], np.float64)
    spent = np.array([row["stages"][stage]["cpu_s"] for row in facts["rows"]])
    powers = np.array(POWERS[stage])
    # in units of the largest size, for the sake of rounding
    terms = (sizes[:, None] / sizes.max()) ** powers
    factors = nnls(terms / spent[:, None], np.ones(len(sizes)))[0]
    return float(factors @ (n / sizes.max()) ** powers)


def _sum_of(stage: str) -> str:
    return " + ".join({0: "a", 1: "b N", 1.5: "c N^1.5"}[power] for power in POWERS[stage])


def measured_table(facts: dict) -> pd.DataFrame:
    lines = []
    for stage in POWERS:
        line = {"Stage": stage}
        for row in facts["rows"]:
            own = row["stages"][stage]
            line[f"N = {row['n']:,}"] = (
                f"{own['cpu_s']:,.3g} s, {own['peak_bytes'] / 2**20:,.0f} MiB"
            )
        lines.append(line | {"Grows as": _sum_of(stage)})
    rows = {f"N = {r['n']:,}": f"{r['rows_bytes'] / 2**20:,.0f} MiB" for r in facts["rows"]}
    found = {f"N = {r['n']:,}": f"{r['recall']:.3f}" for r in facts["rows"]}
    lines += [
        {"Stage": "the rows themselves", **rows, "Grows as": "N"},
        {"Stage": f"recall of {K} neighbours", **found, "Grows as": ""},
    ]
    return pd.DataFrame(lines)


def pool_table(facts: dict, n: int = POOL) -> pd.DataFrame:
    """Each stage on ``n`` images, from what was measured here and by ``bench_scaling``."""
    from elfs_lib.clustering.temi import TemiConfig
    from elfs_lib.selection import expected_cost

    other = json.loads((DATA / "scaling.json").read_text())
    decoded = json.loads((DATA / "decoding.json").read_text())
    decoding = decoded["decoding"]["cpu_s"] / decoded["n"] * n / 3600
    rate, counts = bench_scaling.gpu_rate(other), other["flops"]
    config = TemiConfig(classes=CLASSES)
    temi_flops = step_flops(WIDTH, config) * (n // config.batch) * config.epochs
    an_epoch, each = bench_scaling.growth(other, "dynamics, one epoch")
    state = next(r["bytes"] / r["n"] for r in other["rows"] if r["stage"].startswith("dynamics"))
    d2 = expected_cost("d2", n, WIDTH, 0.01, classes=CLASSES)
    hours = {stage: carried_on(facts, stage, n) / 3600 for stage in POWERS}
    lines = [
        ("decoding to 112 px", "N", 3 * 112**2 * n, None, decoding,
         "threads, to disk; goes on after a kill"),
        ("embeddings, ViT-B/16", "N", WIDTH * 4 * n, counts["vitb16_224"] * n / rate / 3600, None,
         "one process a GPU; shards are not built"),
        ("neighbours, exact", "N^2", WIDTH * 4 * n, 2 * n**2 * WIDTH / rate / 3600, None,
         "not built: blocks of queries on GPUs"),
        ("neighbours, ivf_pq", _sum_of("neighbours"), (WIDTH * 4 + 40 + 8 * K) * n, None,
         hours["neighbours"], "faiss, lists on disk"),
        (f"k-means, {CLUSTERS} clusters", _sum_of("k-means"), WIDTH * 4 * n, None,
         hours["k-means"], "fitted to a sample"),
        ("TEMI, 50 heads, 200 epochs", "N", WIDTH * 4 * n, temi_flops / rate / 3600, None,
         "not built: rows read from disk"),
        ("proxy, ResNet-34, 112 px, 60 epochs", "N", 3 * 112**2 * n,
         counts["resnet34_112"] * n * EPOCHS / rate / 3600, None, "one process, streamed"),
        (f"linear proxy on embeddings, {PASSES} epochs", _sum_of("linear proxy"), WIDTH * 4 * n,
         None, hours["linear proxy"], "one process, streamed"),
        ("dynamics, 60 epochs", "N", state * n, None, each * n**an_epoch * EPOCHS / 3600,
         "in the training processes"),
        (f"probabilities of {CLASSES:,} classes, for BADGE", "N C", 4 * CLASSES * n, None, None,
         "one process, to disk in blocks"),
        ("ELFS, given beta", _sum_of("ELFS"), 24 * n, None, hours["ELFS"], "one process"),
        ("D2, given neighbours", "N K", d2.bytes, None, d2.seconds / 3600, "one process"),
    ]  # fmt: skip
    return pd.DataFrame(
        [
            {
                "Stage": stage,
                "Grows as": grows,
                "GB": f"{size / 1e9:,.0f}",
                "GPU hours": "" if gpu is None else f"{gpu:,.1f}",
                f"hours on {GPUS} GPUs": "" if gpu is None else f"{gpu / GPUS:,.1f}",
                "core hours": "" if core is None else f"{core:,.1f}",
                "Carried by": engine,
            }
            for stage, grows, size, gpu, core, engine in lines
        ]
    )


TABLES: Tables = {"scaling_pool_measured.csv": measured_table, "scaling_pool.csv": pool_table}


@coloured
def draw(facts: dict) -> None:
    """Time and memory of each stage as the pool grows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4), layout="constrained")
    sizes = [row["n"] for row in facts["rows"]]
    for stage, marker in zip(POWERS, "osD^", strict=True):  # lines may lie on one another
        found, look = [row["stages"][stage] for row in facts["rows"]], f"{marker}-"
        left.loglog(sizes, [own["cpu_s"] for own in found], look, label=stage)
        right.plot(sizes, [own["peak_bytes"] / 2**30 for own in found], look, label=stage)
    right.plot(sizes, [row["rows_bytes"] / 2**30 for row in facts["rows"]], "k:", label="the rows")
    limit = facts["limit"] / 2**30
    right.axhline(limit, color="0.5", lw=0.8)
    right.annotate(
        f"limit, {limit:g} GiB", (min(sizes), limit), (0, -12), textcoords="offset points"
    )
    right.set_ylim(0)
    right.set_xscale("log")
    left.set_ylabel("CPU seconds of one thread")
    right.set_ylabel("peak memory, GiB")
    for axes in (left, right):
        axes.set_xlabel("images N")
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    write_figure(figure, "scaling_pool.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only the tables and the figure")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=LIMIT, help="bytes of memory")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="only these")
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(arguments.run, arguments.limit)))
        return
    facts = json.loads(FACTS.read_text()) if FACTS.exists() else {"rows": []}
    for count in () if arguments.render else arguments.sizes:
        row = measure(count, arguments.limit)
        kept = [old for old in facts["rows"] if old["n"] != count]
        facts = {
            "machine": f"{cpu_model()}, 1 thread",
            "limit": arguments.limit,
            "seed": 0,
            "rows": sorted([*kept, row], key=lambda found: found["n"]),
        }
        FACTS.write_text(json.dumps(facts, indent=1) + "\n")
        print(json.dumps(row), flush=True)
    for name, table in write_tables(TABLES, facts).items():
        print(f"{name}\n{table.to_string(index=False)}\n")
    draw(facts)


if __name__ == "__main__":
    main()
