"""Commands for people's own images: the list, its labels, a model."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elfs_lib.cli.shared import app, parse_number, parse_overrides
from elfs_lib.errors import ElfsError

if TYPE_CHECKING:
    from elfs_lib.photos.choice import Choice
    from elfs_lib.photos.lists import ListFiles


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
        str, typer.Option(help="As elfs methods lists (label-free), or auto: by labels a class")
    ] = "auto",
    holdout: Annotated[
        int, typer.Option(min=0, help="Images to draw at random, apart from the list, to test on")
    ] = 0,
    names: Annotated[
        str | None,
        typer.Option(help="A name for each pseudo-class, to suggest as its label: cat,dog,cat"),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Your own embeddings: .npz or .parquet with a path for each row"),
    ] = None,
    balanced: Annotated[
        bool, typer.Option(help="For method elfs: prune within each pseudo-class")
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
    from elfs_lib.photos.lists import make_list
    from elfs_lib.photos.request import Request
    from elfs_lib.project import default_store

    overrides = parse_overrides(p)
    if embeddings is not None:
        if "encoder" in overrides:
            raise ElfsError("--embeddings replaces the encoder: leave one of them out.")
        path = embeddings.expanduser().absolute()
        overrides |= {"encoder": PRECOMPUTED, "embeddings_path": str(path)}
    files = own_labels.ListFiles(out)
    if report:
        _check_report(kernel)
    request = Request(
        "auto" if classes == "auto" else parse_number("classes", classes, hint=", or auto"),
        parse_number("budget", budget, hint=", or a share such as 0.1"),
        overrides.pop("seed", 0),
        copies,
        balanced,
        overrides,
        method=method,
        holdout=holdout,
        names=_names(names, keep_empty=True),
    )
    choice = make_list(
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
    help="""Bring people's labels back to a list.

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
        typer.Option(help='All classes, as in a line of CSV: cat,dog,"salt, pepper"'),
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
    from elfs_lib.photos import lists as photos_lists
    from elfs_lib.photos.lists import find_list

    files = find_list(list_file, file)
    labels, every = own_labels.import_labels(files, file, names=_names(names), replace_old=replace)
    read = "label" if len(labels.given) == 1 else "labels"
    images = "image" if len(labels.open) == 1 else "images"
    print(f"{len(labels.given):,} {read} read, {len(labels.open):,} {images} without one.")
    counts = ", ".join(f"{name} {count:,}" for name, count in photos_lists.count(every).items())
    print(f"{len(every):,} labels are in {files.labels}: {counts}")


@app.command()
def evaluate(
    list_file: ListFile = None,
    folds: Annotated[int, typer.Option(help="Number of cross-validation folds")] = 5,
    batch: Annotated[
        int | None, typer.Option("--next", min=0, help="Images in the next batch; 0: none")
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
    from elfs_lib.photos.lists import find_list

    files = find_list(list_file)
    if report and batch != 0:
        _check_report(kernel)
    _, choice = own_labels.evaluate(
        files, folds=folds, batch=batch, repair=repair, say=lambda t: print(t, flush=True)
    )
    if choice is not None:
        _finish_list(files.next, choice, report, kernel)
