"""What executed notebooks of the book show, for the pages that put several of them together."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

from elfs_lib.errors import ElfsError


def picture(notebook: Path, call: str) -> bytes:
    """The last PNG that a cell with ``call`` in its source shows.

    Raises:
        ElfsError: if no cell shows one, or there is no such notebook.
    """
    shown = [data["image/png"] for source, data in _outputs(notebook) if call in source
             and "image/png" in data]  # fmt: skip
    if not shown:
        raise ElfsError(f"{notebook} shows no picture of {call}: execute it with elfs run.")
    return base64.b64decode(shown[-1])


def texts(notebook: Path) -> list[str]:
    """The Markdown that cells show, in their order.

    Raises:
        ElfsError: if there is no such notebook.
    """
    shown = (data.get("text/markdown") for _, data in _outputs(notebook))
    return [text for text in shown if text is not None]


def _outputs(notebook: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Source and data of each output.

    Raises:
        ElfsError: if there is no such notebook.
    """
    if not notebook.exists():
        raise ElfsError(f"There is no {notebook} to read: execute it with elfs run.")
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", ()):
            yield cell.source, output.get("data", {})
