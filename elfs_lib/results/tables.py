"""Results tables in the book: one CSV a run or sweep, beside its executed notebooks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from elfs_lib.artifacts import write_text_atomic
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.project import project_root
from elfs_lib.results import evaluation, provenance


def write_results(
    rows: pd.DataFrame,
    params: Params,
    target: Path,
    *,
    command: str = "",
    whole_pipelines: bool = False,
    grow: bool = False,
) -> None:
    """Write a results table beside the executed notebooks, where the results page finds it.

    Args:
        rows: One row a training.
        params: What the rows have in common.
        target: The CSV file.
        command: What makes the rows again; by default ``elfs run`` with ``params``.
        whole_pipelines: Whether the seed of a row is that of its whole pipeline.
        grow: Whether trainings that the file holds and ``rows`` lack stay, if their setting and
            recipe are those of ``rows``: a sweep may go on over another store than it began with.
    """
    table = evaluation.results_table(rows).assign(
        setting=provenance.setting(params, whole_pipelines=whole_pipelines),
        command=command or provenance.command(params),
    )
    if grow and target.exists():
        table = _grown(table, _read(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(target, table.to_csv(index=False))


def _grown(table: pd.DataFrame, old: pd.DataFrame) -> pd.DataFrame:
    alike = [old[name].isin(table[name]) for name in ("dataset", "setting", "recipe")]
    both = pd.concat([table, old[np.logical_and.reduce(alike)]])
    training = ["dataset", "method", "budget", "seed"]
    return evaluation.results_table(both.drop_duplicates(training))


def _read(file: Path) -> pd.DataFrame:
    """A table; those written before there were settings have the empty one."""
    table = pd.read_csv(file)
    if "setting" not in table:
        table["setting"] = ""
    return table.assign(setting=table["setting"].astype(object).fillna(""))


def result_tables() -> dict[tuple[str, str], pd.DataFrame]:
    """Every results table of the book, by folder of ``book/runs`` and setting.

    A folder may hold several tables, of a run and of sweeps. Those of one setting are put together,
    a training that is in two of them once. The small default comes last, and the params file's own
    setting, which is the empty one, before others.

    Raises:
        ElfsError: if there is none yet, or two tables disagree on a training.
    """
    files = sorted((project_root() / "book" / "runs").glob("*/results*.csv"))
    if not files:
        raise ElfsError("The book has no results yet: run elfs run params/digits.yaml first.")
    found: dict[tuple[str, str], list[pd.DataFrame]] = defaultdict(list)
    for file in files:
        for setting, part in _read(file).groupby("setting"):
            found[file.parent.name, str(setting)].append(part)
    same = ["dataset", "method", "budget", "seed", "accuracy"]
    tables = {
        key: evaluation.results_table(pd.concat(parts).drop_duplicates(same))
        for key, parts in found.items()
    }
    return dict(sorted(tables.items(), key=lambda item: (item[0][0] == "digits", item[0])))


def runs_folder(params_file: Path) -> Path:
    """Where the executed notebooks of a params file go: ``book/runs/<its name>``."""
    return project_root() / "book" / "runs" / params_file.stem
