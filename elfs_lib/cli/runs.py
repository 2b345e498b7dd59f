"""Commands for whole runs and sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elfs_lib.cli.shared import Overrides, ParamsFile, app, parse_overrides
from elfs_lib.errors import ElfsError


@app.command()
def run(
    params_file: ParamsFile,
    p: Overrides = None,
    notebooks: Annotated[bool, typer.Option(help="Execute the notebooks afterwards")] = True,
    kernel: Annotated[
        str | None, typer.Option("--kernel", "-k", help="Jupyter kernel of the notebooks")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Render the book afterwards")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Run the whole pipeline: stages with progress, then the notebooks into `book/runs/`.

    Finished stages are found and not run again, so a run that was killed resumes where it stopped.

    Examples:

        elfs run params/digits.yaml --render

        elfs run params/cifar10.yaml -p seed=1 -p device=cuda --no-notebooks
    """
    from elfs_lib.params import Params
    from elfs_lib.project import default_store
    from elfs_lib.results import coreset_lists
    from elfs_lib.results import tables as results
    from elfs_lib.runs import pipeline
    from elfs_lib.stages.run import Run

    current = Run(Params.load(params_file, parse_overrides(p)), default_store(repair=repair))
    current.check()
    pages = pipeline.notebooks_of(current) if notebooks else []
    pipeline.check_notebooks([*pages, *pipeline.SUMMARIES * render], kernel)
    pipeline.run_stages(current, say=lambda text: print(text, flush=True))
    if notebooks:
        target = results.runs_folder(params_file)
        if current.can_evaluate:
            results.write_results(current.results(), current.params, target / "results.csv")
        coreset_lists.publish(current, target / "coresets")
        print(f"Executing {len(pages)} notebooks into {target}", flush=True)
        if len(pages) < len(pipeline.NOTEBOOKS):
            print("Left out, because they need labels: " + ", ".join(pipeline.LABELLED), flush=True)
        pipeline.run_notebooks(pages, current.params, target, kernel=kernel)
    if render:
        print(f"The book is built: open {pipeline.build_book(kernel=kernel)}")


@app.command()
def status(params_file: ParamsFile, p: Overrides = None) -> None:
    """Show which stages of a run are done and which are left.

    Example:

        elfs status params/cifar10.yaml
    """
    from elfs_lib.artifacts import NotBuilt
    from elfs_lib.params import Params
    from elfs_lib.project import default_store
    from elfs_lib.stages.run import Run

    current = Run(Params.load(params_file, parse_overrides(p)), default_store(look=True))
    done = 0
    try:
        plan = current.plan()
    except NotBuilt:
        print(
            f"The images of this run are not in {current.store.root}: nothing was run, or files "
            f"were touched or copied since. `elfs run {params_file}` reads them again and keeps "
            "every stage that still holds."
        )
        return
    for call in plan:
        try:
            call.make()
        except NotBuilt:
            print(f"to do  {call.title}")
        else:
            done += 1
            print(f"done   {call.title}")
    print(f"{done} of {len(plan)} stages are done in {current.store.root}")


@app.command()
def sweep(
    sweep_file: Annotated[
        Path, typer.Argument(help="YAML of a sweep, e.g. params/sweeps/digits.yaml")
    ],
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=1, help="Trainings at a time, on this machine"),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the failed trainings again")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would run")] = False,
    kernel: Annotated[
        str | None, typer.Option("--kernel", "-k", help="Jupyter kernel of the notebooks")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
    notebooks: Annotated[
        bool,
        typer.Option(help="Keep a notebook of each training; without, none waits for a kernel"),
    ] = True,
    book: Annotated[
        bool,
        typer.Option("--book", help="Also show the rows that exist on the book's results page"),
    ] = False,
) -> None:
    """Run datasets x methods x budgets x seeds, each a papermill run of notebook 06, on Dask.

    Finished trainings are not run again, so an interrupted sweep resumes. The results table grows
    row by row in `results/<name>.parquet` of the artifacts folder. Exit code 1: some failed.

    Examples:

        elfs sweep params/sweeps/digits.yaml --dry-run

        elfs sweep params/sweeps/cifar10.yaml --workers 4

        elfs sweep params/sweeps/cifar10.yaml --scheduler tcp://10.0.0.1:8786 --retry-failed

        elfs sweep params/sweeps/cifar10.yaml --dry-run --book

        elfs sweep params/sweeps/cifar10_pipelines.yaml --workers 8 --no-notebooks
    """
    from elfs_lib.project import default_store
    from elfs_lib.runs import sweep as sweeps
    from elfs_lib.runs.planning import write_tables
    from elfs_lib.runs.spec import load_sweep

    if scheduler == "":
        raise ElfsError("--scheduler is empty: give an address such as tcp://10.0.0.1:8786.")
    grid, store = load_sweep(sweep_file), default_store(repair=repair)
    if kernel and not notebooks:
        raise ElfsError("--kernel is for notebooks: leave it or --no-notebooks out.")
    if workers and (scheduler or grid.slurm):
        raise ElfsError(
            "--workers is for this machine, not for a scheduler or SLURM: leave it out."
        )
    if dry_run:
        plan = sweeps.plan(grid, store, retry_failed=retry_failed)
        for item in (*plan.stages, *plan.waiting):
            print(f"would run  {item.title}")
        print(sweeps.describe(grid, plan))
    else:
        sweeps.run_sweep(
            grid,
            store,
            scheduler=scheduler,
            workers=workers,
            retry_failed=retry_failed,
            kernel=kernel,
            notebooks=notebooks,
        )
        print(f"Results: {sweeps.results_file(grid, store)}")
    if book:
        for table in write_tables(grid, f"elfs sweep {sweep_file}", store):
            print(f"For the book: {table}")
    failed = [] if dry_run else sweeps.failures(grid, store)
    for failure in failed:
        kept = f" (kept as {failure.notebook})" if failure.notebook else ""
        print(f"{failure.kind}: {failure.title}: {failure.message}{kept}")
    if failed:
        print(f"{len(failed)} trainings failed; --retry-failed runs them again.")
        raise typer.Exit(1)


@app.command()
def verify() -> None:
    """Check every artifact against its checksums.

    Example:

        elfs verify
    """
    from elfs_lib.project import default_store

    store = default_store()
    problems = store.damaged()
    for problem in problems:
        print(problem)
    if problems:
        raise ElfsError(f"{len(problems)} damaged artifacts in {store.root}.")
    if not store.artifacts():
        raise ElfsError(f"There is no artifact in {store.root}: see ELFS_ARTIFACTS_DIR.")
    print(f"All {len(store.artifacts())} artifacts in {store.root} are whole.")
