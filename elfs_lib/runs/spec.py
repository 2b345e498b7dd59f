"""What a sweep is: its YAML, its pipelines and their cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from elfs_lib.bounds import STRICT
from elfs_lib.errors import ElfsError, choose, first_fault, is_whole
from elfs_lib.params import ListOf, Params, Seed, Share, read_yaml
from elfs_lib.project import project_root

_GRID_KEYS = ("methods", "budgets", "eval_seeds")


# ---------------------------------------------------------------------- what to run


class _SweepFile(BaseModel):
    """The YAML of a sweep."""

    model_config = ConfigDict(extra="forbid", frozen=True, **STRICT)

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
        workers: Trainings at a time on this machine; None: see :func:`local_workers`.
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
    """One training of a sweep: a method at a budget with a seed on a dataset."""

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
    for name in (*_GRID_KEYS, "seed") if file.whole_pipelines else _GRID_KEYS:
        if name in file.overrides:
            key = "seeds" if name == "seed" else name.removeprefix("eval_")
            raise ElfsError(f"{path} overrides {name!r}: give {key!r} of the sweep instead.")
    if file.slurm is not None and not is_whole(file.slurm.get("jobs"), 1):
        raise ElfsError(f"Sweep key 'slurm' in {path} needs 'jobs', the number of jobs to submit.")
    if file.slurm is not None and file.workers is not None:
        raise ElfsError(f"{path} gives 'workers', of this machine, and 'slurm': keep one of them.")
    grid = dict(zip(_GRID_KEYS, (file.methods, file.budgets, file.seeds), strict=True))
    datasets = tuple(Params.load(_locate(name), {**file.overrides, **grid}) for name in file.params)
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
