"""The ``elfs`` command."""

from __future__ import annotations

import csv
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
import yaml

from elfs_lib.errors import ElfsError

if TYPE_CHECKING:
    from elfs_lib.photos.choosing import Choice
    from elfs_lib.photos.labels import ListFiles

INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended
_UsageError = typer.BadParameter.__bases__[0]  # click's, which newer versions of typer contain

app = typer.Typer(
    name="elfs",
    help="""Label-free coreset selection: choose which images are worth a label.

    Examples, and more with every command's `--help`:

        elfs run params/digits.yaml --render

        elfs select photos --classes 10 --budget 500
    """,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ParamsFile = Annotated[Path, typer.Argument(help="YAML of parameters, e.g. params/digits.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="Override a parameter: -p budget=0.2 (repeatable)"),
]


def _version(wanted: bool) -> None:
    if wanted:
        from elfs_lib.artifacts import package_versions

        print(", ".join(f"{name} {version}" for name, version in package_versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Show the versions of ELFS and of the packages that decide its numbers",
        ),
    ] = False,
) -> None:
    if debug:
        os.environ["ELFS_DEBUG"] = "1"


def _parse(overrides: list[str] | None) -> dict[str, Any]:
    """Turn name=value texts into parameters, values read as YAML."""
    from elfs_lib.params import parse_yaml

    parsed = {}
    for text in overrides or []:
        name, _, value = text.partition("=")
        name = name.strip()
        if not name or "=" not in text:
            raise ElfsError(f"Write -p name=value, not {text!r}.")
        if name in parsed:
            raise ElfsError(f"Parameter {name!r} is given twice: keep one -p {name}=value.")
        try:
            parsed[name] = parse_yaml(value)
        except yaml.YAMLError:
            raise ElfsError(
                f"Parameter {name!r} has a value that is not YAML: {value!r}."
            ) from None
    return parsed


def _number(name: str, text: str, *, hint: str = "") -> int | float:
    """A whole number, or a share."""
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise ElfsError(f"{name} is {text!r}: give a number{hint}.") from None


@app.command()
def run(
    params_file: ParamsFile,
    p: Overrides = None,
    notebooks: Annotated[bool, typer.Option(help="Execute the notebooks afterwards")] = True,
    kernel: Annotated[
        str | None, typer.Option("--kernel", "-k", help="Jupyter kernel of the notebooks")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Render the book in the end")] = False,
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

    current = Run(Params.load(params_file, _parse(p)), default_store(repair=repair))
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

    current = Run(Params.load(params_file, _parse(p)), default_store(look=True))
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
            call.artifact  # noqa: B018
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
        int | None, typer.Option("--workers", "-w", min=1, help="Notebooks at a time, here")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the failed notebooks again")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would run")] = False,
    kernel: Annotated[
        str | None, typer.Option("--kernel", "-k", help="Jupyter kernel of the notebooks")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
    book: Annotated[
        bool,
        typer.Option("--book", help="Also show the rows that exist on the book's results page"),
    ] = False,
) -> None:
    """Run datasets x methods x budgets x seeds, each a papermill run of notebook 06, on Dask.

    Finished notebooks are not run again, so an interrupted sweep resumes. The results table grows
    row by row in `results/<name>.parquet` of the artifacts folder. Exit code 1: some failed.

    Examples:

        elfs sweep params/sweeps/digits.yaml --dry-run

        elfs sweep params/sweeps/cifar10.yaml --workers 4

        elfs sweep params/sweeps/cifar10.yaml --scheduler tcp://10.0.0.1:8786 --retry-failed

        elfs sweep params/sweeps/cifar10.yaml --dry-run --book

        elfs sweep params/sweeps/cifar10_pipelines.yaml --workers 2
    """
    from elfs_lib.project import default_store
    from elfs_lib.runs import sweep as sweeps

    if scheduler == "":
        raise ElfsError("--scheduler is empty: give an address such as tcp://10.0.0.1:8786.")
    grid, store = sweeps.load_sweep(sweep_file), default_store(repair=repair)
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
        )
        print(f"Results: {sweeps.results_file(grid, store)}")
    if book:
        for table in sweeps.publish(grid, f"elfs sweep {sweep_file}", store):
            print(f"For the book: {table}")
    failed = [] if dry_run else sweeps.failures(grid, store)
    for failure in failed:
        kept = f" (kept as {failure.notebook})" if failure.notebook else ""
        print(f"{failure.kind}: {failure.title}: {failure.message}{kept}")
    if failed:
        print(f"{len(failed)} notebooks failed; --retry-failed runs them again.")
        raise typer.Exit(1)


ListFile = Annotated[
    Path | None,
    typer.Option("--list", help="The list that elfs select wrote", show_default="to_label.csv"),
]
Report = Annotated[bool, typer.Option(help="Write the HTML page")]
ReportKernel = Annotated[
    str | None, typer.Option("--kernel", "-k", help="Jupyter kernel of the report")
]


@app.command()
def select(
    folder: Annotated[Path, typer.Argument(help="Directory of images, flat or nested, no labels")],
    budget: Annotated[str, typer.Option(help="Images to label: a count, or a share such as 0.1")],
    classes: Annotated[
        str, typer.Option(help="Number of classes, or auto to estimate it from the images")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="The list to write")] = Path("to_label.csv"),
    copies: Annotated[
        float | None,
        typer.Option(help="Cosine similarity from which two images are near copies"),
    ] = None,
    method: Annotated[
        str, typer.Option(help="A label-free method of elfs methods, or auto: by labels a class")
    ] = "auto",
    holdout: Annotated[
        int, typer.Option(min=0, help="Images to draw at random beside the list, to test on")
    ] = 0,
    names: Annotated[
        str | None,
        typer.Option(help="A name of each pseudo-class, to suggest as label: cat,dog,cat"),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Your own embeddings: .npz or .parquet with a path for each row"),
    ] = None,
    balanced: Annotated[
        bool, typer.Option(help="Of method elfs: prune within each pseudo-class")
    ] = True,
    report: Report = True,
    p: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="Set a parameter: -p seed=1 (repeatable)"),
    ] = None,
    kernel: ReportKernel = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Choose which images of a folder to label: a list, tasks for Label Studio, an HTML page.

    Only the pixels are used. Of each group of copies at most one image is listed; damaged files
    and everything else that is not listed are in `<out>.rest.csv`, with the reason.

    Examples:

        elfs select photos --classes 10 --budget 500 --out to_label.csv

        elfs select photos --budget 0.05 -p encoder=dino_vits16 -p seed=1

        elfs select photos --classes 10 --budget 100 --holdout 50 --method typiclust
    """
    from elfs_lib.embedding.embedding_file import PRECOMPUTED
    from elfs_lib.photos import labels as own_labels
    from elfs_lib.photos.choosing import Request
    from elfs_lib.project import default_store

    overrides = _parse(p)
    if embeddings is not None:
        if "encoder" in overrides:
            raise ElfsError("--embeddings takes the place of an encoder: leave one of them out.")
        path = embeddings.expanduser().absolute()
        overrides |= {"encoder": PRECOMPUTED, "embeddings_path": str(path)}
    files = own_labels.ListFiles(out)
    if report:
        _check_report(kernel)
    request = Request(
        "auto" if classes == "auto" else _number("classes", classes, hint=", or auto"),
        _number("budget", budget, hint=", or a share such as 0.1"),
        overrides.pop("seed", 0),
        copies,
        balanced,
        overrides,
        method=method,
        holdout=holdout,
        names=_names(names, keep_empty=True),
    )
    choice = own_labels.make_list(
        folder, files, request, default_store(repair=repair), say=lambda t: print(t, flush=True)
    )
    _finish_list(files, choice, report, kernel)


def _names(text: str | None, *, keep_empty: bool = False) -> tuple[str, ...]:
    """Names of classes in a line of CSV."""
    names = (name.strip() for name in next(csv.reader([text or ""], skipinitialspace=True)))
    return tuple(name for name in names if name or (keep_empty and text))


def _check_report(kernel: str | None) -> None:
    """Fail before the work, if the report could not be rendered after it."""
    from elfs_lib.photos.report import find_notebook
    from elfs_lib.runs import pipeline

    pipeline.check_kernel(kernel, find_notebook())


def _finish_list(files: ListFiles, choice: Choice, report: bool, kernel: str | None) -> None:
    """Say what was chosen, and render the report of a list that is written."""
    from elfs_lib.photos.report import render_report

    for line in choice.summary():
        print(line)
    written = [files.csv, files.tasks, files.rest]
    written += [files.holdout, files.holdout_tasks] if files.holdout.exists() else []
    if report:
        print("Rendering the report", flush=True)
        render_report(files.record, files.html, title=f"To label: {files.csv.stem}", kernel=kernel)
        written.append(files.html)
    print(f"Written: {', '.join(map(str, written))}")


labels_app = typer.Typer(
    no_args_is_help=True,
    help="""Labels that people gave.

    Example:

        elfs labels import labels.csv --list to_label.csv
    """,
)
app.add_typer(labels_app, name="labels")


@labels_app.command("import")
def labels_import(
    file: Annotated[Path, typer.Argument(help="CSV (path, label), or Label Studio's JSON export")],
    list_file: ListFile = None,
    names: Annotated[
        str | None,
        typer.Option(help='All classes there are, as in a line of CSV: cat,dog,"salt, pepper"'),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="New labels win over those imported before")
    ] = False,
) -> None:
    """Check labels (unknown images, contradictions, misspelt classes) and keep them by the list.

    A list into which the labels were typed, or its next batch, is found by its own name; labels in
    other files are for `to_label.csv` unless `--list` says otherwise.

    Examples:

        elfs labels import labels.csv

        elfs labels import export.json --list to_label.csv --names "cat,dog,bird"
    """
    from elfs_lib.photos import labels as own_labels

    files = own_labels.find_list(list_file, file)
    labels, every = own_labels.import_labels(files, file, names=_names(names), replace_old=replace)
    read = "label" if len(labels.given) == 1 else "labels"
    images = "image" if len(labels.open) == 1 else "images"
    print(f"{len(labels.given):,} {read} read, {len(labels.open):,} {images} without one.")
    counts = ", ".join(f"{name} {count:,}" for name, count in own_labels.count(every).items())
    print(f"{len(every):,} labels are in {files.labels}: {counts}")


@app.command()
def evaluate(
    list_file: ListFile = None,
    folds: Annotated[int, typer.Option(help="Number of cross-validation folds")] = 5,
    batch: Annotated[
        int | None, typer.Option("--next", min=0, help="Images of the next batch; 0: none")
    ] = None,
    report: Report = True,
    kernel: ReportKernel = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Train on the labels imported so far, and choose the next images to label.

    Accuracy is cross-validated. The next batch, as many images as the first list unless `--next`
    says otherwise, goes to `<list>.next.csv`, with an HTML page of its own; images that have a
    label are not asked for again.

    Examples:

        elfs evaluate

        elfs evaluate --list to_label.csv --folds 10 --next 200
    """
    from elfs_lib.photos import labels as own_labels

    files = own_labels.find_list(list_file)
    if report and batch != 0:
        _check_report(kernel)
    _, choice = own_labels.evaluate(
        files, folds=folds, batch=batch, repair=repair, say=lambda t: print(t, flush=True)
    )
    if choice is not None:
        _finish_list(files.next, choice, report, kernel)


coreset_app = typer.Typer(
    no_args_is_help=True,
    help="""Coreset lists as files.

    Example:

        elfs coreset export params/digits.yaml --out coreset.parquet
    """,
)
app.add_typer(coreset_app, name="coreset")


@coreset_app.command("export")
def coreset_export(
    params_file: ParamsFile,
    out: Annotated[Path, typer.Option(help="The list to write, .parquet or .csv")],
    method: Annotated[str, typer.Option(help="As elfs methods lists")] = "elfs",
    budget: Annotated[
        str | None,
        typer.Option(help="A count, or a share as 0.1", show_default="the parameter budget"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of methods that draw", show_default="the parameter seed"),
    ] = None,
    p: Overrides = None,
) -> None:
    """Write a run's list and, beside it, a manifest that says what it is of.

    Stages that are missing are run first.

    Examples:

        elfs coreset export params/digits.yaml --out coreset.parquet

        elfs coreset export params/digits.yaml --method random --seed 1 --out random.csv
    """
    from elfs_lib.params import Params
    from elfs_lib.project import default_store
    from elfs_lib.results import coreset_lists
    from elfs_lib.stages.run import Run

    coreset_lists.check_name(out)
    current = Run(Params.load(params_file, _parse(p)), default_store())
    current.check()
    share = current.params.budget if budget is None else _number("budget", budget)
    found = coreset_lists.list_of(current, method, share, seed)
    coreset_lists.write_list(found, out)
    print(f"Written: {out} ({len(found.table):,} images), {coreset_lists.manifest_of(out)}")


@coreset_app.command("compare")
def coreset_compare(
    first: Annotated[Path, typer.Argument(help="A list, .parquet or .csv")],
    second: Annotated[Path, typer.Argument(help="Another")],
    params_file: Annotated[
        Path | None,
        typer.Option("--params", help="YAML of the run: for class balance and easy share"),
    ] = None,
    p: Overrides = None,
) -> None:
    """Compare two lists: overlap, and with the run's labels class balance and easy share.

    Easy share is that among the easiest fifth by true-label AUM; it is shown where the run has
    trained the proxy on true labels.

    Examples:

        elfs coreset compare coreset.parquet random.csv

        elfs coreset compare coreset.parquet random.csv --params params/digits.yaml
    """
    from elfs_lib.params import Params
    from elfs_lib.project import default_store
    from elfs_lib.results import coreset_lists
    from elfs_lib.stages.run import Run

    lists = {str(path): coreset_lists.read_list(path) for path in (first, second)}
    known = {}
    if params_file is not None:
        current = Run(Params.load(params_file, _parse(p)), default_store())
        known = coreset_lists.known_of(current, lists)
    print(coreset_lists.as_shown(coreset_lists.compare_lists(lists, **known)).to_string())


@app.command()
def book(
    strict: Annotated[bool, typer.Option(help="Warnings are errors")] = True,
) -> None:
    """Render the book from the executed notebooks.

    Example:

        elfs book
    """
    from elfs_lib.runs import pipeline

    print(f"The book is built: open {pipeline.build_book(strict=strict)}")


@app.command()
def verdict() -> None:
    """Write what the results tables bear out of ELFS against others.

    To book/data/verdict.json: rows of dataset, budget, rival, difference with its 95% interval,
    number of runs, recipe and accuracy of the pseudo-labels. The results in README.md and its
    pictures in book/images are written from these and from the executed notebooks.

    Example:

        elfs verdict
    """
    from elfs_lib.project import project_root
    from elfs_lib.results.tables import result_tables
    from elfs_lib.results.verdict import update_readme, verdict_file, write_pictures, write_verdict

    root = project_root()
    rows, readme = write_verdict(result_tables()), root / "README.md"
    update_readme(rows, readme)
    notebook = root / "book/runs/cifar10/05_double_end_pruning.ipynb"
    pictures = write_pictures(rows, root / "book/images", notebook)
    print(f"Written: {verdict_file()} ({len(rows)} rows), {readme},", *pictures)


@app.command()
def notebooks() -> None:
    """Run each notebook with its defaults, the digits, and keep the outputs in it.

    Example:

        elfs notebooks
    """
    from elfs_lib.runs import pipeline

    for path in pipeline.refresh_notebooks():
        print(f"{path.name} holds the outputs of its defaults")


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


@app.command()
def methods(
    n: Annotated[
        int | None, typer.Option("--n", max=10**15, help="Number of images, for the cost")
    ] = None,
    dim: Annotated[
        int | None, typer.Option(help="Dimension of the embeddings, D", show_default="768")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Images to label: a count, or a share as 0.1", show_default="0.1"),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes", show_default="10")
    ] = None,
) -> None:
    """List the selection methods: what each needs, whether it sees labels, and what it costs.

    Cost of the selection alone (memory at the peak and time on one core) is shown for `--n` images,
    extrapolated from measured growth, with the stages before it that are not counted.

    Examples:

        elfs methods

        elfs methods --n 1300000 --dim 768 --classes 1000
    """
    from elfs_lib.selection import METHODS, expected_cost
    from elfs_lib.selection.cost import growth_note, is_measured, stages_before

    of_cost = {"--dim": dim, "--budget": budget, "--classes": classes}
    given = [option for option, value in of_cost.items() if value is not None]
    if n is None and given:
        raise ElfsError(f"{given[0]} is for the cost alone: give --n, the number of images, too.")
    dim = 768 if dim is None else dim
    classes = 10 if classes is None else classes
    count = _number("budget", "0.1" if budget is None else budget)
    if n is not None:
        print(f"Costs are extrapolated from measurements on {growth_note()}.")
        print("They are of the selection alone; each row says what a run does before it.")
    width, room = max(map(len, METHODS)), 30 if n is not None else 0
    for entry in METHODS.values():
        kind = "supervised" if entry.supervised else "label-free"
        cost = ""
        if n is not None and is_measured(entry.name):
            memory, seconds = expected_cost(entry.name, n, dim, count, classes=classes)
            cost = f"about {memory / 2**30:6.2f} GiB {seconds:9.1f} s"
        elif n is not None:
            cost = "not measured"
        needs = f"needs {', '.join(sorted(entry.needs)) or 'nothing'}"
        if n is not None:
            needs = f"not counted: {', '.join(stages_before(entry.name)) or 'nothing'}"
        print(f"{entry.name:{width}}  {kind:10}  {cost:{room}}{entry.summary} ({needs})")


@app.command()
def params() -> None:
    """List the parameters of a run: default and meaning.

    Defaults are the paper's protocol where it states one; the files in `params/` set others.

    Example:

        elfs params
    """
    from elfs_lib.params import Params
    from elfs_lib.results.provenance import as_yaml

    width = max(map(len, Params.model_fields))
    for name, field in Params.model_fields.items():
        known = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        meaning = f"{field.description}; {', '.join(known)}" if known else field.description
        print(f"{name:{width}}  {meaning} (default: {as_yaml(field.get_default())})")


@app.command()
def doctor(
    params_file: Annotated[
        Path | None, typer.Argument(help="YAML of parameters of a run to check as well")
    ] = None,
    p: Overrides = None,
) -> None:
    """Look at this machine: what is there, what is missing, and what will be slow.

    Nothing is downloaded. The exit code is 1 if something is missing.

    Examples:

        elfs doctor

        elfs doctor params/cifar10.yaml -p device=cuda
    """
    from rich.console import Console
    from rich.table import Table

    from elfs_lib.cli.doctor import MISSING, examine

    if p and params_file is None:
        raise ElfsError("-p is for a file of parameters: name one.")
    table = Table("", "verdict", "found", box=None, pad_edge=False)
    findings = list(examine(params_file, _parse(p)))
    for finding in findings:
        table.add_row(finding.what, finding.verdict, finding.found)
    console = Console(markup=False, highlight=False)
    console.print(table)
    if any(finding.verdict == MISSING for finding in findings):
        raise typer.Exit(1)


@app.command()
def encoders() -> None:
    """List the encoders known by name: training data, whether it had labels, licence.

    Example:

        elfs encoders
    """
    from elfs_lib.embedding.encoders import ENCODERS, describe

    width = max(map(len, ENCODERS))
    for name in ENCODERS:
        facts = describe(name)
        seen = "saw labels" if facts["saw_labels"] else "no labels"
        print(f"{name:{width}}  {seen:10}  {facts['pretraining']} ({facts['license']})")


@app.command("train-encoder")
def train_encoder(
    params_file: ParamsFile,
    out: Annotated[Path, typer.Option(help="The file to write, .safetensors")],
    p: Overrides = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Train a run's encoder on its images, without labels, and keep it as a file.

    An encoder that the run has trained already is only copied. Given as `encoder_checkpoint`, the
    file embeds other images, or those of another run, and nothing is trained again.

    Examples:

        elfs train-encoder params/cifar10_encoder.yaml --out cifar10_resnet18_empssl.safetensors

        elfs train-encoder params/digits.yaml -p encoder=self_supervised --out own.safetensors

        elfs run params/digits.yaml -p encoder=self_supervised -p encoder_checkpoint=own.safetensors
    """
    from elfs_lib.artifacts import copy_atomic
    from elfs_lib.embedding.encoders import checkpoint_fingerprint
    from elfs_lib.params import Params
    from elfs_lib.project import default_store
    from elfs_lib.stages.run import Run

    if out.suffix != ".safetensors" or not out.absolute().parent.is_dir():
        raise ElfsError(f"--out is {out}: name a .safetensors file in a folder that exists.")
    current = Run(Params.load(params_file, _parse(p)), default_store(repair=repair))
    current.check(labels=False)
    trained = current.encoder_trained.encoder
    copy_atomic(trained.folder / "encoder.safetensors", out)
    about, losses = trained.manifest["encoder"], trained.array("losses")
    print(
        f"{about['method']} on {about['images']}: loss {losses[0]:.4g} in the first epoch, "
        f"{losses[-1]:.4g} in the last."
    )
    print(f"Written: {out} (SHA-256 {checkpoint_fingerprint(out)})")


@app.command("compare-encoders")
def compare_encoders(
    params_file: ParamsFile,
    names: Annotated[
        list[str], typer.Argument(metavar="ENCODERS...", help="Encoders, e.g. pixels dino_vits16")
    ],
    p: Overrides = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Compare encoders on a labelled dataset: neighbours, clusters, the coreset's accuracy, cost.

    Writes a row for each into `book/runs/<dataset>/encoders.csv` as it is done, beside those of
    other encoders, input sizes, seeds and settings (what else `-p` changes); `elfs book` shows
    them. An interrupted comparison resumes.

    Examples:

        elfs compare-encoders params/digits.yaml pixels self_supervised

        elfs compare-encoders params/cifar10.yaml dino_vitb16 dino_vitb16+swav_resnet50

        elfs compare-encoders params/cifar10.yaml efficientnet_lite0 -p encoder_size=192
    """
    from elfs_lib.project import default_store
    from elfs_lib.results import encoder_comparison
    from elfs_lib.results import tables as results

    table = results.runs_folder(params_file) / encoder_comparison.TABLE
    found = encoder_comparison.compare_encoders(
        params_file,
        names,
        table,
        default_store(repair=repair),
        overrides=_parse(p),
        say=lambda text: print(text, flush=True),
    )
    print(encoder_comparison.as_shown(found).to_string(index=False))
    print(f"Written: {table}")


def main() -> None:
    """Entry point: errors a user can fix are one sentence on stderr, exit code 2.

    Started several times by torchrun, one process runs the command and the others train with it.
    """
    started = {"RANK", "LOCAL_RANK"} <= os.environ.keys()  # by torchrun: others set the size too
    if started and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from elfs_lib.training.loop import together

        together(_command)
    else:
        _command()


def _command() -> None:
    try:
        code = app(standalone_mode=False)
    except ElfsError as error:
        raise SystemExit(_say(str(error))) from None
    except OSError as error:
        file = os.fsdecode(error.filename) if error.filename else "a file"
        reason = error.strerror or str(error)
        message = f"Cannot read or write {file}: {reason}; mind its permissions and the space left."
        raise SystemExit(_say(message)) from None
    except ModuleNotFoundError as error:
        # a package's name is not always that of what it installs
        package = {"faiss": "faiss-cpu", "sklearn": "scikit-learn", "PIL": "pillow"}
        name = (error.name or "?").partition(".")[0]
        name = package.get(name, name.replace("_", "-"))
        message = f"This needs the Python package {name}, which is missing: pip install {name}."
        raise SystemExit(_say(message)) from None
    except _UsageError as error:
        message = error.format_message()
        if not message or "\n" in message:  # not an error, but the help of a bare command
            print(message, end="")
            raise SystemExit(2) from None
        command = error.ctx.command_path if error.ctx else "elfs"
        raise SystemExit(_say(f"{message.rstrip('.')}: see {command} --help.")) from None
    if code == INTERRUPTED:  # typer turns Ctrl-C into this
        print("elfs: stopped; run the same command again to go on from here.", file=sys.stderr)
    raise SystemExit(code or 0)


def _say(message: str) -> int:
    """Print what went wrong on stderr, with the traceback if that is asked for."""
    if os.environ.get("ELFS_DEBUG"):
        traceback.print_exc()
    print(f"elfs: {message}", file=sys.stderr)
    return 2
