"""What the results tables bear out of ELFS against others, as rows that README and pages read.

``elfs verdict`` writes ``book/data/verdict.json`` from the tables of :mod:`elfs_lib.results`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from elfs_lib.artifacts import write_text_atomic
from elfs_lib.evaluation import paired_difference
from elfs_lib.project import project_root
from elfs_lib.provenance import WHOLE_PIPELINES
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


def read_verdict(**wanted: Any) -> pd.DataFrame:
    """The rows of the file whose columns have the given values."""
    rows: Iterable[dict[str, Any]] = json.loads(verdict_file().read_text(encoding="utf-8"))
    kept = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return pd.DataFrame(kept, columns=list(COLUMNS))
