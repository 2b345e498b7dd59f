"""What the results tables bear out of ELFS against others, as rows that README and pages read.

``elfs verdict`` writes ``book/data/verdict.json`` from the tables of :mod:`elfs_lib.results`, and
the table of the README from that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from elfs_lib.artifacts import write_text_atomic
from elfs_lib.errors import ElfsError
from elfs_lib.evaluation import display_name, paired_difference, verdict
from elfs_lib.project import project_root
from elfs_lib.provenance import WHOLE_PIPELINES

if TYPE_CHECKING:
    from elfs_lib.results_page import Tables

#: Who is compared with whom.
PAIRS = (
    ("elfs", "random"),
    ("elfs", "ccs_pseudo"),
    ("elfs", "elfs_true"),
    ("ccs_pseudo", "random"),
    ("elfs_true", "random"),
)

#: The columns of the verdict, one row a table, budget and rival.
COLUMNS: dict[str, str] = {
    "dataset": "name of the dataset",
    "budget": "share of the training set that was labelled",
    "method": "the method",
    "against": "the method that it is compared with",
    "difference": "accuracy of the first minus that of the second, in points, paired by run",
    "low": "lower end of its 95% t-interval; null with one run",
    "high": "upper end of it",
    "runs": "how many differences it is the mean of",
    "whole_pipelines": "whether each run has its own clusters, proxy, search and coreset; else the "
    "runs are trainings on one coreset",
    "accuracy": "mean test accuracy of the method, in percent",
    "against_accuracy": "the same of the other",
    "hard_prune_ratios": "beta of each run of the method; empty if it has none",
    "steps": "optimiser steps of each training",
    "recipe": "of the trainings, with its revision",
    "pseudo_label_accuracy": "pseudo-labels right, in percent, mean over the runs; null in tables "
    "from before it was recorded",
    "setting": "parameters that differ from the dataset's file",
    "command": "what makes the rows again",
}


def verdict_file() -> Path:
    """``book/data/verdict.json``."""
    return project_root() / "book" / "data" / "verdict.json"


def verdict_rows(every: Tables) -> list[dict[str, Any]]:
    """A row for each table, budget and pair of methods, by :data:`COLUMNS`."""
    rows = []
    for (dataset, setting), table in every.items():
        measured = {*table["method"]}
        for method, rival in PAIRS:
            if not {method, rival} <= measured:
                continue
            for pair in paired_difference(table, method, rival, strict=False).itertuples():
                rows.append(_row(dataset, setting, table, pair))
    return rows


def _row(dataset: str, setting: str, table: pd.DataFrame, pair: Any) -> dict[str, Any]:
    at = table[table["budget"] == pair.budget]
    shared = {*at.loc[at["method"] == pair.rival, "seed"]}
    own = at[(at["method"] == pair.method) & at["seed"].isin(shared)]
    right = pd.to_numeric(own["pseudo_label_accuracy"]).mean()
    return {
        "dataset": dataset,
        "budget": pair.budget,
        "method": pair.method,
        "against": pair.rival,
        "difference": _rounded(pair.difference),
        "low": _rounded(pair.low),
        "high": _rounded(pair.high),
        "runs": pair.n,
        "whole_pipelines": setting.startswith(WHOLE_PIPELINES),
        "accuracy": _rounded(pair.method_mean),
        "against_accuracy": _rounded(pair.rival_mean),
        "hard_prune_ratios": [float(b) for b in own["hard_prune_ratio"] if not pd.isna(b)],
        "steps": int(own["steps"].iloc[0]),
        "recipe": own["recipe"].iloc[0],
        "pseudo_label_accuracy": _rounded(right),
        "setting": setting.removeprefix(WHOLE_PIPELINES).removeprefix(", "),
        "command": own["command"].iloc[0] if "command" in own else None,
    }


def _rounded(value: float) -> float | None:
    return None if pd.isna(value) else round(float(value), 3)


def write_verdict(every: Tables) -> list[dict[str, Any]]:
    """Write the rows to :func:`verdict_file`, and return them."""
    rows = verdict_rows(every)
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_text_atomic(verdict_file(), f"[\n{lines}\n]\n")
    return rows


# ------------------------------------------------------------------ what README shows of it

BEGIN, END = "<!-- written by elfs verdict -->", "<!-- end of what elfs verdict writes -->"


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Whole pipelines against random as a table, and what the table bears out in sentences; the
    digits, which every run makes anew, are left out."""
    found = [r for r in rows if r["whole_pipelines"] and r["dataset"] != "digits"]
    lines = [
        (
            "| dataset | labelled | steps | pseudo-labels right (%) | random (%) | ELFS (%) "
            "| difference (95% interval) | pipelines |"
        ),
        "| --- " + "| ---: " * 7 + "|",
    ]
    for row in found:
        if (row["method"], row["against"]) != ("elfs", "random"):
            continue
        right = row["pseudo_label_accuracy"]
        changed = f", {row['setting']}" if row["setting"] else ""
        lines.append(
            f"| {display_name(row['dataset'])}{changed} | {100 * row['budget']:.3g}% "
            f"| {row['steps']:,} | {'' if right is None else f'{right:.1f}'} "
            f"| {row['against_accuracy']:.1f} | {row['accuracy']:.1f} "
            f"| {row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f}) "
            f"| {row['runs']} |"
        )
    lines.append("")
    for row in found:
        if row["method"] == "elfs" and not row["setting"]:
            lines.append(f"- {display_name(row['dataset'])}: {_sentence(row)}")
    return "\n".join(lines)


def _sentence(row: dict[str, Any]) -> str:
    gaps = {name: math.nan if row[name] is None else row[name] for name in ("low", "high")}
    return verdict({**row, **gaps, "rival": row["against"], "n": row["runs"]})


def update_readme(rows: list[dict[str, Any]], readme: Path) -> None:
    """Put :func:`as_markdown` between the two marks of a README.

    Raises:
        ElfsError: if it has no marks.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ElfsError(f"{readme} has no {BEGIN} and {END} to write between: put them in.")
    write_text_atomic(readme, f"{before}{BEGIN}\n{as_markdown(rows)}\n{END}{after}")
