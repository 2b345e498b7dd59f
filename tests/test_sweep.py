"""Sweeps: what they expand to, what they skip, and what they survive, with real kernels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil
import pytest
import torch
import yaml
from conftest import ROOT, TINY
from typer.testing import CliRunner

from elfs_lib.artifacts import Store
from elfs_lib.cli.shared import app
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.results.provenance import WHOLE_PIPELINES
from elfs_lib.runs import sweep as sweeps
from elfs_lib.runs import workers as sweep_workers
from elfs_lib.runs.planning import collect
from elfs_lib.runs.spec import load_sweep
from elfs_lib.stages import Run

PARAMS = {name: list(v) if isinstance(v, tuple) else v for name, v in TINY.items()}
GRID = {
    "params": ["tiny.yaml"],
    "methods": ["random", "elfs", "ccs"],
    "budgets": [0.3, 0.1],
    "seeds": [0, 1],
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of its own, as the current one, with one params file and one sweep."""
    (tmp_path / "_toc.yml").touch()
    write(tmp_path / "tiny.yaml", PARAMS)
    write(tmp_path / "grid.yaml", GRID)
    monkeypatch.chdir(tmp_path)
    # The tasks of a sweep set these in their process, which may be this one.
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    monkeypatch.setenv("ELFS_PROGRESS", "0")
    monkeypatch.setenv("ELFS_REPAIR", "0")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    return tmp_path


@pytest.fixture
def client() -> Iterator[object]:
    """Dask inside this process: quick to start, and kernels are real all the same."""
    from distributed import Client

    with Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as inside:
        yield inside


def write(path: Path, values: dict) -> None:
    path.write_text(yaml.safe_dump(values))


def grid(project: Path, **changes: object) -> sweeps.Sweep:
    write(project / "grid.yaml", GRID | changes)
    return load_sweep(project / "grid.yaml")


def notebook(project: Path, source: str) -> None:
    """Put a notebook in the place of notebook 06."""
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell("methods = []", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(source),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    page = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    (project / "notebooks").mkdir()
    nbformat.write(page, project / "notebooks" / f"{sweeps.NOTEBOOK}.ipynb")


def started(project: Path) -> list[str]:
    log = project / "log.txt"
    return log.read_text().split() if log.exists() else []


# ---------------------------------------------------------------------- expansion and checks


def test_cells_come_budget_by_budget_then_seed_by_seed(project: Path):
    cells = sweeps.cells(grid(project, overrides={"eval_steps": 7}))
    assert len(cells) == 2 * 2 * 3
    assert [(c.budget, c.seed, c.method) for c in cells[:4]] == [
        (0.3, 0, "random"),
        (0.3, 0, "elfs"),
        (0.3, 0, "ccs"),
        (0.3, 1, "random"),
    ]
    first = cells[0].params
    assert (first.methods, first.budgets, first.eval_seeds) == (("random",), (0.3,), (0,))
    assert first.eval_steps == 7 and first.encoder == "pixels"
    assert len({cell.name for cell in cells}) == len(cells)


def test_each_seed_of_whole_pipelines_is_a_pipeline(project: Path):
    sweep = grid(project, whole_pipelines=True, seeds=[0, 4])
    cells = sweeps.cells(sweep)
    assert [(c.budget, c.seed, c.method) for c in cells] == [
        (c.budget, c.seed, c.method) for c in sweeps.cells(grid(project, seeds=[0, 4]))
    ]
    assert all((c.params.seed, c.params.eval_seeds) == (c.seed, (c.seed,)) for c in cells)
    assert {c.params.seed for c in sweeps.cells(grid(project, seeds=[0, 4]))} == {0}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"budgets": [True]}, "'budgets'.*True.*number"),
        ({"budgets": ["0.1"]}, "'budgets'.*'0.1'.*number"),
        ({"budgets": [float("nan")]}, "'budgets'.*nan.*finite"),
        ({"seeds": [-1]}, "'seeds'.*-1.*greater"),
        ({"seeds": None}, "'seeds'.*None.*list"),
        ({"workers": "2"}, "'workers'.*'2'.*integer"),
        ({"slurm": {"jobs": True}}, "'slurm'.*'jobs'"),
        ({"slurm": {"jobs": 1}, "workers": 2}, "'workers'.*'slurm'.*keep one"),
        ({"method": ["elfs"]}, "Unknown sweep key 'method': did you mean 'methods'"),
        ({"methods": ["elf"]}, "Unknown method 'elf': did you mean 'elfs'"),
        ({"methods": []}, "'methods' must list at least one"),
        ({"methods": "elfs"}, "'methods'.*'elfs'.*list"),
        ({"budgets": [0.1, 0.1]}, "'budgets'.*none twice"),
        ({"budgets": [1.5]}, "budget.*1.5"),
        ({"budgets": ["many"]}, "'budgets'.*many"),
        ({"seeds": [0.5]}, "'seeds'.*0.5"),
        ({"params": []}, "'params'.*at least 1"),
        ({"params": ["absent.yaml"]}, "absent.yaml.*check the path"),
        ({"params": ["tiny.yaml", "tiny.yaml"]}, "'digits' twice"),
        ({"overrides": {"eval_stepz": 3}}, "'eval_stepz': did you mean 'eval_steps'"),
        ({"overrides": {"budgets": [0.2]}}, "overrides 'budgets': give 'budgets' of the sweep"),
        ({"overrides": {"eval_seeds": [0]}}, "give 'seeds' of the sweep"),
        ({"whole_pipelines": True, "overrides": {"seed": 3}}, "'seed': give 'seeds' of the sweep"),
        ({"whole_pipelines": 1}, "'whole_pipelines'.*1.*boolean"),
        ({"workers": 0}, "'workers'.*0.*greater"),
        ({"retries": -1}, "'retries'.*-1"),
        ({"slurm": {"queue": "gpu"}}, "'slurm'.*'jobs'"),
    ],
)
def test_a_wrong_sweep_is_one_sentence(project: Path, changes: dict, words: str):
    with pytest.raises(ElfsError, match=words) as caught:
        grid(project, **changes)
    assert "\n" not in str(caught.value)
    assert not (project / "artifacts").exists()


def test_a_missing_key_is_named(project: Path):
    write(project / "grid.yaml", {k: v for k, v in GRID.items() if k != "seeds"})
    with pytest.raises(ElfsError, match="lacks 'seeds'"):
        load_sweep(project / "grid.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "params" / "sweeps").glob("*.yaml")))
def test_the_sweeps_that_ship_are_valid(file: Path, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")  # paths are looked for in the project, too
    assert sweeps.cells(load_sweep(file))


def test_budgets_that_do_not_fit_the_data_are_refused_before_work(project: Path):
    for budgets, words in ([[0.1, 144], "same number"], [[5000], "5000"]):
        with pytest.raises(ElfsError, match=words):
            sweeps.run_sweep(grid(project, budgets=budgets), Store(project / "artifacts"))
    assert not (project / "artifacts" / "results").exists()


# ---------------------------------------------------------------------- what is left


def test_shared_stages_run_once_and_before_what_needs_them(project: Path):
    plan = sweeps.plan(grid(project, budgets=[0.1]), Store(project / "artifacts"))
    assert [stage.name.removeprefix("digits_") for stage in plan.stages] == [
        "images",
        "embeddings",
        "neighbors",
        "temi",
        "consensus",
        "pseudo",
        "proxy_0",
        "search_0.1_aum",
        "coreset_elfs_0.1",  # both seeds train on it
        "pseudo_quality",
        "true_proxy",
    ]
    known = set()
    for stage in plan.stages:
        assert known.issuperset(stage.needs)
        known.add(stage.name)
    needs = {name: [n.removeprefix("digits_") for n in all] for name, all in plan.needs.items()}
    assert needs["digits_random_0.1_seed0"] == ["images"]
    assert needs["digits_elfs_0.1_seed1"] == ["images", "coreset_elfs_0.1", "pseudo_quality"]
    assert needs["digits_ccs_0.1_seed0"] == ["images", "true_proxy"]
    assert not (project / "artifacts").exists()  # planning builds nothing


@pytest.mark.parametrize(
    "encoder, shared",
    [("pixels", ["images", "embeddings", "neighbors"]), ("self_supervised", ["images"])],
)
def test_whole_pipelines_share_what_no_seed_changes(project: Path, encoder: str, shared: list):
    changes = {"budgets": [0.1], "seeds": [0, 4], "overrides": {"encoder": encoder}}
    sweep = grid(project, **changes, whole_pipelines=True)
    plan = sweeps.plan(sweep, Store(project / "artifacts"))
    frozen = {f"digits_{name}" for name in shared}
    assert frozen == {stage.name for stage in plan.stages if "pipeline" not in stage.name}
    each = ["embeddings", "neighbors", "temi", "consensus", "pseudo", "proxy", "search"]
    each = {*each, "true_proxy", *["encoder"] * (encoder == "self_supervised")} - {*shared}
    for seed in (0, 4):
        own = {s.call[0] for s in plan.stages if s.params.seed == seed and s.name not in frozen}
        assert own == each
    of = {stage.name: stage.params.seed for stage in plan.stages}
    for stage in plan.stages:
        assert {of[name] for name in {*stage.needs} - frozen} <= {stage.params.seed}, stage.name
    for cell in plan.waiting:  # a coreset has one training, so it is not shared
        assert {of[name] for name in {*plan.needs[cell.name]} - frozen} <= {cell.seed}, cell.name
        assert cell.method == "random" or {*plan.needs[cell.name]} - frozen
    assert not any(stage.call[0] == "coreset" for stage in plan.stages)


def test_a_row_of_whole_pipelines_is_of_its_own_pipeline(project: Path):
    store = Store(project / "artifacts")
    method = {"methods": ["moderate"], "budgets": [0.1], "seeds": [0, 1]}
    usual, whole = grid(project, **method), grid(project, **method, whole_pipelines=True)
    Run(usual.pipelines[0], store).evaluate("moderate", 0.1, 1)
    assert collect(usual, store)["seed"].tolist() == [1]
    assert collect(whole, store).empty
    other = Run(whole.pipelines[1], store)
    other.evaluate("moderate", 0.1, 1)
    [row] = collect(whole, store).to_dict("records")
    assert row["accuracy"] == other.result_row("moderate", 0.1, 1)["accuracy"]

    result = CliRunner().invoke(app, ["sweep", "grid.yaml", "--dry-run", "--book"])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(project / "book" / "runs" / "digits" / "results_grid.csv")
    [setting] = table["setting"]
    assert setting.startswith(WHOLE_PIPELINES) and ", seed=" not in setting


def test_rows_come_before_the_stages_of_later_rows(project: Path):
    sweep = grid(project, seeds=[0, 4], whole_pipelines=True)
    plan = sweeps.plan(sweep, Store(project / "artifacts"))
    urgency = sweeps._urgency(plan)
    assert urgency.keys() == {item.name for item in (*plan.stages, *plan.waiting)}
    in_turn = [urgency[cell.name] for cell in plan.waiting]
    assert in_turn == sorted(in_turn, reverse=True)
    for cell in plan.waiting:  # whatever a row waits for is more urgent than the row
        assert all(urgency[name] > urgency[cell.name] for name in plan.needs[cell.name])
    by_name = {stage.name: stage for stage in plan.stages}
    for stage in plan.stages:
        assert all(urgency[name] >= urgency[stage.name] for name in stage.needs)
    # The first pipeline's rows at the first budget come before anything of the second's.
    first = urgency["digits_elfs_0.3_seed0"]
    assert all(urgency[n] < first for n, s in by_name.items() if s.params.seed == 4)
    assert urgency["digits_pipeline0_search_0.1_aum"] < urgency["digits_elfs_0.3_seed4"]


def test_every_method_finds_the_stages_that_it_needs(project: Path, tiny_run: Run):
    """With the planned stages there, selecting runs no further stage."""
    from elfs_lib.selection import METHODS

    names = list(METHODS)
    sweep = grid(project, methods=names, budgets=[0.1], seeds=[0])
    planned = sweeps.plan(sweep, Store(project / "nothing"))
    by_name = {stage.name: stage for stage in planned.stages}

    def upstream(names: tuple[str, ...]) -> set[str]:
        return set(names).union(*(upstream(by_name[name].needs) for name in names))

    built: list[str] = []

    class Recorder(Store):
        def run(self, stage, *args, **kwargs):
            built.append(stage)
            return super().run(stage, *args, **kwargs)

    for name in names:
        built.clear()
        Run(tiny_run.params, Recorder(tiny_run.store.root)).coreset(name, 0.1, 0)
        there = upstream(planned.needs[f"digits_{name}_0.1_seed0"])
        assert {by_name[stage].call[0] for stage in there} >= {*built} - {"coreset"}, name


def test_what_is_done_is_skipped_and_collected(project: Path):
    store = Store(project / "artifacts")
    sweep = grid(project, methods=["random"], budgets=[0.1])
    assert collect(sweep, store).empty
    run = Run(sweep.pipelines[0], store)
    first = run.result_row("random", 0.1, 0)
    expected = pd.DataFrame([first])
    expected = expected.astype({"hard_prune_ratio": float, "pseudo_label_accuracy": float})
    pd.testing.assert_frame_equal(collect(sweep, store), expected)
    assert [c.seed for c in sweeps.plan(sweep, store).waiting] == [1]
    run.evaluate("random", 0.1, 1)

    lines: list[str] = []
    table = sweeps.run_sweep(sweep, store, say=lines.append)  # no notebook 06 is even there
    assert table["seed"].tolist() == [0, 1]
    assert lines == ["Sweep grid: 2 trainings, 2 results there, 0 to run."]
    pd.testing.assert_frame_equal(pd.read_parquet(sweeps.results_file(sweep, store)), table)


def test_rows_that_exist_go_to_the_book(project: Path):
    store = Store(project / "artifacts")
    Run(grid(project).pipelines[0], store).evaluate("random", 0.1, 1)
    result = CliRunner().invoke(app, ["sweep", "grid.yaml", "--dry-run", "--book"])
    assert result.exit_code == 0 and "results_grid.csv" in result.output
    table = pd.read_csv(project / "book" / "runs" / "digits" / "results_grid.csv")
    assert table[["method", "count", "seed"]].values.tolist() == [["random", 144, 1]]
    assert table["command"].tolist() == ["elfs sweep grid.yaml"]


def test_one_sweep_does_not_run_twice_at_a_time(project: Path):
    import filelock

    store, sweep = Store(project / "artifacts"), grid(project)
    folder = sweeps.notebooks_folder(sweep, store)
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"), pytest.raises(ElfsError, match="running already"):
        sweeps.run_sweep(sweep, store)


def test_results_of_a_sweep_are_no_damaged_artifacts(project: Path):
    store, sweep = Store(project / "artifacts"), grid(project)
    sweeps.notebooks_folder(sweep, store).mkdir(parents=True)
    (sweeps.notebooks_folder(sweep, store) / f"{sweeps._ASIDE}x").mkdir()
    assert store.damaged() == [] and store.artifacts() == []


# ---------------------------------------------------------------------- workers


def test_a_numbered_gpu_is_refused_by_workers_that_see_one(project: Path):
    with pytest.raises(ElfsError, match="none has device 'cuda:1': use 'cuda'"):
        sweep_workers._gpus(grid(project, overrides={"device": "cuda:1"}))
    sweep_workers._gpus(grid(project, overrides={"device": "cuda:0"}))


def test_workers_divide_cores_and_gpus(monkeypatch):
    gib = 2**30
    assert sweep_workers.local_workers(cores=2, gpus=0, memory=16 * gib) == 2
    assert sweep_workers.local_workers(cores=64, gpus=0, memory=256 * gib) == 16
    assert sweep_workers.local_workers(cores=64, gpus=0, memory=5 * gib) == 2
    assert sweep_workers.local_workers(cores=1, gpus=0, memory=gib) == 1
    assert sweep_workers.local_workers(cores=64, gpus=8, memory=256 * gib) == 8

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    each = sweep_workers.worker_environments(3, cores=8, gpus=["4", "5"])
    assert [e["OMP_NUM_THREADS"] for e in each] == ["2", "2", "2"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in each] == ["4", "5", "4"]
    assert "CUDA_VISIBLE_DEVICES" not in sweep_workers.worker_environments(1, cores=8, gpus=[])[0]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the user's word counts
    assert sweep_workers.worker_environments(1, cores=8, gpus=[])[0]["OMP_NUM_THREADS"] == "1"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes SLURM's two commands; by default jobs run on this machine at once."""
    pytest.importorskip("dask_jobqueue")
    bin = tmp_path / "bin"
    bin.mkdir()
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")

    def install(sbatch: str = SBATCH) -> None:
        for name, script in (("sbatch", sbatch), ("scancel", "kill -- -$1\n")):
            (bin / name).write_text(f"#!/bin/sh\n{script}")
            (bin / name).chmod(0o755)

    return install


SBATCH = """
cp "$1" "$0.$$"  # the caller deletes it
setsid sh "$0.$$" > "$0.log" 2>&1 &
echo "Submitted batch job $!"
"""


def test_slurm_jobs_run_one_notebook_at_a_time(slurm):
    slurm()
    options = dict(load_sweep(ROOT / "params" / "sweeps" / "slurm.yaml").slurm)
    with sweep_workers._slurm_cluster(options | {"jobs": 0}) as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH -p gpu", "--gres=gpu:1", "--cpus-per-task=8", "--nthreads 1"):
        assert line in script


def test_slurm_that_takes_no_job_is_one_sentence(slurm, monkeypatch):
    options = {"jobs": 1, "cores": 1, "memory": "1GB"}
    slurm("echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    with pytest.raises(ElfsError, match=r"rejected the job \(.*partition.*\): fix") as caught:
        with sweep_workers._slurm_cluster(options):
            pass
    assert "\n" not in str(caught.value)
    with pytest.raises(ElfsError, match="refuses.*quue") as caught:
        with sweep_workers._slurm_cluster(options | {"quue": "gpu"}):
            pass
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ElfsError, match="no 'sbatch' here"), sweep_workers._slurm_cluster(options):
        pass


@pytest.mark.slow
def test_a_sweep_on_slurm(project: Path, slurm):
    """The whole way over SLURM's commands, which here start the job on this machine."""
    slurm()
    notebook(project, COPYING)
    local = {"host": "127.0.0.1", "dashboard_address": ":0"}
    job = {"cores": 1, "memory": "1GB", "walltime": "0:10:00", "scheduler_options": local}
    sweep = grid(project, methods=["random"], budgets=[0.1], seeds=[0], slurm={"jobs": 1, **job})
    Run(sweep.pipelines[0], Store(project / "results_of_0")).evaluate("random", 0.1, 0)
    table = sweeps.run_sweep(sweep, Store(project / "artifacts"), say=print)
    assert table["seed"].tolist() == [0] and started(project) == ["0"]


def test_a_scheduler_that_is_not_there_is_one_sentence(project: Path, monkeypatch):
    import distributed

    notebook(project, "")

    class Absent:
        def __init__(self, *args, **kwargs):
            raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed, "Client", Absent)
    with pytest.raises(ElfsError, match="No Dask scheduler answers at 'tcp://x:1'"):
        sweeps.run_sweep(grid(project), Store(project / "artifacts"), scheduler="tcp://x:1")


def test_a_scheduler_that_goes_away_is_no_failure_of_a_notebook():
    from distributed.client import FutureCancelledError

    class Lost:
        def result(self):
            raise FutureCancelledError("notebook", "scheduler-connection-lost")

    with pytest.raises(ElfsError, match="scheduler went away: start it again"):
        sweeps._outcome(Lost())


def test_the_table_counts_done_running_failed_and_estimates_what_is_left(project: Path):
    from rich.console import Console

    sweep = grid(project, methods=["random"], budgets=[0.1], seeds=[0, 1, 2, 3])
    progress = sweeps.SweepProgress(sweep, sweeps.plan(sweep, Store(project / "artifacts")), print)
    done, failed, running, _ = sweeps.cells(sweep)
    for cell in (done, failed, running):
        progress.started(cell)
    progress.finished(done, sweeps.Outcome("done", row={"accuracy": 50.0}))
    progress.finished(failed, sweeps.Outcome("failed", "cell 2: ValueError: boom"))
    console = Console(width=200)
    with console.capture() as capture:
        console.print(progress.table())
    text = capture.get()
    numbers = next(line for line in text.splitlines() if "digits" in line)
    assert [int(n) for n in numbers.split() if n.isdigit()] == [1, 1, 1, 1, 4]
    assert "running: digits, random, 10%, seed 2 (0 s), about 0:00:00 left" in " ".join(
        text.split()
    )


# ---------------------------------------------------------------------- the command


def test_dry_run_prints_and_builds_nothing(project: Path):
    result = CliRunner().invoke(app, ["sweep", "grid.yaml", "--dry-run"])
    assert result.exit_code == 0
    assert "would run  digits, TEMI clustering\n" in result.output
    assert "would run  digits, elfs, 30%, seed 1\n" in result.output
    assert "12 trainings, 0 results there, 12 to run" in result.output
    assert not (project / "artifacts").exists()


# ---------------------------------------------------------------------- notebook 06 itself


@pytest.mark.parametrize("method", ["random", "ccs"])
def test_notebook_06_runs_for_one_cell(tiny_run: Run, monkeypatch, method: str):
    change = {"methods": (method,), "budgets": (0.1,), "eval_seeds": (0,)}
    space = run_page(sweeps.NOTEBOOK, tiny_run, change, monkeypatch)
    assert len(space["results"]) == 1 and space["paired"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"methods": ("random",), "budgets": (0.1,)},
        {"methods": ("elfs", "ccs_pseudo"), "budgets": (1, 144)},
        {"budgets": (0.1,), "hard_prune_ratio": 0.25, "hindsight_seeds": (0,)},
        {"budgets": (0.1,), "hard_prune_ratios": (0.9,), "hindsight_seeds": (0,)},
    ],
)
def test_notebook_07_runs_for_any_grid(tiny_run: Run, monkeypatch, change: dict):
    run_page("07_comparison", tiny_run, change | {"eval_seeds": (0,)}, monkeypatch)


def run_page(name: str, tiny_run: Run, change: dict, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the cells of a notebook leave with other parameters; no kernel is started."""
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tiny_run.store.root))
    page = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    space = tiny_run.params.model_copy(update=change).model_dump()
    for cell in page.cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            exec(compile(cell.source, cell.id, "exec"), space)  # our own file
    return space


# ---------------------------------------------------------------------- failures and kills

FAILING = """
import os, pathlib, shutil
with open("log.txt", "a") as file:
    file.write(methods[0] + "\\n")
mended = pathlib.Path("mended").exists()
if methods == ["ccs"]:
    os._exit(9)
if methods == ["elfs"] and not mended:
    raise ValueError("boom")
shutil.copytree(f"results_of_{methods[0]}", os.environ["ELFS_ARTIFACTS_DIR"], dirs_exist_ok=True)
"""


@pytest.mark.slow
def test_repair_reaches_stages_and_notebooks(project: Path, client):
    store = Store(project / "artifacts")
    sweep = grid(project, methods=["moderate"], budgets=[0.1], seeds=[0])
    run = Run(sweep.pipelines[0], store)
    expected = with_one_thread(lambda: run.result_row("moderate", 0.1, 0))["accuracy"]
    for damaged in (run.neighbors, run.evaluate("moderate", 0.1, 0)):
        file = next(path for path in damaged.folder.iterdir() if path.suffix in (".npy", ".json"))
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ElfsError, match="--repair"):
        sweeps.run_sweep(sweep, Store(store.root), client=client, say=print)
    notebook(project, "from elfs_lib.stages.run import Run; Run.from_notebook(globals()).results()")
    table = sweeps.run_sweep(sweep, Store(store.root, repair=True), client=client, say=print)
    assert table["accuracy"].tolist() == [expected] and not sweeps.failures(sweep, store)
    assert Store(store.root).damaged() == []


@pytest.mark.slow
def test_failures_are_kept_reported_and_retried_on_request(project: Path, client):
    notebook(project, FAILING)  # finishes by copying results made here, to save time
    sweep = grid(project, budgets=[0.1], seeds=[0])
    for method in ("random", "elfs"):
        run = Run(sweep.pipelines[0], Store(project / f"results_of_{method}"))
        run.evaluate(method, 0.1, 0)
    store, lines = Store(project / "artifacts"), []

    table = sweeps.run_sweep(sweep, store, client=client, say=lines.append)
    assert table["method"].tolist() == ["random"]  # the others did not stop it
    assert sorted(started(project)) == ["ccs", "ccs", "elfs", "random"]  # the dead one: twice
    failed, died = sweeps.failures(sweep, store)
    assert (failed.kind, failed.message) == ("failed", "cell 2: ValueError: boom")
    assert "boom" in Path(failed.notebook).read_text()
    assert died.kind == "died" and "died 2 times" in died.message
    assert not list(Path(failed.notebook).parent.glob(f"{sweeps._ASIDE}*"))
    assert any(line.startswith("[3/3]") for line in lines)

    result = CliRunner().invoke(app, ["sweep", "grid.yaml"])  # they stay failed, and are told
    assert result.exit_code == 1
    assert "failed: digits, elfs, 10%, seed 0: cell 2: ValueError: boom (kept as" in result.output
    assert len(started(project)) == 4

    (project / "mended").touch()
    table = sweeps.run_sweep(sweep, store, client=client, retry_failed=True, say=lines.append)
    assert table["method"].tolist() == ["random", "elfs"]
    assert sorted(started(project)[4:]) == ["ccs", "ccs", "elfs"]
    assert [failure.kind for failure in sweeps.failures(sweep, store)] == ["died"]

    changed = grid(project, budgets=[0.1], seeds=[0], overrides={"eval_steps": 5})
    assert sweeps.failures(changed, store) == []  # a failure belongs to its parameters


def test_without_notebooks_the_workers_train_with_the_same_results(project: Path, client):
    assert not (project / "notebooks").exists()  # nothing starts a kernel
    sweep = grid(project, methods=["random", "moderate"], budgets=[0.1], seeds=[0])
    store = Store(project / "artifacts")
    table = with_one_thread(
        lambda: sweeps.run_sweep(sweep, store, client=client, notebooks=False, say=print)
    )
    run = Run(sweep.pipelines[0], Store(project / "apart"))
    expected = with_one_thread(lambda: [run.result_row(m, 0.1, 0) for m in table["method"]])
    assert table["method"].tolist() == ["random", "moderate"]
    assert table["accuracy"].tolist() == [row["accuracy"] for row in expected]
    assert not list(sweeps.notebooks_folder(sweep, store).glob("*.ipynb"))
    assert not sweeps.failures(sweep, store)


def test_a_training_that_fails_without_notebooks_is_told(project: Path, client, monkeypatch):
    sweep = grid(project, methods=["random"], budgets=[0.1, 0.3], seeds=[0])
    made = Run.evaluate

    def fail(run, method, budget, seed):
        if budget == 0.1:
            raise ElfsError("The loss is not finite.")
        return made(run, method, budget, seed)

    monkeypatch.setattr(Run, "evaluate", fail)
    store = Store(project / "artifacts")
    table = sweeps.run_sweep(sweep, store, client=client, notebooks=False, say=print)
    assert table["budget"].round(1).tolist() == [0.3]
    (failure,) = sweeps.failures(sweep, store)
    assert failure.message == "The loss is not finite." and failure.notebook is None


def test_a_kernel_is_not_for_a_sweep_without_notebooks(project: Path):
    result = CliRunner().invoke(app, ["sweep", "grid.yaml", "-k", "python3", "--no-notebooks"])
    assert result.exit_code != 0 and "--kernel is for notebooks" in str(result.exception)


def test_a_failed_stage_blocks_only_what_needs_it(project: Path, client, monkeypatch):
    notebook(project, "")
    store = Store(project / "artifacts")
    sweep = grid(project, methods=["random", "elfs"], budgets=[0.1], seeds=[0])
    monkeypatch.setattr(sweeps, "_execute", lambda *args: sweeps.Outcome("done"))
    Run(sweep.pipelines[0], Store(project / "done")).evaluate("random", 0.1, 0)

    made = Run.artifact

    def fail(run, stage, **arguments):  # results are there
        if stage == "images":
            return made(run, stage)
        raise RuntimeError("no memory")

    _ = Run(sweep.pipelines[0], store).images
    plan = sweeps.plan(sweep, store)
    monkeypatch.setattr(sweeps, "plan", lambda *args, **kwargs: plan)
    monkeypatch.setattr(Run, "artifact", fail)
    shutil.copytree(project / "done", store.root, dirs_exist_ok=True)
    table = sweeps.run_sweep(sweep, store, client=client, say=lambda line: None)
    assert table["method"].tolist() == ["random"]
    (failure,) = sweeps.failures(sweep, store)
    assert failure.kind == "blocked" and failure.notebook is None
    assert failure.message == "its stage 'digits, embeddings' failed: RuntimeError: no memory"


TRAINING = """
with open("log.txt", "a") as file:
    file.write(methods[0] + "\\n")
from elfs_lib.stages import Run
Run.from_notebook(globals()).results()
"""


@pytest.mark.slow
def test_killed_worker_and_killed_sweep_change_nothing(project: Path, client):
    """SIGKILL to a Dask worker, then to the sweep; going on gives what an undisturbed run gives."""
    notebook(project, TRAINING)
    sweep = grid(project, methods=["random", "elfs"], budgets=[0.1], seeds=[0])
    store = Store(project / "artifacts")
    file = sweeps.results_file(sweep, store)

    command = [sys.executable, "-c", "from elfs_lib.cli.commands import main; main()"]
    with (project / "said.txt").open("w") as said:
        process = subprocess.Popen([*command, "sweep", "grid.yaml", "--workers", "1"], stdout=said)
    family = psutil.Process(process.pid)
    try:
        wait_for(lambda: started(project), process)
        link = re.search(r"Dask's dashboard: (http://\S+)", (project / "said.txt").read_text())[1]
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy
        with direct.open(link, timeout=60) as page:
            assert page.status == 200 and "Dask" in page.read().decode()
        (worker,) = (p for p in family.children() if "spawn_main" in " ".join(p.cmdline()))
        worker.kill()
        wait_for(lambda: len(pd.read_parquet(file)) == 1, process)  # readable at any time
        everyone = family.children(recursive=True)
    finally:
        process.kill()
        process.wait()
    _gone, alive = psutil.wait_procs(everyone, timeout=20)
    assert not alive, "workers or kernels outlive the sweep"

    before = pd.read_parquet(file)
    first = next((store.root / "evaluation").glob("[!.]*/manifest.json")).stat().st_mtime_ns
    table = with_one_thread(lambda: sweeps.run_sweep(sweep, store, client=client, say=print))
    manifests = list((store.root / "evaluation").glob("[!.]*/manifest.json"))
    assert len(manifests) == 2 and first in {path.stat().st_mtime_ns for path in manifests}
    pd.testing.assert_frame_equal(table[:1], before)
    assert started(project).count("random") == 2  # once under the killed worker, never again

    params = Params.make(PARAMS | {"methods": ["random", "elfs"], "budgets": [0.1]})
    undisturbed = Run(params.model_copy(update={"eval_seeds": (0,)}), Store(project / "other"))
    expected = with_one_thread(undisturbed.results).drop(columns="seconds")
    pd.testing.assert_frame_equal(
        table.drop(columns="seconds"), expected.astype({"hard_prune_ratio": float})
    )
    for method in ("random", "elfs"):
        here = Run(params, store).evaluate(method, 0.1, 0).array("predictions")
        there = undisturbed.evaluate(method, 0.1, 0).array("predictions")
        assert (here == there).all()


COPYING = """
import os, pathlib, shutil, time
with open("log.txt", "a") as file:
    file.write(f"{eval_seeds[0]}\\n")
while eval_seeds == [1] and not pathlib.Path("go").exists():
    time.sleep(0.1)
shutil.copytree(f"results_of_{eval_seeds[0]}", os.environ["ELFS_ARTIFACTS_DIR"], dirs_exist_ok=True)
"""


@pytest.mark.slow
def test_a_killed_scheduler_is_one_sentence_and_the_sweep_goes_on(project: Path):
    """A real scheduler and a real worker on --scheduler; SIGKILL to the scheduler, then again."""
    notebook(project, COPYING)
    sweep = grid(project, methods=["random"], budgets=[0.1], seeds=[0, 1])
    for seed in (0, 1):
        Run(sweep.pipelines[0], Store(project / f"results_of_{seed}")).evaluate("random", 0.1, seed)
    file = sweeps.results_file(sweep, Store(project / "artifacts"))
    command = [sys.executable, "-c", "from elfs_lib.cli.commands import main; main()"]
    command += ["sweep", "grid.yaml", "--scheduler"]

    with cluster(project / "first.json") as (scheduler, address):
        process = subprocess.Popen([*command, address], stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: started(project) == ["0", "1"] and len(pd.read_parquet(file)), process)
            scheduler.kill()
            error = process.communicate(timeout=600)[1]
        finally:
            process.kill()
    assert process.returncode == 2 and "scheduler went away: start it again" in error
    assert "Traceback" not in error

    (project / "go").touch()
    with cluster(project / "second.json") as (_, address):
        assert subprocess.run([*command, address], check=False).returncode == 0
    assert started(project) == ["0", "1", "1"]  # what was done is not run twice
    assert pd.read_parquet(file)["seed"].tolist() == [0, 1]


@contextmanager
def cluster(file: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A Dask scheduler and one worker as processes of their own: the scheduler, its address."""
    dask = [sys.executable, "-m", "dask"]
    common = ["--no-dashboard", "--scheduler-file", str(file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *common], **quiet
    )
    wait_for(lambda: file.exists() and file.read_text().rstrip().endswith("}"), scheduler)
    worker = subprocess.Popen([*dask, "worker", "--nthreads", "1", "--no-nanny", *common], **quiet)
    try:
        yield scheduler, json.loads(file.read_text())["address"]
    finally:
        kernels = psutil.Process(worker.pid).children(recursive=True)
        for process in (worker, scheduler, *kernels):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def wait_for(ready: Callable[[], object], process: subprocess.Popen, limit: float = 600) -> None:
    end = time.monotonic() + limit
    while not ready():
        assert process.poll() is None, "the sweep ended early"
        assert time.monotonic() < end, "the sweep takes too long"
        time.sleep(0.1)


def with_one_thread(work: Callable[[], Any]) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)
