"""The application that the commands are registered with, and the options they share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from elfs_lib.errors import ElfsError

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
        from elfs_lib.artifacts import package_versions, versions_in_words

        print(versions_in_words(package_versions()))
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


def parse_overrides(overrides: list[str] | None) -> dict[str, Any]:
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


def parse_number(name: str, text: str, *, hint: str = "") -> int | float:
    """A whole number, or a share."""
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise ElfsError(f"{name} is {text!r}: give a number{hint}.") from None
