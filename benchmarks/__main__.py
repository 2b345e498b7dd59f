"""Speed of each stage on the CPU against a plain baseline; of a GPU, see ``benchmarks.gpu``.

    python -m benchmarks                                a table
    python -m benchmarks --quick                        small sizes, about a minute
    python -m benchmarks --out book/data/bench.json     also what the book's page shows

OMP_NUM_THREADS sets the threads; the table says how many there were.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from pathlib import Path

import torch

from benchmarks import bench_dynamics, bench_embedding, bench_neighbors, bench_temi
from benchmarks.machine import command, cpu_model
from benchmarks.timing import CPU, Row, clock, clock_name
from elfs_lib.artifacts import package_versions
from elfs_lib.compute import configure_runtime, matmul_peak

MODULES = (bench_embedding, bench_neighbors, bench_temi, bench_dynamics)
LINE = "{:34} {:26} {:>9} {:>9} {:>20} {:>7}"


def printed(row: Row) -> str:
    ratio = f"{row.ratio_median:.2f} ({row.ratio_min:.2f} to {row.ratio_max:.2f})"
    share = "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
    seconds = (f"{value:.3f}" for value in (row.baseline_s, row.ours_s))
    return LINE.format(row.stage, row.baseline, *seconds, ratio, share)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    parser.add_argument(
        "--only", choices=[m.__name__.partition("bench_")[2] for m in MODULES], help="one part"
    )
    arguments = parser.parse_args()
    configure_runtime()
    names = ("float32", "bfloat16")
    peaks = {name: matmul_peak(getattr(torch, name), CPU, clock) for name in names}
    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": command("benchmarks", sys.argv[1:]),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "clock": clock_name(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "matmul_flops": peaks,
    }
    reached = ", ".join(f"{peak / 1e12:.3f} TFLOP/s in {name}" for name, peak in peaks.items())
    machine = f"{facts['cpu']}, {facts['threads']} threads, {facts['clock']}"
    print(f"{machine}; a square product reaches {reached}")
    print(LINE.format("stage", "baseline", "base s", "ours s", "ratio (min to max)", "of peak"))
    rows, more = [], {}
    for module in MODULES:
        name = module.__name__.partition("bench_")[2]
        if arguments.only not in (None, name):
            continue
        for row in module.run(arguments.quick):
            rows.append(dataclasses.asdict(row))
            print(printed(row), flush=True)
        if hasattr(module, "more"):
            more[name] = module.more(arguments.quick)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({**facts, "rows": rows, **more}, indent=1) + "\n")
        print(f"Wrote {arguments.out}.")


if __name__ == "__main__":
    main()
