"""A sweep: datasets x methods x budgets x seeds, each a papermill run of notebook 06, on Dask.

What is done is read off the artifacts and nowhere else, so a sweep that was killed at any point
goes on by being started again. Stages that several notebooks read (embeddings, TEMI, proxies, beta
searches, coresets without a seed) are tasks of their own and come before what needs them;
otherwise workers would sit waiting for each other at the locks of the store.
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
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import filelock
import pandas as pd
import papermill
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from elfs_lib.artifacts import NotBuilt, Store, stage_key, write_text_atomic
from elfs_lib.data.datasets import default_data_dir
from elfs_lib.errors import ElfsError, choose, first_fault, is_whole
from elfs_lib.params import ListOf, Params, Seed, Share, read_yaml
from elfs_lib.project import default_store, project_root
from elfs_lib.results.evaluation import COLUMNS
from elfs_lib.results.tables import write_results
from elfs_lib.runs.pipeline import KernelDied, check_notebooks, execute
from elfs_lib.runs.workers import open_client
from elfs_lib.stages.graph import Call
from elfs_lib.stages.run import Run

if TYPE_CHECKING:  # Dask takes seconds to import, and only running a sweep needs it
    from distributed import Client, Future

NOTEBOOK = "06_coreset_evaluation"
_GRID = ("methods", "budgets", "eval_seeds")
_ASIDE = ".running_"


# ---------------------------------------------------------------------- what to run


class _SweepFile(BaseModel):
    """The YAML of a sweep."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    params: ListOf[str] = Field(min_length=1)
    methods: ListOf[str]
    budgets: ListOf[Share]
    seeds: ListOf[Seed]
    whole_pipelines: bool = False
    overrides: dict[str, Any] = Field(default_factory=dict)
    workers: int | None = Field(None, ge=1)
    retries: int = Field(1, ge=0, le=10)
    slurm: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sweep:
    """A validated sweep.

    Attributes:
        name: The file's name without its ending; names the results table.
        pipelines: Parameters of each pipeline, with the sweep's methods and budgets: one a dataset,
            whose coresets are trained on with every seed; or one a dataset and seed.
        whole_pipelines: Whether each seed makes a pipeline of its own, from an encoder that is
            trained here to the last training. Else seeds are of drawing and training alone.
        workers: Notebooks at a time on this machine; None: see :func:`local_workers`.
        retries: How often a notebook is run again after its kernel died.
        slurm: Options of ``dask_jobqueue.SLURMCluster``, and ``jobs``, how many to submit.
    """

    name: str
    pipelines: tuple[Params, ...]
    whole_pipelines: bool = False
    workers: int | None = None
    retries: int = 1
    slurm: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Cell:
    """One notebook of a sweep: a method at a budget with a seed on a dataset."""

    dataset: str
    method: str
    budget: float | int
    seed: int
    params: Params

    @property
    def name(self) -> str:
        return f"{self.dataset}_{self.method}_{self.budget}_seed{self.seed}"

    @property
    def pipeline(self) -> tuple[str, int]:
        """Dataset and seed of the pipeline that the notebook trains on."""
        return self.dataset, self.params.seed

    @property
    def title(self) -> str:
        size = f"{100 * self.budget:.3g}%" if isinstance(self.budget, float) else self.budget
        return f"{self.dataset}, {self.method}, {size}, seed {self.seed}"


def load_sweep(path: str | Path) -> Sweep:
    """Read and check the YAML of a sweep; see ``params/sweeps/`` for examples.

    Paths are looked for in the current folder, then in the project.

    Raises:
        ElfsError: one sentence on the first thing that is wrong, in it or in a params file.
    """
    path = _locate(path)
    values = read_yaml(path)
    if "dataset" in values and "params" not in values:
        raise ElfsError(f"{path} holds parameters of a run, not a sweep: try elfs run {path}.")
    for key in values:
        choose("sweep key", str(key), _SweepFile.model_fields)
    try:
        file = _SweepFile(**values)
    except pydantic.ValidationError as error:
        fault = first_fault(error)
        if fault.kind == "missing":
            raise ElfsError(f"{path} lacks {fault.key!r}: every sweep lists it.") from None
        raise ElfsError(
            f"Sweep key {fault.key!r} in {path} holds {fault.value!r}: it {fault.words}."
        ) from None
    for name in (*_GRID, "seed") if file.whole_pipelines else _GRID:
        if name in file.overrides:
            key = "seeds" if name == "seed" else name.removeprefix("eval_")
            raise ElfsError(f"{path} overrides {name!r}: give {key!r} of the sweep instead.")
    if file.slurm is not None and not is_whole(file.slurm.get("jobs"), 1):
        raise ElfsError(f"Sweep key 'slurm' in {path} needs 'jobs', the number of jobs to submit.")
    if file.slurm is not None and file.workers is not None:
        raise ElfsError(f"{path} gives 'workers', of this machine, and 'slurm': keep one of them.")
    grid = dict(zip(_GRID, (file.methods, file.budgets, file.seeds), strict=True))
    floors = {name: None for name in Params.model_fields if name.startswith("floor_")}
    # Floors are about a whole run; one cell of a grid may well lie below them.
    changes = {**file.overrides, **floors, **grid}
    datasets = tuple(Params.load(_locate(name), changes) for name in file.params)
    twice = [name for name, n in Counter(p.dataset for p in datasets).items() if n > 1]
    if twice:
        raise ElfsError(
            f"{path} lists dataset {twice[0]!r} twice: its rows would be one; make two sweeps."
        )
    pipelines = datasets
    if file.whole_pipelines:
        pipelines = tuple(
            params.model_copy(update={"seed": seed, "eval_seeds": (seed,)})
            for seed in file.seeds
            for params in datasets
        )
    return Sweep(path.stem, pipelines, file.whole_pipelines, file.workers, file.retries, file.slurm)


def _locate(path: str | Path) -> Path:
    here, project = Path(path), project_root() / path
    return project if not here.exists() and project.exists() else here


def cells(sweep: Sweep) -> list[Cell]:
    """Every cell, in the order of running: budget by budget, and in it seed by seed.

    A sweep that is stopped early thus leaves whole figures of fewer budgets or seeds.
    """
    budgets, methods = sweep.pipelines[0].budgets, sweep.pipelines[0].methods
    seeds = dict.fromkeys(seed for params in sweep.pipelines for seed in params.eval_seeds)
    return [
        Cell(
            params.dataset,
            method,
            budget,
            seed,
            params.model_copy(
                update={"methods": (method,), "budgets": (budget,), "eval_seeds": (seed,)}
            ),
        )
        for budget in budgets
        for seed in seeds
        for params in sweep.pipelines
        if seed in params.eval_seeds
        for method in methods
    ]


# ---------------------------------------------------------------------- where things are


def results_file(sweep: Sweep, store: Store) -> Path:
    """The live results table: rewritten whole at every row, so it can be read at any time."""
    return store.root / "results" / f"{sweep.name}.parquet"


def notebooks_folder(sweep: Sweep, store: Store) -> Path:
    """The executed notebooks of a sweep, the failed ones among them."""
    return store.root / f"sweep_{sweep.name}"


@dataclass(frozen=True)
class Failure:
    """A notebook that did not finish.

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
    """The notebooks of a sweep that failed and have not been run again since."""
    file = notebooks_folder(sweep, store or default_store()) / "failures.json"
    if not file.exists():
        return []
    found = {entry["cell"]: Failure(**entry) for entry in json.loads(file.read_text())}
    return [
        found[cell.name]
        for cell in cells(sweep)
        if cell.name in found and found[cell.name].params == _params_key(cell)
    ]


def _params_key(cell: Cell) -> str:
    return stage_key("sweep", 1, cell.params.model_dump(mode="json"), {})


# ---------------------------------------------------------------------- what is done, what is left


@dataclass(frozen=True)
class SharedStage:
    """A stage that several notebooks read: the name and the arguments of a stage of ``Run``."""

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
        retry_failed: Count the failed notebooks as left.

    Raises:
        ElfsError: if an artifact is damaged, unless the store repairs.
    """
    runs = _look(sweep, store)
    failed = {failure.cell: failure for failure in failures(sweep, store)}
    rows, waiting = {}, []
    for cell in cells(sweep):
        row = _row(runs[cell.pipeline], cell)
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
        Columns of :data:`elfs_lib.results.evaluation.COLUMNS` and ``supervised``, one row a
        notebook.

    Raises:
        ElfsError: if a dataset is not on this machine, or an artifact is damaged.
    """
    runs = _look(sweep, store or default_store())
    return _table([_row(runs[cell.pipeline], cell) for cell in cells(sweep)])


def _look(sweep: Sweep, store: Store) -> dict[tuple[str, int], Run]:
    look = Store(store.root, look=True, repair=store.repair)
    return {(params.dataset, params.seed): Run(params, look) for params in sweep.pipelines}


def _row(run: Run, cell: Cell) -> dict[str, Any] | None:
    try:
        return run.result_row(cell.method, cell.budget, cell.seed)
    except NotBuilt:
        return None


def _table(rows: Sequence[Mapping[str, Any] | None]) -> pd.DataFrame:
    table = pd.DataFrame([row for row in rows if row is not None])
    if table.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    some = ("hard_prune_ratio", "pseudo_label_accuracy")  # methods without one hold None
    return table.astype(dict.fromkeys(some, float))


def publish(sweep: Sweep, command: str, store: Store | None = None) -> list[Path]:
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
            call.artifact  # noqa: B018 - looking, as the store does
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


@dataclass(frozen=True)
class _Outcome:
    kind: Literal["done", "failed", "died", "blocked"]
    message: str = ""
    row: dict[str, Any] | None = None
    seconds: float = 0.0


def _task(work: Callable[..., _Outcome]) -> Callable[..., _Outcome]:
    """Announce a task, wait for nothing that failed, and turn errors into outcomes."""

    @functools.wraps(work)
    def run(item: SharedStage | Cell, place: _Place, *before: _Outcome) -> _Outcome:
        from distributed import get_worker

        for outcome in before:
            if outcome.kind != "done":
                return _Outcome("blocked", outcome.message)
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
            outcome = _Outcome("failed", message)
        if isinstance(item, SharedStage):
            from elfs_lib.compute import release_memory

            # Notebooks train in processes of their own. An error holds tensors until it is gone.
            release_memory()
        return dataclasses.replace(outcome, seconds=time.perf_counter() - start)

    return run


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@_task
def _run_stage(stage: SharedStage, place: _Place) -> _Outcome:
    name, arguments = stage.call
    Run(stage.params, default_store()).artifact(name, **arguments)
    return _Outcome("done")


@_task
def _run_cell(cell: Cell, place: _Place) -> _Outcome:
    parameters = cell.params.model_dump(mode="json")
    # Executed aside and moved when over, so a notebook under its final name is never half written.
    with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=place.folder) as aside:
        for _ in range(place.retries + 1):
            outcome = _execute(Path(aside), parameters, place.kernel)
            if outcome.kind != "died":
                break
        else:
            times = "once" if place.retries == 0 else f"{place.retries + 1} times"
            message = f"its kernel died {times}, probably out of memory: use fewer workers"
            outcome = _Outcome("died", message)
        written = Path(aside) / f"{NOTEBOOK}.ipynb"
        if written.exists():
            os.replace(written, _kept(place.folder, cell))
    if outcome.kind != "done":
        return outcome
    row = _row(Run(cell.params, Store(place.root, look=True)), cell)
    if row is None:
        return _Outcome("failed", "the notebook ended without a result in the store")
    return _Outcome("done", row=row)


def _execute(aside: Path, parameters: Mapping[str, Any], kernel: str | None) -> _Outcome:
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the outcome says it all
    try:
        execute(NOTEBOOK, aside, parameters, kernel=kernel)
    except KernelDied:
        return _Outcome("died")
    except ElfsError as error:
        cause = error.__cause__
        if not isinstance(cause, papermill.PapermillExecutionError):
            raise
        message = f"cell {cause.cell_index}: {cause.ename}: {cause.evalue}"
        return _Outcome("failed", message)
    return _Outcome("done")


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
    say: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Run what is left of a sweep and return its results table.

    Failed notebooks do not stop it: ask :func:`failures` about them afterwards. It can be killed at
    any time; the next call goes on from what is in the store.

    Args:
        store: Of the artifacts. On a cluster its folder must be one that all workers see.
        scheduler: Address of a running Dask scheduler. None: SLURM if the sweep says so, else
            workers on this machine.
        client: A Dask client to use instead of any of these.
        workers: Notebooks at a time on this machine, instead of the sweep's number.
        retry_failed: Run the failed notebooks again.
        kernel: Name of a Jupyter kernel; None for the one that the notebook names.
        say: Where lines of progress go; None: a table on a terminal, lines elsewhere.

    Raises:
        ElfsError: if the parameters do not fit the data, the same sweep is running already, or
            the scheduler cannot be reached or goes away.
    """
    store = store or default_store()
    _check(sweep, store)
    folder = notebooks_folder(sweep, store)
    with _alone(sweep, folder):
        todo = plan(sweep, store, retry_failed=retry_failed)
        progress = _Progress(sweep, todo, say)
        record = _Record(sweep, store, todo)
        record.write()
        progress.say(describe(sweep, todo))
        if not todo.waiting:
            return record.table()
        on_this_machine = not (scheduler or client or sweep.slurm)
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
def _alone(sweep: Sweep, folder: Path) -> Iterator[None]:
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
    client: Client, todo: Plan, place: _Place, progress: _Progress
) -> Iterator[tuple[SharedStage | Cell, _Outcome]]:
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
            elif name in left:  # the news that it started may come last
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


def _outcome(future: Future) -> _Outcome:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except KilledWorker:
        return _Outcome("died", "its worker died each time: use fewer workers, or more memory")
    except FutureCancelledError:
        raise ElfsError(
            "The Dask scheduler went away: start it again and repeat the command, which goes on "
            "from what is done."
        ) from None
    except Exception as error:  # for example a worker without this package
        return _Outcome("failed", _name(error))


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
        return _table([self._rows.get(name) for name in self._order])

    def add(self, cell: Cell, outcome: _Outcome) -> None:
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
                _params_key(cell),
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


# ---------------------------------------------------------------------- what people see


def describe(sweep: Sweep, todo: Plan) -> str:
    """One sentence on what is done and what is left."""
    total = len(cells(sweep))
    parts = [f"{total} notebooks", f"{len(todo.rows)} results there", f"{len(todo.waiting)} to run"]
    if todo.stages:
        parts.append(f"after {len(todo.stages)} shared stages")
    if todo.failed:
        parts.append(f"{len(todo.failed)} failed earlier (--retry-failed runs them again)")
    return f"Sweep {sweep.name}: {', '.join(parts)}."


class _Progress:
    """A table on a terminal, a line for each thing that ends elsewhere."""

    def __init__(self, sweep: Sweep, todo: Plan, say: Callable[[str], None] | None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False, markup=False)
        self._live = None
        if say is None and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            say = self._console.print
        self.say = say or functools.partial(print, flush=True)
        self._total = Counter(cell.dataset for cell in cells(sweep))
        names = {cell.name: cell.dataset for cell in cells(sweep)}
        waiting = {cell.name for cell in todo.waiting}
        self._failed = Counter(names[name] for name in todo.failed)
        self._done = Counter(names[n] for n in todo.rows if n not in waiting | todo.failed.keys())
        self._running: dict[str, tuple[SharedStage | Cell, float]] = {}
        self._ends: deque[float] = deque(maxlen=20)

    def __enter__(self) -> _Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self.refresh()
            self._live.stop()

    def started(self, item: SharedStage | Cell) -> None:
        self._running[item.name] = (item, time.monotonic())
        if isinstance(item, Cell) and not self._ends:
            self._ends.append(time.monotonic())  # the estimate counts from the first notebook
        self.refresh()

    def finished(self, item: SharedStage | Cell, outcome: _Outcome) -> None:
        self._running.pop(item.name, None)
        if isinstance(item, Cell):
            self._ends.append(time.monotonic())
            (self._done if outcome.kind == "done" else self._failed)[item.dataset] += 1
        text = f"{outcome.kind} {item.title}"
        if outcome.row:
            text += f": {outcome.row['accuracy']:.2f}%"
        if outcome.message:
            text += f": {outcome.message}"
        self.say(f"{self._count()} {text} ({outcome.seconds:.0f} s){self._left()}")
        self.refresh()

    def refresh(self) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _count(self) -> str:
        return f"[{self._done.total() + self._failed.total()}/{self._total.total()}]"

    def _left(self) -> str:
        waiting = self._total.total() - self._done.total() - self._failed.total()
        if len(self._ends) < 3 or not waiting:
            return ""
        pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return f", about {timedelta(seconds=round(pace * waiting))} left"

    def _table(self) -> Any:
        from rich.table import Table

        now = time.monotonic()
        running = [f"{item.title} ({now - start:.0f} s)" for item, start in self._running.values()]
        caption = "\n".join(["running: " + "; ".join(running)] if running else [])
        table = Table("dataset", caption=caption + self._left(), caption_justify="left")
        for column in ("done", "running", "failed", "waiting", "all"):
            table.add_column(column, justify="right")
        busy = Counter(i.dataset for i, _ in self._running.values() if isinstance(i, Cell))
        for dataset, total in self._total.items():
            done, failed = self._done[dataset], self._failed[dataset]
            numbers = (done, busy[dataset], failed, total - done - failed - busy[dataset], total)
            table.add_row(dataset, *map(str, numbers))
        return table
