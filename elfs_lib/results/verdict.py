"""What the results tables show of ELFS against others, as rows that README and pages read.

``elfs verdict`` writes ``book/data/verdict.json`` from the tables of
:mod:`elfs_lib.results.tables`; :mod:`elfs_lib.results.headlines` says it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from elfs_lib.artifacts import write_text_atomic
from elfs_lib.project import project_root
from elfs_lib.results.evaluation import paired_difference
from elfs_lib.results.provenance import WHOLE_PIPELINES
from elfs_lib.results.words import changed_parameters, network_in_words
from elfs_lib.selection import METHODS
from elfs_lib.training.recipes import RECIPES

if TYPE_CHECKING:
    from elfs_lib.results.page import Tables

#: Who is compared with whom, besides ELFS with every method that sees no label.
PAIRS = (
    ("elfs", "random"),
    ("elfs", "ccs_pseudo"),
    ("elfs", "elfs_true"),
    ("ccs_pseudo", "random"),
    ("elfs_true", "random"),
)

#: The columns of the verdict, one row a table, budget and rival.
VERDICT_COLUMNS: dict[str, str] = {
    "dataset": "name of the dataset",
    "budget": "share of the training set that was labelled",
    "method": "the method",
    "against": "the method that it is compared with",
    "difference": "accuracy of the first minus that of the second, in points, paired by run",
    "low": "lower end of its 95% t-interval; null with one run",
    "high": "upper end of it",
    "runs": "how many differences it is the mean of",
    "seeds": "of these runs",
    "whole_pipelines": "whether each run has its own clusters, proxy, search and coreset; else the "
    "runs are trainings on one coreset",
    "accuracy": "mean test accuracy of the method, in percent",
    "against_accuracy": "the same of the other",
    "hard_prune_ratios": "beta of each of these runs of the method; empty if it has none",
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
    """A row for each table, budget and pair of methods, by :data:`VERDICT_COLUMNS`."""
    rows = []
    for (dataset, setting), table in every.items():
        measured = {*table["method"]}
        others = (("elfs", name) for name in METHODS if is_another_method(name))
        for method, rival in (*PAIRS, *others):
            if not {method, rival} <= measured:
                continue
            for pair in paired_difference(table, method, rival, strict=False).itertuples():
                rows.append(_row(dataset, setting, table, pair))
    return rows


def is_another_method(name: str) -> bool:
    """Whether a method sees no label and is neither ELFS, a variant of it, random nor a control."""
    known = name.startswith(("elfs", "ccs")) or name == "random"
    return not known and not METHODS[name].supervised


def _row(dataset: str, setting: str, table: pd.DataFrame, pair: Any) -> dict[str, Any]:
    at = table[table["budget"] == pair.budget]
    own = at[(at["method"] == pair.method) & at["seed"].isin(pair.seeds)].sort_values("seed")
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
        "seeds": [int(seed) for seed in pair.seeds],
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


def of_own_pipelines(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of whole pipelines by the datasets' own parameters, the digits left out."""
    found = pd.DataFrame(rows, columns=[*VERDICT_COLUMNS])
    own = found["whole_pipelines"].astype(bool) & (found["setting"] == "")
    return found[own & (found["dataset"] != "digits")]


_TRAINING = ["dataset", "budget", "recipe", "steps"]


def by_pseudo_labels(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """ELFS and CCS minus random over whole pipelines of known pseudo-labels, where those of one
    training have several ways to pseudo-labels: rows of :func:`verdict_rows`, the poorest
    pseudo-labels first and true labels (``elfs_true``, 100% right) last."""
    frame = pd.DataFrame(rows, columns=[*VERDICT_COLUMNS])
    frame.loc[frame["method"] == "elfs_true", "pseudo_label_accuracy"] = 100.0
    kept = frame["method"].isin(["elfs", "elfs_true", "ccs_pseudo"])
    kept &= frame["whole_pipelines"].astype(bool) & (frame["runs"] > 2)
    frame = frame[kept & (frame["against"] == "random")]
    frame = frame[frame["setting"].map(_is_of_pseudo_labels).astype(bool)]
    frame = frame.dropna(subset=["pseudo_label_accuracy"])
    right = frame["pseudo_label_accuracy"].where(frame["method"] != "ccs_pseudo")
    several = right.groupby([frame[name] for name in _TRAINING]).transform("nunique") > 1
    return frame[several].sort_values([*_TRAINING, "pseudo_label_accuracy"])


def by_training(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """ELFS minus random over whole pipelines whose final models are trained in several ways, all
    else as in the dataset's file: rows of :func:`verdict_rows`, and in words the ``network`` and
    what else sets a training apart (``aside``). The file's own network comes first, and a shorter
    training before a longer one. The digits are left out, and so is a search of the final models'
    own that chose the betas that the file's had chosen."""
    frame = pd.DataFrame(rows, columns=[*VERDICT_COLUMNS])
    kept = (frame["method"] == "elfs") & (frame["against"] == "random")
    frame = frame[kept & frame["whole_pipelines"].astype(bool) & (frame["dataset"] != "digits")]
    alike = pd.Series([_is_of_training(row) for row in frame.itertuples()], frame.index, dtype=bool)
    frame = frame.loc[alike].copy()
    frame["network"] = frame["recipe"].map(network_in_words)
    frame["aside"] = pd.Series([_aside(row) for row in frame.itertuples()], frame.index, dtype=str)
    frame["other"] = ["eval_recipe" in changed_parameters(name) for name in frame["setting"]]
    by = ["dataset", "budget"]
    frame = frame[~_chose_the_same(frame)]
    trained = frame["recipe"] + frame["steps"].astype(str)
    several = trained.groupby([frame[name] for name in by]).transform("nunique") > 1
    return frame[several].sort_values([*by, "other", "network", "steps"])


def _chose_the_same(trained: pd.DataFrame) -> pd.Series:
    """Whether a row's own search chose the betas of the file's, and so the same coresets."""

    def training(row: Any) -> tuple:
        return row.dataset, row.budget, row.recipe, row.steps, row.aside.removesuffix(OWN_BETA)

    own = trained["aside"].str.endswith(OWN_BETA)
    files = {training(row): _betas_by_seed(row) for row in trained[~own].itertuples()}
    same = (_chose(row, files.get(training(row), {})) for row in trained.itertuples())
    return own & pd.Series(same, trained.index, dtype=bool)


def _betas_by_seed(row: Any) -> dict[int, float]:
    return dict(zip(row.seeds, row.hard_prune_ratios, strict=True))


def _chose(row: Any, betas: dict[int, float]) -> bool:
    """Whether each run of a row has the beta that its seed has there."""
    return _betas_by_seed(row).items() <= betas.items()


def by_search(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """ELFS against random and CCS over whole pipelines whose search for beta is another, all else
    as in the dataset's file: rows of :func:`verdict_rows`. A search that chose the betas of the
    file's at every budget is left out."""
    frame = pd.DataFrame(rows, columns=[*VERDICT_COLUMNS])
    kept = (frame["method"] == "elfs") & frame["against"].isin(["random", "ccs_pseudo"])
    frame = frame[kept & frame["whole_pipelines"].astype(bool)]
    usual = frame[(frame["setting"] == "") & (frame["against"] == "random")]
    files = {(row.dataset, row.budget): _betas_by_seed(row) for row in usual.itertuples()}
    frame = frame[frame["setting"].map(is_another_search).astype(bool)]
    chose = [_chose(row, files.get((row.dataset, row.budget), {})) for row in frame.itertuples()]
    alike = [frame["dataset"], frame["setting"]]
    return frame[~pd.Series(chose, frame.index, dtype=bool).groupby(alike).transform("all")]


#: Ends the words of a training whose search for beta trained its models alike.
OWN_BETA = " (own β)"


def _aside(row: Any) -> str:
    """Batches that are not the recipe's own, and a search that trained its models alike."""
    changed = changed_parameters(row.setting)
    batch = changed.get("eval_batch")
    own = RECIPES[row.recipe.partition(",")[0]].batch
    other = f" in batches of {batch}" if batch and batch != own else ""
    return other + OWN_BETA * ("search_steps" in changed)


def _is_of_training(row: Any) -> bool:
    """Whether nothing but the training of the final models differs from the params file's, or that
    of the search's models, and the betas they try, with it."""
    changed = changed_parameters(row.setting)
    searched = {"search_recipe": row.recipe.partition(",")[0], "search_steps": row.steps}
    alike = all(changed.get(name) == value for name, value in searched.items())
    of_search = {*searched, "hard_prune_ratios"} if alike else set()
    return all(name.startswith("eval_") or name in of_search for name in changed)


def is_another_search(setting: str) -> bool:
    """Whether the search for beta, and nothing else, differs from the params file's."""
    changed = changed_parameters(setting)
    return bool(changed) and all(name.startswith("search_") for name in changed)


def _is_of_pseudo_labels(setting: str) -> bool:
    """Whether nothing but the training of all alike, or the pseudo-labels on purpose, differs."""
    names = [name for name in changed_parameters(setting) if not name.startswith("eval_")]
    makers = ("encoder", "neighbor", "clustering", "temi_", "pseudo_labels", "relabel_")
    return all(name.startswith(makers) for name in names)
