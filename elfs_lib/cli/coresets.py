"""Commands for coreset lists as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elfs_lib.cli.shared import Overrides, ParamsFile, app, parse_number, parse_overrides

coreset_app = typer.Typer(
    no_args_is_help=True,
    help="""Export a coreset list as a file, and compare two.

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
        typer.Option(min=0, help="For methods that draw", show_default="the parameter seed"),
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
    current = Run(Params.load(params_file, parse_overrides(p)), default_store())
    current.check()
    share = current.params.budget if budget is None else parse_number("budget", budget)
    found = coreset_lists.list_of(current, method, share, seed)
    coreset_lists.write_list(found, out)
    print(f"Written: {out} ({len(found.table):,} images), {coreset_lists.manifest_of(out)}")


@coreset_app.command("compare")
def coreset_compare(
    first: Annotated[Path, typer.Argument(help="A list, .parquet or .csv")],
    second: Annotated[Path, typer.Argument(help="Another list")],
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
        current = Run(Params.load(params_file, parse_overrides(p)), default_store())
        known = coreset_lists.known_of(current, lists)
    print(coreset_lists.as_shown(coreset_lists.compare_lists(lists, **known)).to_string())
