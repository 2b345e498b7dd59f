"""Queries of the index on disk in one process and shared by Dask workers, on one machine.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_queries     # two cores, about five minutes

Writes ``book/data/queries.json`` and a table of the page on scale. The rows are those of
``benchmarks.pool``. All ways take turns, twice, and the faster time of each counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import cpu_model
from benchmarks.pool import WIDTH, K, write_rows
from elfs_lib.embedding.disk_search import Rows, search_on_disk

FACTS = DATA / "queries.json"
COUNT, ROUNDS = 200_000, 2


@contextmanager
def threads(count: int) -> Iterator[None]:
    """One process, with so many threads."""
    faiss.omp_set_num_threads(count)
    torch.set_num_threads(count)
    yield
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)


@contextmanager
def workers(count: int) -> Iterator[None]:
    """So many Dask workers of one thread."""
    from distributed import Client

    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
    with Client(n_workers=count, threads_per_worker=1, **options):
        yield


WAYS = {
    "one process, 1 thread": (threads, 1),
    "one process, 2 threads": (threads, 2),
    "2 Dask workers of 1 thread": (workers, 2),
}


def measure(count: int, width: int = WIDTH, rounds: int = ROUNDS) -> dict:
    """Wall seconds of the search in each way, index included, and whether the answers agree."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.npy", count, width)
        rows = Rows(np.load(folder / "rows.npy", mmap_mode="r"))
        first, same = None, True
        for _ in range(rounds):
            for way, (opened, number) in WAYS.items():
                with opened(number):
                    start = time.perf_counter()
                    found = search_on_disk(rows, K, folder)
                    seconds[way].append(round(time.perf_counter() - start, 2))
                print(way, seconds[way][-1], flush=True)
                first = np.array(found.indices) if first is None else first
                same &= bool((found.indices == first).all())
    return {
        "machine": cpu_model(),
        "n": count,
        "dim": width,
        "k": K,
        "seed": 0,
        "same": same,
        "wall_s": seconds,
    }


def queries_table(facts: dict) -> pd.DataFrame:
    best = {way: min(seconds) for way, seconds in facts["wall_s"].items()}
    first = next(iter(best.values()))
    return pd.DataFrame(
        {
            f"{facts['n']:,} x {facts['dim']}, {facts['k']} neighbours": [*best],
            "wall seconds": [f"{seconds:.1f}" for seconds in best.values()],
            "times as fast": [f"{first / seconds:.2f}" for seconds in best.values()],
        }
    )


TABLES: Tables = {"scaling_queries.csv": queries_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT, help="rows")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    facts = measure(asked.count, rounds=asked.rounds)
    FACTS.write_text(json.dumps(facts, indent=1) + "\n")
    for table in write_tables(TABLES, facts).values():
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
