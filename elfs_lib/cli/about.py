"""Commands that say what there is: methods, parameters, encoders, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import typer

from elfs_lib.cli.shared import Overrides, app, parse_number, parse_overrides
from elfs_lib.errors import ElfsError


@app.command()
def methods(
    n: Annotated[
        int | None, typer.Option("--n", max=10**15, help="Number of images to estimate cost for")
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
    """List the selection methods: what each needs, whether it sees labels, and what it costs; then
    the scores and the clusterings.

    Cost of the selection alone (memory at the peak and time on one core) is shown for `--n` images,
    extrapolated from measured growth, with the stages before it that are not counted.

    Examples:

        elfs methods

        elfs methods --n 1300000 --dim 768 --classes 1000
    """
    from elfs_lib.clustering import CLUSTERINGS
    from elfs_lib.selection import METHODS, SCORES, expected_cost
    from elfs_lib.selection.cost import growth_note, is_measured, stages_before

    of_cost = {"--dim": dim, "--budget": budget, "--classes": classes}
    given = [option for option, value in of_cost.items() if value is not None]
    if n is None and given:
        raise ElfsError(f"{given[0]} is for the cost alone: give --n, the number of images, too.")
    dim = 768 if dim is None else dim
    classes = 10 if classes is None else classes
    count = parse_number("budget", "0.1" if budget is None else budget)
    if n is not None:
        print(f"Costs are extrapolated from measurements on {growth_note()}.")
        print("They are of the selection alone; each row says what a run does before it.")
    width = max(map(len, [*METHODS, *SCORES, *CLUSTERINGS]))
    room = 30 if n is not None else 0
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
    for entry in SCORES.values():
        values = f"{entry.range}, {entry.hard} is hard; {entry.citation}"
        print(f"{entry.name:{width}}  {'score':10}  {entry.summary} ({values})")
    for entry in CLUSTERINGS.values():
        print(f"{entry.name:{width}}  {'clustering':10}  {entry.summary} ({entry.citation})")


@app.command()
def datasets() -> None:
    """List the datasets known by name, and what `data_path` is where one needs it.

    Example:

        elfs datasets
    """
    from elfs_lib.data.datasets import DATASETS

    width = max(map(len, DATASETS))
    for entry in DATASETS.values():
        needed = f" (data_path: {entry.get})" if entry.needs_path else ""
        print(f"{entry.name:{width}}  {entry.description}{needed}")


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
        Path | None, typer.Argument(help="YAML of parameters of a run, to check it as well")
    ] = None,
    p: Overrides = None,
) -> None:
    """Check this machine: what is there, what is missing, and what will be slow.

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
    findings = list(examine(params_file, parse_overrides(p)))
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
