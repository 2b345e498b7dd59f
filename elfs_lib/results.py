"""Results tables in the book: one CSV a run or sweep, beside its executed notebooks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pandas as pd

from elfs_lib import evaluation, provenance
from elfs_lib.artifacts import package_versions, write_text_atomic
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.project import project_root


def write_results(
    rows: pd.DataFrame,
    params: Params,
    target: Path,
    *,
    command: str = "",
    whole_pipelines: bool = False,
) -> None:
    """Write a results table beside the executed notebooks, where the results page finds it.

    Args:
        rows: One row a training.
        params: What the rows have in common.
        target: The CSV file.
        command: What makes the rows again; by default ``elfs run`` with ``params``.
        whole_pipelines: Whether the seed of a row is that of its whole pipeline.
    """
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    table = evaluation.results_table(rows).assign(
        setting=provenance.setting(params, whole_pipelines=whole_pipelines),
        command=command or provenance.command(params),
        versions=versions,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(target, table.to_csv(index=False))


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
        table = pd.read_csv(file)
        if "setting" not in table:  # written before there were settings
            table["setting"] = ""
        table["setting"] = table["setting"].astype(object).fillna("")
        for setting, part in table.groupby("setting"):
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
