"""A sweep: datasets x methods x budgets x seeds, each a papermill run of notebook 06, on Dask, or
its training alone.

What is done is derived from the artifacts alone, so a sweep that was killed at any point resumes
when it is started again. Stages that several notebooks read (embeddings, TEMI, proxies, beta
searches, coresets without a seed) are tasks of their own and come before what needs them; otherwise
workers would sit waiting for each other at the locks of the store.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import queue
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pandas as pd
import papermill

from elfs_lib.artifacts import Store, write_text_atomic
from elfs_lib.data.base import default_data_dir
from elfs_lib.errors import ElfsError
from elfs_lib.project import default_store
from elfs_lib.runs.display import SweepProgress
from elfs_lib.runs.pipeline import KernelDied, check_notebooks, execute, page_parameters
from elfs_lib.runs.planning import (
    Failure,
    Outcome,
    Plan,
    SharedStage,
    describe,
    failures,
    notebooks_folder,
    params_key,
    plan,
    results_file,
    row_of_cell,
    table_of_rows,
)
from elfs_lib.runs.spec import Cell, Sweep, cells
from elfs_lib.runs.workers import open_client
from elfs_lib.stages.run import Run

if TYPE_CHECKING:  # Dask takes seconds to import, and only running a sweep needs it
    from distributed import Client, Future

NOTEBOOK = "06_coreset_evaluation"
_ASIDE = ".running_"


# ---------------------------------------------------------------------- on the workers


@dataclass(frozen=True)
class _Place:
    """What a worker must know besides its task."""

    root: Path
    folder: Path
    here: Path
    environment: Mapping[str, str]
    topic: str
    kernel: str | None
    retries: int
    notebooks: bool


def _task(work: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Announce a task, skip it if something it needs failed, and turn errors into outcomes."""

    @functools.wraps(work)
    def run(item: SharedStage | Cell, place: _Place, *before: Outcome) -> Outcome:
        from distributed import get_worker

        for outcome in before:
            if outcome.kind != "done":
                return Outcome("blocked", outcome.message)
        get_worker().log_event(place.topic, item.name)
        os.environ.update(place.environment)
        os.chdir(place.here)
        start = time.perf_counter()
        try:
            outcome = work(item, place)
        except Exception as error:  # whatever it is, the other notebooks go on
            message = str(error) if isinstance(error, ElfsError) else _name(error)
            if isinstance(item, SharedStage):
                message = f"its stage '{item.title}' failed: {message}"
            outcome = Outcome("failed", message)
        if isinstance(item, SharedStage) or not place.notebooks:
            from elfs_lib.compute import release_memory

            # Notebooks train in processes of their own. An error holds tensors until it is gone.
            release_memory()
        return dataclasses.replace(outcome, seconds=time.perf_counter() - start)

    return run


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@_task
def _run_stage(stage: SharedStage, place: _Place) -> Outcome:
    name, arguments = stage.call
    Run(stage.params, default_store()).artifact(name, **arguments)
    return Outcome("done")


@_task
def _run_cell(cell: Cell, place: _Place) -> Outcome:
    """In a notebook, or in this process by the stage that the notebook would run."""
    if place.notebooks:
        outcome = _run_notebook(cell, place)
    else:
        Run(cell.params, default_store()).evaluate(cell.method, cell.budget, cell.seed)
        outcome = Outcome("done")
    if outcome.kind != "done":
        return outcome
    row = row_of_cell(Run(cell.params, Store(place.root, look=True)), cell)
    if row is None:
        return Outcome("failed", "the notebook ended without a result in the store")
    return Outcome("done", row=row)


def _run_notebook(cell: Cell, place: _Place) -> Outcome:
    parameters = page_parameters(NOTEBOOK, cell.params)
    # Executed aside and moved when over, so a notebook under its final name is never half written.
    with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=place.folder) as aside:
        for _ in range(place.retries + 1):
            outcome = _execute(Path(aside), parameters, place.kernel)
            if outcome.kind != "died":
                break
        else:
            times = "once" if place.retries == 0 else f"{place.retries + 1} times"
            message = f"its kernel died {times}, probably out of memory: use fewer workers"
            outcome = Outcome("died", message)
        written = Path(aside) / f"{NOTEBOOK}.ipynb"
        if written.exists():
            os.replace(written, _kept(place.folder, cell))
    return outcome


def _execute(aside: Path, parameters: Mapping[str, Any], kernel: str | None) -> Outcome:
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the outcome says it all
    try:
        execute(NOTEBOOK, aside, parameters, kernel=kernel)
    except KernelDied:
        return Outcome("died")
    except ElfsError as error:
        cause = error.__cause__
        if not isinstance(cause, papermill.PapermillExecutionError):
            raise
        message = f"cell {cause.cell_index}: {cause.ename}: {cause.evalue}"
        return Outcome("failed", message)
    return Outcome("done")


def _kept(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.ipynb"


# ---------------------------------------------------------------------- the sweep


def run_sweep(
    sweep: Sweep,
    store: Store | None = None,
    *,
    scheduler: str | None = None,
    client: Client | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    kernel: str | None = None,
    notebooks: bool = True,
    say: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Run what is left of a sweep and return its results table.

    Failed trainings do not stop it: ask :func:`failures` about them afterwards. It can be killed at
    any time; the next call goes on from what is in the store.

    Args:
        store: Of the artifacts. On a cluster its folder must be one that all workers see.
        scheduler: Address of a running Dask scheduler. None: SLURM if the sweep says so, else
            workers on this machine.
        client: A Dask client to use instead of any of these.
        workers: Trainings at a time on this machine, instead of the sweep's number.
        retry_failed: Run the failed trainings again.
        kernel: Name of a Jupyter kernel; None for the one that the notebook names.
        notebooks: False: the workers train themselves, with the same results. No notebook is kept,
            and no training waits for a kernel.
        say: Where lines of progress go; None: a table on a terminal, lines elsewhere.

    Raises:
        ElfsError: if the parameters do not fit the data, the same sweep is running already, or
            the scheduler cannot be reached or goes away.
    """
    store = store or default_store()
    _check(sweep, store)
    folder = notebooks_folder(sweep, store)
    with _locked(sweep, folder):
        todo = plan(sweep, store, retry_failed=retry_failed)
        progress = SweepProgress(sweep, todo, say)
        record = _Record(sweep, store, todo)
        record.write()
        progress.say(describe(sweep, todo))
        if not todo.waiting:
            return record.table()
        on_this_machine = not (scheduler or client or sweep.slurm)
        if notebooks:
            check_notebooks([NOTEBOOK], kernel if on_this_machine else None)
        environment = {"ELFS_ARTIFACTS_DIR": str(store.root.resolve()), "ELFS_PROGRESS": "0"}
        environment["ELFS_REPAIR"] = str(int(store.repair))  # workers may outlive a sweep
        if "ELFS_DATA_DIR" in os.environ:
            environment["ELFS_DATA_DIR"] = str(default_data_dir().resolve())
        place = _Place(
            store.root.resolve(),
            folder.resolve(),
            Path.cwd(),
            environment,
            f"elfs-{uuid.uuid4().hex}",  # a scheduler may serve several sweeps
            kernel,
            sweep.retries,
            notebooks,
        )
        with ExitStack() as stack:
            if client is None:
                if on_this_machine:  # a killed sweep's workers died with it
                    for left in folder.glob(f"{_ASIDE}*"):
                        shutil.rmtree(left, ignore_errors=True)
                client = stack.enter_context(
                    open_client(sweep, progress.say, scheduler=scheduler, workers=workers)
                )
            stack.enter_context(progress)
            for item, outcome in _outcomes(client, todo, place, progress):
                if isinstance(item, Cell):
                    record.add(item, outcome)
                progress.finished(item, outcome)
        return record.table()


def _check(sweep: Sweep, store: Store) -> None:
    """Check the parameters against the data, before any work but decoding the images."""
    for params in sweep.pipelines:
        run = Run(params, Store(store.root, repair=store.repair))
        run.check()
        if not run.can_evaluate:
            raise ElfsError(f"Dataset {params.dataset!r} has no labelled test split to sweep on.")


@contextmanager
def _locked(sweep: Sweep, folder: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise ElfsError(f"Sweep {sweep.name!r} is running already: wait, or stop it.") from None
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _cannot_write(path: Path, error: OSError) -> ElfsError:
    return ElfsError(
        f"Cannot write {path}: {error.strerror or error}; free disk space, or name another folder "
        "with ELFS_ARTIFACTS_DIR."
    )


def _outcomes(
    client: Client, todo: Plan, place: _Place, progress: SweepProgress
) -> Iterator[tuple[SharedStage | Cell, Outcome]]:
    """Submit everything and yield what ends, as it ends."""
    events: queue.SimpleQueue[tuple[str, Future | None]] = queue.SimpleQueue()
    futures: dict[str, Future] = {}

    def submit(
        item: SharedStage | Cell, work: Callable, needs: Sequence[str], priority: int
    ) -> None:
        before = [futures[name] for name in needs]
        kind = "stage" if isinstance(item, SharedStage) else "notebook"
        key = f"{kind}-{item.name}-{place.topic}"
        future = client.submit(work, item, place, *before, key=key, pure=False, priority=priority)
        futures[item.name] = future
        future.add_done_callback(lambda done, name=item.name: events.put((name, done)))

    client.subscribe_topic(place.topic, lambda event: events.put((event[1], None)))
    urgency = _urgency(todo)
    for stage in todo.stages:
        submit(stage, _run_stage, stage.needs, urgency[stage.name])
    for cell in todo.waiting:
        submit(cell, _run_cell, todo.needs[cell.name], urgency[cell.name])
    left: dict[str, SharedStage | Cell] = {
        item.name: item for item in (*todo.stages, *todo.waiting)
    }
    try:
        while left:
            try:
                name, future = events.get(timeout=1)
            except queue.Empty:
                progress.refresh()
                continue
            if future is not None:
                yield left.pop(name), _outcome(future)
            elif name in left:  # the event of its start may arrive last
                progress.started(left[name])
    finally:
        if client.status == "running":
            client.unsubscribe_topic(place.topic)
            client.cancel(list(futures.values()))


def _urgency(todo: Plan) -> dict[str, int]:
    """Priority of each stage and cell, highest first: cells in their order, and each stage just
    before the first cell that waits for it, so that rows come as early as they can."""
    needs = {stage.name: stage.needs for stage in todo.stages}
    found: dict[str, int] = {}
    for number, cell in enumerate(todo.waiting):
        found[cell.name] = -2 * number
        before = list(todo.needs[cell.name])
        while before:
            name = before.pop()
            if name not in found:
                found[name] = 1 - 2 * number
                before += needs[name]
    return found


def _outcome(future: Future) -> Outcome:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except KilledWorker:
        return Outcome("died", "its worker died each time: use fewer workers, or more memory")
    except FutureCancelledError:
        raise ElfsError(
            "The Dask scheduler went away: start it again and repeat the command, which goes on "
            "from what is done."
        ) from None
    except Exception as error:  # for example a worker without this package
        return Outcome("failed", _name(error))


class _Record:
    """The results table and the failures, on disk after every notebook."""

    def __init__(self, sweep: Sweep, store: Store, todo: Plan) -> None:
        self._order = [cell.name for cell in cells(sweep)]
        self._folder = notebooks_folder(sweep, store)
        self._file = results_file(sweep, store)
        self._rows = dict(todo.rows)
        # Those to be run again stay failed until they are done.
        self._failed = {failure.cell: failure for failure in failures(sweep, store)}

    def table(self) -> pd.DataFrame:
        return table_of_rows([self._rows.get(name) for name in self._order])

    def add(self, cell: Cell, outcome: Outcome) -> None:
        if outcome.kind == "done":
            self._failed.pop(cell.name, None)
            self._rows[cell.name] = outcome.row
        else:
            kept = _kept(self._folder, cell)
            self._failed[cell.name] = Failure(
                cell.name,
                cell.title,
                outcome.kind,
                outcome.message,
                str(kept) if kept.exists() and outcome.kind != "blocked" else None,
                params_key(cell),
            )
        self.write()

    def write(self) -> None:
        temporary = self._file.with_name(f".{self._file.name}.tmp")
        entries = [dataclasses.asdict(failure) for failure in self._failed.values()]
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self.table().to_parquet(temporary, index=False)
            os.replace(temporary, self._file)
            write_text_atomic(self._folder / "failures.json", json.dumps(entries, indent=1))
        except OSError as error:
            raise _cannot_write(self._file, error) from error
