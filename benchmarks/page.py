"""The tables and the figure of the book's page on performance, from what was measured.

OMP_NUM_THREADS=1 python -m benchmarks --out book/data/bench.json
python -m benchmarks.page
"""

from __future__ import annotations

import json
import textwrap

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.book_data import DATA, Tables, coloured, write_figure, write_tables

TARGETS = {"exact": 3.0, "TEMI step": 2.5, "PCA": 5.0, "embedding": 0.9, "training": 0.98}


def target(stage: str) -> float:
    """Least ratio that the project set itself for a stage; the last word that fits decides."""
    return [least for word, least in TARGETS.items() if word in stage][-1]


def ratio_table(facts: dict) -> pd.DataFrame:
    rows = []
    for row in facts["rows"]:
        share, least = row["share_of_peak"], target(row["stage"])
        spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        spread = spread if row["repeats"] > 1 else "one pair"
        # a training compared with itself has no ratio to gain
        highest = "" if share is None or least < 1 else f"{row['ratio_median'] / share:.1f}"
        rows.append(
            {
                "Stage": row["stage"],
                "Baseline": row["baseline"],
                "Seconds, its / ours": f"{row['baseline_s']:.3g} / {row['ours_s']:.3g}",
                "Ratio": f"{row['ratio_median']:.2f} ({spread})",
                "Share of peak": "" if share is None else f"{share:.0%}",
                "Ratio at the peak": highest,
                "Target": f"{least:g}",
                "Reached": "yes" if row["ratio_median"] >= least else "no",
            }
        )
    return pd.DataFrame(rows)


def machine_table(facts: dict) -> pd.DataFrame:
    peaks = facts["matmul_flops"].items()
    lines = {
        "Command": f"`OMP_NUM_THREADS={facts['threads']} {facts['command']}`",
        "Date": facts["date"],
        "Processor": facts["cpu"],
        "Threads": facts["threads"],
        "Seconds": facts["clock"],
        "A square product reaches": ", ".join(
            f"{peak / 1e12:.3f} TFLOP/s in {name}" for name, peak in peaks
        ),
        "Versions": ", ".join(f"{name} {v}" for name, v in facts["versions"].items()),
    }
    return pd.DataFrame({"What": list(lines), "Value": list(lines.values())})


def memory_table(facts: dict) -> pd.DataFrame:
    rows = facts["dynamics"]
    return pd.DataFrame(
        {
            "Images N": [f"{r['n']:,}" for r in rows],
            "Epochs T": [r["epochs"] for r in rows],
            "Classes C": [r["classes"] for r in rows],
            "Streamed, bytes an image": [f"{r['bytes'] / r['n']:.0f}" for r in rows],
            "Every float16 logit, bytes an image": [
                f"{r['every_logit_bytes'] / r['n']:,.0f}" for r in rows
            ],
        }
    )


def growth_table(facts: dict) -> pd.DataFrame:
    found = facts["neighbors"]
    last = max(r["n"] for r in found["growth"])
    rows = []
    for method, spent in found["extrapolated_seconds"].items():
        own = [r for r in found["growth"] if r["method"] == method]
        largest = next(r for r in own if r["n"] == last)
        rows.append(
            {
                "Search": method,
                **{f"s at N = {r['n']:,}": f"{r['seconds']:.3g}" for r in own},
                f"Recall at {last:,}": f"{largest['recall']:.3f}",
                f"h at N = {found['extrapolated_n']:,}, extrapolated": f"{spent / 3600:.2g}",
            }
        )
    return pd.DataFrame(rows)


TABLES: Tables = {
    "performance_ratios.csv": ratio_table,
    "performance_machine.csv": machine_table,
    "performance_memory.csv": memory_table,
    "performance_neighbors.csv": growth_table,
}


@coloured
def draw(facts: dict, name: str) -> None:
    """Ratios with their targets, and memory of the dynamics against that of every logit."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 6.4), height_ratios=(5, 3), layout="constrained"
    )
    rows = facts["rows"][::-1]
    place = np.arange(len(rows))
    middle = np.array([r["ratio_median"] for r in rows])
    spread = [middle - [r["ratio_min"] for r in rows], [r["ratio_max"] for r in rows] - middle]
    above.errorbar(middle, place, xerr=spread, fmt="o", color="C0", label="median, least, largest")
    above.plot([target(r["stage"]) for r in rows], place, "|", color="C1", ms=14, label="target")
    above.axvline(1, color="0.7", lw=0.8)
    above.set_yticks(place, [textwrap.fill(r["stage"], 36) for r in rows], fontsize=9)
    above.set_xlabel("times as fast as the baseline")
    above.legend(fontsize=9)
    streamed = np.array([r["bytes"] / r["n"] for r in facts["dynamics"]])
    stored = np.array([r["every_logit_bytes"] / r["n"] for r in facts["dynamics"]])
    names = [f"N {r['n']:,}\nT {r['epochs']}\nC {r['classes']}" for r in facts["dynamics"]]
    place = np.arange(len(names))
    below.bar(place - 0.2, streamed, 0.4, color="C0", label="streamed")
    below.bar(place + 0.2, stored, 0.4, color="0.7", label="every logit, float16")
    below.set_yscale("log")
    below.set_xticks(place, names, fontsize=9)
    below.set_ylabel("bytes an image")
    below.legend(fontsize=9, loc="upper left")
    write_figure(figure, name)


def main() -> None:
    facts = json.loads((DATA / "bench.json").read_text())
    write_tables(TABLES, facts)
    draw(facts, "performance.svg")


if __name__ == "__main__":
    main()
