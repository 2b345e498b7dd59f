"""The report of a list: a parameterised notebook, executed and turned into one HTML file."""

from __future__ import annotations

import tempfile
from html import escape
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from traitlets.config import Config

from elfs_lib.artifacts import write_text_atomic
from elfs_lib.errors import ElfsError
from elfs_lib.project import project_root
from elfs_lib.runs.pipeline import run_notebook

NOTEBOOK = "select_report.ipynb"
# The page holds everything it shows. The policy makes sure: nothing is fetched, no script runs.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }}
h1, h2 {{ line-height: 1.2; margin: 2rem 0 .5rem; }}
table {{ border-collapse: collapse; font-size: 14px; }}
th, td {{ padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #ddd;
  vertical-align: top; }}
img {{ max-width: 100%; height: auto; }}
.output_png {{ overflow-x: auto; }}
@media (max-width: 40rem) {{ .output_png img {{ max-width: none; width: 36rem; }} }}
.anchor-link, .prompt {{ display: none; }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def find_notebook() -> Path:
    """The report's notebook: in the project around the current folder, else beside the library.

    Raises:
        ElfsError: if it is in neither.
    """
    places = (project_root(), Path(__file__).resolve().parents[2])
    for place in places:
        if (place / "notebooks" / NOTEBOOK).is_file():
            return place / "notebooks" / NOTEBOOK
    raise ElfsError(
        f"The report needs notebooks/{NOTEBOOK}: run this in the project's folder, or leave the "
        "report out with --no-report."
    )


def render_report(record: Path, html: Path, *, title: str, kernel: str | None = None) -> None:
    """Execute the notebook on a list's record and write one self-contained HTML file.

    Args:
        record: The list's ``run.json``.
        html: The file to write.
        title: Title of the page.
        kernel: Name of a Jupyter kernel; None for the one that the notebook names.

    Raises:
        ElfsError: naming the cell and the message, if it fails.
    """
    notebook = find_notebook()
    with tempfile.TemporaryDirectory(prefix="elfs-") as folder:
        output = Path(folder) / NOTEBOOK
        words = {"record": str(record.resolve())}
        run_notebook(notebook, output, words, kernel=kernel, last="the list itself is written")
        executed = nbformat.read(output, as_version=4)
    config = Config()
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = ("remove-cell", "parameters")
    exporter = HTMLExporter(
        config=config,
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(executed)
    write_text_atomic(html, _PAGE.format(title=escape(title), body=body))
