"""Commands for the book and its pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elfs_lib.cli.shared import app


@app.command()
def book(
    strict: Annotated[bool, typer.Option(help="Treat warnings as errors")] = True,
) -> None:
    """Render the book from the executed notebooks.

    Example:

        elfs book
    """
    from elfs_lib.runs import pipeline

    print(f"The book is built: open {pipeline.build_book(strict=strict)}")


@app.command()
def publish(
    out: Annotated[Path, typer.Option(help="The archive to write")] = Path("supplement.zip"),
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous",
            help="For double-blind review: without the names, paths and repository of the project",
        ),
    ] = False,
) -> None:
    """Put the built book into a zip, as supplementary material.

    It also has the executed notebooks, the tables, the coreset lists, the parameters, a manifest
    with the checksum of every file, and a note on licences.

    Examples:

        elfs publish

        elfs publish --anonymous --out supplement_anonymous.zip
    """
    from elfs_lib.runs import publishing

    manifest = publishing.publish(out, anonymous=anonymous)
    size = out.stat().st_size / 2**20
    print(f"Written: {out} ({len(manifest['files']):,} files and a manifest, {size:.1f} MiB)")


@app.command()
def verdict() -> None:
    """Write what the results tables show of ELFS against other methods.

    To book/data/verdict.json: rows of dataset, budget, rival, difference with its 95% interval,
    number of runs, recipe and accuracy of the pseudo-labels. The results in README.md and its
    pictures in book/images are written from these and from the executed notebooks.

    Example:

        elfs verdict
    """
    from elfs_lib.project import project_root
    from elfs_lib.results.headlines import update_readme, write_pictures
    from elfs_lib.results.tables import result_tables
    from elfs_lib.results.verdict import verdict_file, write_verdict

    root = project_root()
    rows, readme = write_verdict(result_tables()), root / "README.md"
    update_readme(rows, readme)
    notebook = root / "book/runs/cifar10/05_double_end_pruning.ipynb"
    pictures = write_pictures(rows, root / "book/images", notebook)
    print(f"Written: {verdict_file()} ({len(rows)} rows), {readme},", *pictures)


@app.command()
def notebooks() -> None:
    """Run each notebook on the digits, its default, and store the outputs in it.

    Example:

        elfs notebooks
    """
    from elfs_lib.runs import pipeline

    for path in pipeline.refresh_notebooks():
        print(f"{path.name} holds the outputs of its defaults")
