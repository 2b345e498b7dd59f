"""Queries of the index on disk in one process and shared by Dask workers, on one machine.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_queries     # two cores

Writes ``book/data/queries.json`` and a table of the page on scale. The rows are those of
``benchmarks.pool``, of 128 features. All ways take turns, and the faster time of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import cpu_model
from benchmarks.pool import K, write_rows
from elfs_lib.embedding.disk_search import Rows, search_on_disk

FACTS = DATA / "queries.json"
COUNT, WIDTH, ROUNDS = 200_000, 128, 2


@contextmanager
def alone() -> Iterator[Callable[[], float]]:
    """One process; the CPU seconds that it has taken."""
    yield time.process_time


@contextmanager
def two_workers() -> Iterator[Callable[[], float]]:
    """Two Dask workers of one thread; the CPU seconds that they and this process have taken."""
    from distributed import Client

    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
    with Client(n_workers=2, threads_per_worker=1, **options) as client:
        yield lambda: time.process_time() + sum(client.run(time.process_time).values())


WAYS = {"one process": alone, "2 Dask workers": two_workers}


def measure(count: int, rounds: int) -> dict:
    """Seconds of the search in each way, index included, and whether the answers agree."""
    spent: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.npy", count, WIDTH)
        rows = Rows(np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False))
        first, same = None, True
        for _ in range(rounds):
            for way, opened in WAYS.items():
                with opened() as cpu:
                    start, before = time.perf_counter(), cpu()
                    found = search_on_disk(rows, K, folder)
                    wall, took = time.perf_counter() - start, cpu() - before
                spent[way].append({"wall_s": round(wall, 2), "cpu_s": round(took, 2)})
                print(f"{way}: {spent[way][-1]}", flush=True)
                first = np.array(found.indices) if first is None else first
                same &= bool((found.indices == first).all())
    machine = {"machine": cpu_model(), "load": round(os.getloadavg()[1], 1)}
    return machine | {"n": count, "dim": WIDTH, "k": K, "seed": 0, "same": same, "ways": spent}


def queries_table(facts: dict) -> pd.DataFrame:
    lines = []
    for way, rounds in facts["ways"].items():
        best = min(rounds, key=lambda own: own["wall_s"])
        lines.append(
            {
                f"{facts['n']:,} x {facts['dim']}, {facts['k']} neighbours": way,
                "wall seconds": f"{best['wall_s']:.1f}",
                "CPU seconds": f"{best['cpu_s']:.1f}",
            }
        )
    return pd.DataFrame(lines)


TABLES: Tables = {"scaling_queries.csv": queries_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT, help="rows")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    facts = measure(asked.count, asked.rounds)
    FACTS.write_text(json.dumps(facts, indent=1) + "\n")
    for table in write_tables(TABLES, facts).values():
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
