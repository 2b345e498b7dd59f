"""The ``elfs`` command."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from elfs_lib.errors import ElfsError

app = typer.Typer(
    name="elfs",
    help="Label-free coreset selection: choose which images are worth a label.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ParamsFile = Annotated[Path, typer.Argument(help="YAML of parameters, e.g. params/digits.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Option("-p", help="Override a parameter: -p budget=0.2 (repeatable)")
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None:
    if debug:
        os.environ["ELFS_DEBUG"] = "1"


def _parse(overrides: list[str] | None) -> dict[str, Any]:
    """Turn name=value texts into parameters, values read as YAML."""
    parsed = {}
    for text in overrides or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ElfsError(f"Write -p name=value, not {text!r}.")
        try:
            parsed[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ElfsError(f"Parameter {name!r} has a value that is not YAML: {value!r}.") from None
    return parsed


@app.command()
def run(
    params_file: ParamsFile,
    p: Overrides = None,
    notebooks: Annotated[bool, typer.Option(help="Execute the notebooks afterwards")] = True,
    kernel: Annotated[str | None, typer.Option("-k", help="Jupyter kernel of the notebooks")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Run the whole pipeline: stages with progress, then the notebooks into `book/runs/`.

    Finished stages are found and not run again, so a run that was killed goes on where it was.

    Examples:

        elfs run params/digits.yaml

        elfs run params/cifar10.yaml -p seed=1 -p device=cuda --no-notebooks
    """
    from elfs_lib import pipeline
    from elfs_lib.params import Params
    from elfs_lib.stages import Run, default_store

    overrides = _parse(p)
    current = Run(Params.load(params_file, overrides), default_store(repair=repair))
    current.check()
    pipeline.run_stages(current, say=lambda text: print(text, flush=True))
    if notebooks:
        target = pipeline.runs_folder(params_file)
        pipeline.write_results(current, target)
        print(f"Executing {len(pipeline.NOTEBOOKS)} notebooks into {target}", flush=True)
        pipeline.run_notebooks(params_file, target, overrides=overrides, kernel=kernel)


@app.command()
def status(params_file: ParamsFile, p: Overrides = None) -> None:
    """Show which stages of a run are done and which are left.

    Example:

        elfs status params/cifar10.yaml
    """
    from elfs_lib import pipeline
    from elfs_lib.artifacts import NotBuilt
    from elfs_lib.params import Params
    from elfs_lib.stages import Run, default_store

    current = Run(Params.load(params_file, _parse(p)), default_store(look=True))
    done = 0
    plan = list(pipeline.steps(current))
    for step in plan:
        try:
            step.work()
        except NotBuilt:
            print(f"to do  {step.name}")
        else:
            done += 1
            print(f"done   {step.name}")
    print(f"{done} of {len(plan)} stages are done in {current.store.root}")


@app.command()
def sweep(
    sweep_file: Annotated[
        Path, typer.Argument(help="YAML of a sweep, e.g. params/sweeps/digits.yaml")
    ],
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Notebooks at a time, here")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the failed notebooks again")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would run")
    ] = False,
    kernel: Annotated[str | None, typer.Option("-k", help="Jupyter kernel of the notebooks")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Run datasets x methods x budgets x seeds, each a papermill run of notebook 06, on Dask.

    What is done is not run again, so a sweep that was killed goes on where it was. The results
    table grows row by row in `results/<name>.parquet` of the artifacts. Exit code 1: some failed.

    Examples:

        elfs sweep params/sweeps/digits.yaml --dry-run

        elfs sweep params/sweeps/cifar10.yaml --workers 4

        elfs sweep params/sweeps/cifar10.yaml --scheduler tcp://10.0.0.1:8786 --retry-failed
    """
    from elfs_lib import sweep as sweeps
    from elfs_lib.stages import default_store

    grid = sweeps.load_sweep(sweep_file)
    if dry_run:
        plan = sweeps.plan(grid, default_store(), retry_failed=retry_failed)
        for item in (*plan.stages, *plan.waiting):
            print(f"would run  {item.title}")
        print(sweeps.describe(grid, plan))
        return
    store = default_store(repair=repair)
    sweeps.run_sweep(
        grid,
        store,
        scheduler=scheduler,
        workers=workers,
        retry_failed=retry_failed,
        kernel=kernel,
    )
    print(f"Results: {sweeps.results_file(grid, store)}")
    failed = sweeps.failures(grid, store)
    for failure in failed:
        kept = f" (kept as {failure.notebook})" if failure.notebook else ""
        print(f"{failure.kind}: {failure.title}: {failure.message}{kept}")
    if failed:
        print(f"{len(failed)} notebooks failed; --retry-failed runs them again.")
        raise typer.Exit(1)


@app.command()
def book(
    strict: Annotated[bool, typer.Option(help="Warnings are errors")] = True,
) -> None:
    """Render the book from the executed notebooks.

    Example:

        elfs book
    """
    from elfs_lib import pipeline

    print(f"The book is built: open {pipeline.build_book(strict=strict)}")


@app.command()
def verify() -> None:
    """Check every artifact against its checksums.

    Example:

        elfs verify
    """
    from elfs_lib.stages import default_store

    store = default_store()
    problems = store.damaged()
    for problem in problems:
        print(problem)
    if problems:
        raise ElfsError(f"{len(problems)} damaged artifacts in {store.root}.")
    print(f"All {len(store.artifacts())} artifacts in {store.root} are whole.")


@app.command()
def methods() -> None:
    """List the selection methods: what each needs, and whether it sees labels.

    Example:

        elfs methods
    """
    from elfs_lib.selection import METHODS

    width = max(map(len, METHODS))
    for entry in METHODS.values():
        kind = "supervised" if entry.supervised else "label-free"
        needs = ", ".join(sorted(entry.needs)) or "nothing"
        print(f"{entry.name:{width}}  {kind:10}  {entry.summary} (needs {needs})")


@app.command()
def encoders() -> None:
    """List the encoders known by name, what they were trained on, and whether it had labels.

    Example:

        elfs encoders
    """
    from elfs_lib.encoders import ENCODERS, describe

    width = max(map(len, ENCODERS))
    for name in ENCODERS:
        facts = describe(name)
        seen = "saw labels" if facts["saw_labels"] else "no labels"
        print(f"{name:{width}}  {seen:10}  {facts['pretraining']}")


def main() -> None:
    """Entry point: errors a user can mend are one sentence on stderr, exit code 2."""
    try:
        app()
    except ElfsError as error:
        if os.environ.get("ELFS_DEBUG"):
            traceback.print_exc()
        print(f"elfs: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("elfs: stopped; run the same command again to go on from here.", file=sys.stderr)
        raise SystemExit(130) from None
