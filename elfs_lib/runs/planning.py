"""What of a sweep is done and what is left, derived from the artifacts alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from elfs_lib.artifacts import NotBuilt, Store, stage_key
from elfs_lib.params import Params
from elfs_lib.project import default_store, project_root
from elfs_lib.results.evaluation import RESULT_COLUMNS
from elfs_lib.results.tables import write_results
from elfs_lib.runs.spec import Cell, Sweep, cells
from elfs_lib.stages.graph import Call
from elfs_lib.stages.run import Run

# ---------------------------------------------------------------------- where things are


def results_file(sweep: Sweep, store: Store) -> Path:
    """The live results table: rewritten whole at every row, so it can be read at any time."""
    return store.root / "results" / f"{sweep.name}.parquet"


def notebooks_folder(sweep: Sweep, store: Store) -> Path:
    """The executed notebooks of a sweep, the failed ones among them."""
    return store.root / f"sweep_{sweep.name}"


@dataclass(frozen=True)
class Failure:
    """A training that did not finish.

    Attributes:
        cell: Name of the cell.
        title: Its title, for people.
        kind: ``failed`` (an error in the notebook), ``died`` (its kernel or worker, each time it
            was tried) or ``blocked`` (a stage that it needs failed).
        message: What happened: for ``failed`` the number of the notebook's cell and the error.
        notebook: Where the notebook is kept, if it was started.
        params: Hash of the parameters. With others the failure no longer counts.
    """

    cell: str
    title: str
    kind: Literal["failed", "died", "blocked"]
    message: str
    notebook: str | None
    params: str


def failures(sweep: Sweep, store: Store | None = None) -> list[Failure]:
    """The trainings of a sweep that failed and have not been run again since."""
    file = notebooks_folder(sweep, store or default_store()) / "failures.json"
    if not file.exists():
        return []
    found = {entry["cell"]: Failure(**entry) for entry in json.loads(file.read_text())}
    return [
        found[cell.name]
        for cell in cells(sweep)
        if cell.name in found and found[cell.name].params == params_key(cell)
    ]


def params_key(cell: Cell) -> str:
    return stage_key("sweep", 1, cell.params.model_dump(mode="json"), {})


# ---------------------------------------------------------------------- what is done, what is left


@dataclass(frozen=True)
class SharedStage:
    """A stage that several trainings read: the name and the arguments of a stage of ``Run``."""

    name: str
    params: Params
    call: tuple[str, Mapping[str, Any]]
    title: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is there and what is left of a sweep.

    Attributes:
        rows: Results that exist, by name of the cell.
        failed: Failures that stay as they are.
        stages: Shared stages to run, inputs first.
        waiting: Cells to run.
        needs: For each waiting cell, by name, the stages that come before it.
    """

    rows: dict[str, dict[str, Any]]
    failed: dict[str, Failure]
    stages: list[SharedStage]
    waiting: list[Cell]
    needs: dict[str, tuple[str, ...]]


def plan(sweep: Sweep, store: Store, *, retry_failed: bool = False) -> Plan:
    """Look at the store and say what is left; builds nothing.

    Args:
        retry_failed: Count the failed trainings as left.

    Raises:
        ElfsError: if an artifact is damaged, unless the store repairs.
    """
    runs = _look(sweep, store)
    failed = {failure.cell: failure for failure in failures(sweep, store)}
    rows, waiting = {}, []
    for cell in cells(sweep):
        row = row_of_cell(runs[cell.pipeline], cell)
        if row is not None:
            rows[cell.name] = row
        # A notebook may fail after its training: its row counts, and so does its failure.
        if retry_failed if cell.name in failed else row is None:
            waiting.append(cell)
    stages, needs = _shared_stages(runs, waiting)
    return Plan(rows, {} if retry_failed else failed, stages, waiting, needs)


def collect(sweep: Sweep, store: Store | None = None) -> pd.DataFrame:
    """The rows that exist, in the order of :func:`cells`; builds nothing.

    Returns:
        Columns of :data:`elfs_lib.results.evaluation.RESULT_COLUMNS` and ``supervised``, one row a
        training.

    Raises:
        ElfsError: if a dataset is not on this machine, or an artifact is damaged.
    """
    runs = _look(sweep, store or default_store())
    return table_of_rows([row_of_cell(runs[cell.pipeline], cell) for cell in cells(sweep)])


def _look(sweep: Sweep, store: Store) -> dict[tuple[str, int], Run]:
    look = Store(store.root, look=True, repair=store.repair)
    return {(params.dataset, params.seed): Run(params, look) for params in sweep.pipelines}


def row_of_cell(run: Run, cell: Cell) -> dict[str, Any] | None:
    try:
        return run.result_row(cell.method, cell.budget, cell.seed)
    except NotBuilt:
        return None


def table_of_rows(rows: Sequence[Mapping[str, Any] | None]) -> pd.DataFrame:
    table = pd.DataFrame([row for row in rows if row is not None])
    if table.empty:
        return pd.DataFrame(columns=list(RESULT_COLUMNS))
    some = ("hard_prune_ratio", "pseudo_label_accuracy")  # methods without one hold None
    return table.astype(dict.fromkeys(some, float))


def write_tables(sweep: Sweep, command: str, store: Store | None = None) -> list[Path]:
    """Write the rows that exist where the book's results page reads them, a file for each dataset;
    rows that an earlier call wrote, from this store or another, stay.

    Args:
        command: What makes the rows again.

    Raises:
        ElfsError: as :func:`collect`.
    """
    rows = collect(sweep, store)
    written = []
    for params in {params.dataset: params for params in sweep.pipelines}.values():
        own = rows[rows["dataset"] == params.dataset]
        if len(own):
            folder = project_root() / "book" / "runs" / params.dataset
            written.append(folder / f"results_{sweep.name}.csv")
            whole = sweep.whole_pipelines
            write_results(
                own, params, written[-1], command=command, whole_pipelines=whole, grow=True
            )
    return written


def _shared_stages(
    runs: Mapping[tuple[str, int], Run], waiting: Sequence[Cell]
) -> tuple[list[SharedStage], dict[str, tuple[str, ...]]]:
    """The stages that are not there yet, and which of them each cell needs."""
    several = Counter(dataset for dataset, _ in runs)
    trainings = {
        cell.name: runs[cell.pipeline].call(
            "evaluation", method=cell.method, budget=cell.budget, seed=cell.seed
        )
        for cell in waiting
    }
    readers = Counter(call.id for each in trainings.values() for call in each.before.values())
    stages: dict[str, SharedStage] = {}
    looked_at: dict[object, tuple[str, ...]] = {}

    def wait_for(call: Call) -> tuple[str, ...]:
        """Names of the stages after which an artifact is there, or is soon made."""
        if call.id not in looked_at:
            looked_at[call.id] = look_at(call)
        return looked_at[call.id]

    def look_at(call: Call) -> tuple[str, ...]:
        try:
            call.make()  # the store only looks
            return ()
        except NotBuilt:
            needs = before(call)
        # What is quick is left to the notebook, unless several would wait for each other's.
        alone = call.stage.quick and readers[call.id] < 2
        if alone or call.run not in runs.values():  # of one of several encoders that are joined
            return needs
        p = call.run.params
        own = several[p.dataset] > 1 and "seed" in call.reads
        words = [call.stage.name, *call.args.values()]
        name = "_".join(map(str, (p.dataset, *[f"pipeline{p.seed}"] * own, *words)))
        if name not in stages:
            title = f"{p.dataset}, {call.title}" + (f", seed {p.seed}" if own else "")
            stages[name] = SharedStage(name, p, (call.stage.name, call.args), title, needs)
        return (name,)

    def before(call: Call) -> tuple[str, ...]:
        needs = [name for each in call.before.values() for name in wait_for(each)]
        return tuple(dict.fromkeys(needs))

    needs = {name: before(call) for name, call in trainings.items()}
    return list(stages.values()), needs


@dataclass(frozen=True)
class Outcome:
    kind: Literal["done", "failed", "died", "blocked"]
    message: str = ""
    row: dict[str, Any] | None = None
    seconds: float = 0.0


# ---------------------------------------------------------------------- what people see


def describe(sweep: Sweep, todo: Plan) -> str:
    """One sentence on what is done and what is left."""
    total = len(cells(sweep))
    parts = [f"{total} trainings", f"{len(todo.rows)} results there", f"{len(todo.waiting)} to run"]
    if todo.stages:
        parts.append(f"after {len(todo.stages)} shared stages")
    if todo.failed:
        parts.append(f"{len(todo.failed)} failed earlier (--retry-failed runs them again)")
    return f"Sweep {sweep.name}: {', '.join(parts)}."
