"""Sphinx extension: maths that needs no network.

Copies one file, MathJax's single-file build with SVG output, from the installed package
``sphinx-mathjax-offline`` into the book. (Loading that package as an extension would copy 24 MB.)
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset

PACKAGE = "sphinx-mathjax-offline"
FILE = "tex-svg.js"


def mathjax_file() -> Path:
    """Where the installed package keeps MathJax's single-file build.

    Raises:
        ExtensionError: if the package is not installed or lacks the file.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == FILE:
            return Path(file.locate())
    raise ExtensionError(f"The book's maths needs {FILE}: pip install {PACKAGE}.")


def _copy(app: Sphinx) -> None:
    if app.builder.format == "html":
        copy_asset(mathjax_file(), Path(app.outdir) / "_static" / "mathjax")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
